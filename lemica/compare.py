"""Compare cached videos with the uncached one: PSNR, SSIM and, where its weights are installed, LPIPS (AlexNet).

Computed on RGB frames in [0, 1] and averaged over frames, then over videos; SSIM with an 11 x 11 Gaussian of sigma 1.5.
Frames that equal the reference have an infinite PSNR and are left out of its mean, which is "inf" if all do (null in
JSON). Videos must agree in the number and the size of their frames.

Compressing a video changes it too. Where NAME_lossless.mkv stands beside every video given, as left by generate.py
--save_lossless true, these are read instead.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lemica.metrics import (
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

EXAMPLES = """\
examples:
  python -m lemica compare uncached.mp4 b25.mp4 b15.mp4
  python -m lemica compare uncached.mp4 b*.mp4 --json > quality.json
"""


@dataclass(frozen=True)
class Comparison:
    """Two files as they were read, and the quality of the second against the first."""

    reference: Path
    cached: Path
    quality: Quality

    @property
    def means(self) -> Means:
        return means_of(self.quality)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="the uncached video")
    parser.add_argument("cached", type=Path, nargs="+", metavar="CACHED", help="videos of the same prompt and seed")
    parser.add_argument("--as_given", action="store_true", help="read these files even where lossless copies exist")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Print the table or the JSON; raises ValueError for files that cannot be read or compared."""
    comparisons = compare(args.reference, args.cached, args.as_given)
    print(json.dumps(document(comparisons), indent=2) if args.json else "\n".join(table(comparisons)))


def compare(reference: Path, cached: Sequence[Path], as_given: bool = False) -> list[Comparison]:
    """Measure every cached video against the reference, on lossless copies unless `as_given` or one has none."""
    named = [reference, *cached]
    reference, *videos = named if as_given else files_to_measure(named)
    lpips = load_lpips()
    return [Comparison(reference, video, measure(reference, video, lpips)) for video in videos]


def table(comparisons: Sequence[Comparison]) -> list[str]:
    """One line a video, one for the means if there are several, and what to know about the numbers."""
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
            "the compression of these files counts too: generate.py --save_lossless true leaves copies without"
        )
    if any(item.quality.lpips is None for item in comparisons):
        notes.append(f"no LPIPS: {HOW_TO_GET_LPIPS}")
    return notes


def document(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What --json prints."""
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
    """JSON has no infinity."""
    return {name: None if value == math.inf else value for name, value in asdict(means).items()}
