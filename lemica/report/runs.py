"""The runs of a folder, measured: what each costs and gives against the uncached one of its request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lemica.errors import Refused, require
from lemica.quality.configs import CONFIG_SUFFIX
from lemica.quality.metrics import Metric, files_to_measure, is_lossless, load_lpips, means_of, measure, shape
from lemica.report.groups import Group, read_groups
from lemica.report.video_run import Request, VideoRun, read_run, speedup_of
from lemica.streams import Unfailing


@dataclass(frozen=True)
class Section:
    """The runs of one request: the reference first, then by falling number of computed steps. Sizes are in pixels."""

    request: Request
    frames: int
    height: int
    width: int
    lossless: bool
    runs: tuple[VideoRun, ...]

    @property
    def reference(self) -> VideoRun:
        return self.runs[0]


def summarise(run_dir: Path) -> list[Section]:
    """Read and measure the runs in a folder and its subfolders, a section for every request.

    Args:
        run_dir: the folder that generate.py wrote videos and configs to.

    Raises Refused if there are no runs that can be compared, see ``read_groups``.

    Example:
        >>> (section,) = summarise(Path("."))
        >>> [(run.name, run.budget, f"{run.speedup:.2f}") for run in section.runs]
        [('uncached', 50, '1.00'), ('b25', 25, '2.00'), ('b10', 10, '4.96')]
    """
    return measured(read_groups(run_dir))


def measured(groups: Sequence[Group]) -> list[Section]:
    """The runs of every request with their speed-up and quality; a bar shows how many videos are done."""
    tqdm = require("tqdm", extra="quality", purpose="comparing videos").tqdm
    lpips = load_lpips()
    total = sum(len(group) - 1 for group in groups)
    with tqdm(total=total, desc="measuring", unit="video", leave=False, disable=None, file=Unfailing()) as progress:
        return [_section(group, lpips, progress.update) for group in groups]


def _section(group: Group, lpips: Metric | None, done: Callable[[], object]) -> Section:
    reference, *others = group
    source, *videos = files_to_measure([run.video for run in group])
    compared = []
    for run, video in zip(others, videos, strict=True):
        quality = means_of(measure(source, video, lpips))
        compared.append(replace(run, speedup=speedup_of(run, reference), quality=quality))
        done()
    lossless = all(map(is_lossless, [source, *videos]))
    return Section(reference.request, *shape(source), lossless, (replace(reference, speedup=1.0), *compared))


def refuse_changed_runs(sections: Sequence[Section]) -> None:
    """Refuse figures of runs that are no longer those on the disk: measuring many of them takes long."""
    for run in (run for section in sections for run in section.runs):
        now = read_run(run.video.with_name(run.video.stem + CONFIG_SUFFIX))
        if replace(now, name=run.name, speedup=run.speedup, quality=run.quality) != run:
            raise Refused(f"{run.video} was changed while it was measured: type the same command again")
