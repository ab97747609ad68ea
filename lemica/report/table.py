"""The runs as a table of text, and their means over several requests."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from lemica.quality.metrics import Means, means_over
from lemica.report.runs import Section, VideoRun

COLUMNS = (
    *("run", "computed", "DiT s", "computed step", "reused step", "speed-up"),
    *("PSNR", "worst", "SSIM", "LPIPS", "mask", "reuse"),
)
# Names, masks and rules to the left, numbers to the right.
_SIDES = "<" + ">" * (len(COLUMNS) - 3) + "<<"


def cells(run: VideoRun) -> tuple[str, ...]:
    """A run as a line of a table with COLUMNS; what it does not have is "-"."""
    computed = "-" if run.budget is None else f"{run.budget} of {run.num_steps}"
    steps = (_duration_cell(seconds) for seconds in (run.computed_step_seconds, run.reused_step_seconds))
    times = computed, f"{run.dit_seconds:.2f}", *steps, speedup(run)
    return run.name, *times, *_quality_cells(run.quality), run.origin, run.rule or "-"


def speedup(run: VideoRun) -> str:
    """The speed-up; "~" before it says that it compares the clocks of two runs."""
    return f"{'~' if run.computed_steps is None else ''}{run.speedup:.2f}"


def _duration_cell(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _quality_cells(quality: Means | None) -> tuple[str, str, str, str]:
    if quality is None:
        return ("-",) * 4
    lpips = "-" if quality.lpips is None else f"{quality.lpips:.4f}"
    return f"{quality.psnr:.2f}", f"{quality.worst_psnr:.2f}", f"{quality.ssim:.4f}", lpips


def duration(seconds: float) -> str:
    """Seconds or milliseconds with three digits.

    Example:
        >>> duration(12.345), duration(0.002)
        ('12.3 s', '2.00 ms')
    """
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f} {unit}"


def mean_runs(sections: Sequence[Section]) -> list[VideoRun]:
    """The means over sections of every cached run that all of them have; none if there is one section only.

    Runs of two sections are the same if they agree in name, number of steps and of computed steps, origin and rule.
    Their seconds, speed-ups and quality are averaged.
    """
    if len(sections) < 2:
        return []
    by_kind = [{_kind_of(run): run for run in section.runs[1:]} for section in sections]
    shared = [kind for kind in by_kind[0] if all(kind in runs for runs in by_kind)]
    return [_mean_run([runs[kind] for runs in by_kind]) for kind in shared]


def _kind_of(run: VideoRun) -> tuple:
    return run.name, run.budget, run.num_steps, run.origin, run.rule


def _mean_run(runs: Sequence[VideoRun]) -> VideoRun:
    averaged = ("computed_step_seconds", "reused_step_seconds", "dit_seconds", "total_seconds", "speedup")
    means = {name: _mean([getattr(run, name) for run in runs]) for name in averaged}
    return replace(runs[0], **means, quality=means_over([run.quality for run in runs]))


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else fmean(values)


def table(sections: Sequence[Section], means: Sequence[VideoRun] = ()) -> list[str]:
    """All runs as lines of text, a block per section and one of means, and in the end how speed-ups are reckoned.

    Args:
        sections: what ``summarise`` returns.
        means: what ``mean_runs`` returns.

    Example:
        >>> from pathlib import Path
        >>> from lemica.report.runs import summarise
        >>> for line in table(summarise(Path(".")))[2:5]:
        ...     print(line[:70].rstrip())
        run       computed  DiT s  computed step  reused step  speed-up   PSNR
        uncached  50 of 50  50.00         1.00 s            -      1.00      -
        b25       25 of 50  25.05         1.00 s      2.00 ms      2.00  39.86
    """
    blocks = [(_title(section), section.runs) for section in sections]
    if means:
        blocks.append((f"mean over {len(sections)} prompts", means))
    rows = [COLUMNS, *(cells(run) for _, runs in blocks for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [line for title, runs in blocks for line in ("", title, *_lines(runs, widths))]
    return [*lines, "", *speedup_notes([run for _, runs in blocks for run in runs])]


def speedup_notes(runs: Sequence[VideoRun]) -> list[str]:
    """How the speed-ups of these runs are reckoned, in a sentence or two."""
    notes = [
        "Speed-up: N c / (B c + R r) by the run's own clock, with the medians c of its B computed and r of its R "
        "reused steps, and N steps in the reference; at most N / B."
    ]
    if any(run.computed_steps is None for run in runs):
        notes.append("~: the run does not report its steps; DiT seconds of the reference over those of the run.")
    return notes


def _lines(runs: Sequence[VideoRun], widths: Sequence[int]) -> list[str]:
    rows = [COLUMNS, *map(cells, runs)]
    padded = [[f"{cell:{side}{width}}" for cell, side, width in zip(row, _SIDES, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in padded]


def _title(section: Section) -> str:
    request = section.request
    source = "lossless copies" if section.lossless else "compressed videos"
    return (
        f"{request.prompt} (seed {request.seed}), {request.model}, {section.frames} frames of {section.width} x "
        f"{section.height}, quality of {source}"
    )
