"""The report of one request: one HTML file with its style, its script, its videos and its drawings inside.

This module turns numbers into coordinates. Markup is in report.html.in, style in base.css and report.css, the player in
player.js and report.js.
"""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lemica.errors import Refused
from lemica.report.runs import Section
from lemica.report.table import COLUMNS, cells, duration, speedup, speedup_notes
from lemica.report.templates import fill
from lemica.report.video_run import PLAYABLE, VideoRun

CELL = 0.84  # Width of a step's cell or bar; the rest is the gap to the next.
BAR_HEIGHT = 100
LEAST_BAR = 4  # So that a reused step is seen at all.
LABEL_WIDTH, LABEL_HEIGHT = 80, 15


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in the drawing's units, and what is written there."""

    at: float
    label: str


@dataclass(frozen=True)
class Point:
    """A run in a plot, and where its name is written."""

    x: float
    y: float
    label: str
    label_y: float
    on_the_left: bool


@dataclass(frozen=True)
class Plot:
    """A measure of quality against the speed-up, in a drawing of WIDTH x HEIGHT units.

    LEFT, RIGHT, TOP and BOTTOM are where the field between the axes ends.
    """

    WIDTH, HEIGHT = 400, 260
    LEFT, RIGHT, TOP, BOTTOM = 48, 388, 14, 214

    measure: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def render(section: Section) -> str:
    """The whole page as HTML.

    Args:
        section: the runs of one request.

    Example:
        >>> from lemica.report.runs import summarise
        >>> (section,) = summarise(Path("."))
        >>> render(section)[:15]
        '<!doctype html>'
    """
    functions = (video_uri, cells, speedup, speedup_notes, step_cells, step_bars, step_times, plots, step_ticks)
    named = {function.__name__: function for function in functions}
    return fill("report", section=section, columns=COLUMNS, decibel=decibel, **named)


def refuse_other_videos(written: Path, section: Section) -> None:
    """Refuse a page that does not hold its videos whole, as they are on the disk once it is written."""
    html = written.read_text(encoding="utf-8")
    for run in section.runs:
        if video_uri(run.video) not in html:
            raise Refused(f"{run.video} was changed while the page was written: type the same command again")


def video_uri(video: Path) -> str:
    """The file as a data URI."""
    return f"data:{PLAYABLE[video.suffix.lower()]};base64,{base64.b64encode(video.read_bytes()).decode()}"


def step_cells(run: VideoRun, computed: bool) -> str:
    """An SVG path with a cell for every computed, or every reused, step: one unit wide per step, one unit high."""
    return "".join(f"M{step} 0h{CELL}v1h-{CELL}z" for step in _steps(run, computed))


def step_bars(run: VideoRun, computed: bool, longest: float) -> str:
    """An SVG path with a bar for every computed, or every reused, step: BAR_HEIGHT units high for `longest` seconds."""
    heights = {step: max(LEAST_BAR, BAR_HEIGHT * run.step_seconds[step] / longest) for step in _steps(run, computed)}
    return "".join(f"M{step} {BAR_HEIGHT}h{CELL}v-{height:.1f}h-{CELL}z" for step, height in heights.items())


def step_times(run: VideoRun) -> list[str]:
    """The median times of computed and of reused steps in words, or of all steps where they are not told apart."""
    if run.computed_steps is None:
        return [f"{duration(median(run.step_seconds))} per step"]
    medians = {"computed": run.computed_step_seconds, "reused": run.reused_step_seconds}
    return [f"{duration(seconds)} {kind}" for kind, seconds in medians.items() if seconds is not None]


def _steps(run: VideoRun, computed: bool) -> list[int]:
    """The computed, or the reused, steps; where they are not known, all steps are drawn as computed."""
    known = range(run.num_steps) if run.computed_steps is None else run.computed_steps
    return [step for step in range(run.num_steps) if (step in known) == computed]


def step_ticks(num_steps: int) -> list[Tick]:
    """Every tenth step and the last, at the middle of their cells, in percent of the strip."""
    last = num_steps - 1
    shown = [step for step in range(0, last, 10) if last - step > 4] + [last]
    return [Tick(100 * (step + CELL / 2) / num_steps, str(step)) for step in shown]


def plots(section: Section) -> list[Plot]:
    """PSNR and SSIM against the speed-up, each if a cached run has a finite value."""
    runs = section.runs[1:]
    psnr = [(run.name, run.speedup, run.quality.psnr) for run in runs if math.isfinite(run.quality.psnr)]
    ssim = [(run.name, run.speedup, run.quality.ssim) for run in runs]
    return [_plot(measure, data) for measure, data in (("PSNR in dB", psnr), ("SSIM", ssim)) if data]


def _plot(measure: str, data: Sequence[tuple[str, float, float]]) -> Plot:
    speedups, values = ([point[axis] for point in data] for axis in (1, 2))
    xs = nice_ticks([1, *speedups])
    ys = nice_ticks([min(values) - (max(values) - min(values)) / 10, *values])  # Room for labels above the axis.
    across, down = _axis(xs, Plot.LEFT, Plot.RIGHT), _axis(ys, Plot.BOTTOM, Plot.TOP)
    return Plot(
        measure,
        points=_labelled([(name, across(x), down(y)) for name, x, y in data]),
        x_ticks=tuple(Tick(across(x), f"{x:g}") for x in xs),
        y_ticks=tuple(Tick(down(y), f"{y:g}") for y in ys),
    )


def _axis(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """From a value to its place, the first tick at `start` and the last at `end`."""
    return lambda value: start + (end - start) * (value - ticks[0]) / (ticks[-1] - ticks[0])


def _labelled(points: Sequence[tuple[str, float, float]]) -> tuple[Point, ...]:
    """Points with labels beside them, on the inner side, moved down where they would cover another label."""
    placed: list[Point] = []
    for name, x, y in sorted(points, key=lambda point: point[2]):
        left, label_y = x > (Plot.LEFT + Plot.RIGHT) / 2, y
        for other in placed:
            if abs(other.x - x) < LABEL_WIDTH and label_y < other.label_y + LABEL_HEIGHT:
                label_y = other.label_y + LABEL_HEIGHT
        placed.append(Point(x, y, name, label_y, left))
    return tuple(placed)


def nice_ticks(values: Sequence[float]) -> list[float]:
    """From three to seven round numbers that enclose the values, 1, 2 or 5 times a power of ten apart."""
    low, high = min(values), max(values)
    span = (high - low) or max(abs(high), 1) / 10
    power = 10 ** math.floor(math.log10(span / 2))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 5)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 2)
    return [round(index * step, 12) for index in range(first, last + 1)]


def decibel(value: float) -> str:
    """A PSNR with two decimals; an infinite one says what it means."""
    return f"{value:.2f}" if math.isfinite(value) else "∞ (equal)"
