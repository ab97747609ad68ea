"""Several cached videos against one reference, as a table or as a document."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lemica.errors import Refused
from lemica.quality.configs import config_beside, different, refuse_changed
from lemica.quality.metrics import (
    HOW_TO_GET_LPIPS,
    Means,
    Quality,
    files_to_measure,
    is_lossless,
    load_lpips,
    means_of,
    means_over,
    measure,
)


@dataclass(frozen=True)
class Comparison:
    """Two files as they were read, and the quality of the second against the first."""

    reference: Path
    cached: Path
    quality: Quality

    @property
    def means(self) -> Means:
        return means_of(self.quality)


def compare(reference: Path, cached: Sequence[Path], as_given: bool = False) -> list[Comparison]:
    """Measure cached videos against the uncached one.

    Args:
        reference: the uncached video.
        cached: videos of the same request.
        as_given: read these very files, not their lossless copies, and whatever the configs beside them say.

    Raises Refused if a file cannot be read or compared, and for videos whose configs say that they are of another
    request or another file.

    Example:
        >>> for item in compare(Path("uncached.mp4"), [Path("b25.mp4"), Path("b10.mp4")]):
        ...     print(item.cached.name, f"{item.means.psnr:.2f} dB")
        b25_lossless.mkv 39.86 dB
        b10_lossless.mkv 27.95 dB
    """
    named = [reference, *cached]
    if not as_given:
        _refuse_other_requests(named)
    reference, *videos = named if as_given else files_to_measure(named)
    lpips = load_lpips()
    return [Comparison(reference, video, measure(reference, video, lpips)) for video in videos]


def _refuse_other_requests(videos: Sequence[Path]) -> None:
    """Of videos with a config; one that has "files" without this video is another file's: x_config.json by x.webm."""
    found = {video: config_beside(video) for video in videos if video.is_file()}
    known = {video: config for video, config in found.items() if config is not None}
    for video, config in known.items():
        if config.files is None or video.name in config.files:
            refuse_changed(video, config)
    own = {video: config.request for video, config in known.items() if config.owns(video)}
    for video, request in own.items():
        first = next(iter(own))
        difference = different(own[first], request)
        if difference:
            raise Refused(
                f"{first} and {video} are of different requests, {difference}: give videos of one request, or type "
                "--as_given to compare them all the same"
            )


def table(comparisons: Sequence[Comparison]) -> list[str]:
    """One line per video, one for the means if there are several, and what to know about the numbers."""
    rows = [(str(item.cached), item.means) for item in comparisons]
    if len(rows) > 1:
        rows.append(("mean", means_over([item.means for item in comparisons])))
    first = f"against {comparisons[0].reference}"
    width = max(len(name) for name in (first, *dict(rows)))
    head = f"{first:<{width}}{'PSNR':>9}{'worst':>9}{'SSIM':>9}{'LPIPS':>9}"
    return [head, *(_line(name.ljust(width), means) for name, means in rows), *_notes(comparisons)]


def _line(name: str, means: Means) -> str:
    lpips = "-" if means.lpips is None else f"{means.lpips:.4f}"
    return f"{name}{means.psnr:>9.2f}{means.worst_psnr:>9.2f}{means.ssim:>9.4f}{lpips:>9}"


def _notes(comparisons: Sequence[Comparison]) -> list[str]:
    files = [comparisons[0].reference, *(item.cached for item in comparisons)]
    notes = []
    if not all(map(is_lossless, files)):
        notes.append(
            "compression costs these files quality too: generate.py --save_lossless true writes copies without it"
        )
    if any(item.quality.lpips is None for item in comparisons):
        notes.append(f"no LPIPS: {HOW_TO_GET_LPIPS}")
    return notes


def document(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The same numbers for JSON, which has no infinity: an infinite PSNR becomes None."""
    videos = [
        {
            "reference": str(item.reference),
            "cached": str(item.cached),
            "frames": len(item.quality.psnr),
            "equal_frames": sum(map(math.isinf, item.quality.psnr)),
            **_numbers(item.means),
        }
        for item in comparisons
    ]
    return {"videos": videos, "mean": _numbers(means_over([item.means for item in comparisons]))}


def _numbers(means: Means) -> dict[str, float | None]:
    return {name: None if value == math.inf else value for name, value in asdict(means).items()}
