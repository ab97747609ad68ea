"""The report as a page: one HTML file with its style, its script, its videos and its drawings inside.

Written with Jinja (a requirement of torch) because prompts and file names must be escaped, which string.Template does
not do. Here numbers become coordinates; markup stands in report.html.in, style in report.css, the player in report.js.
"""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lemica.runs import COLUMNS, PLAYABLE, Run, Section

FOLDER = Path(__file__).parent
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
    """A measure of quality against the speed-up, in a drawing of WIDTH x HEIGHT units with its axes at the others."""

    WIDTH, HEIGHT = 400, 260
    LEFT, RIGHT, TOP, BOTTOM = 48, 388, 14, 214

    measure: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def render(sections: Sequence[Section], means: Sequence[Run]) -> str:
    """The whole page; `means` are runs averaged over the sections, if there are several."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"duration": duration, "decibel": decibel}
    environment.globals |= {
        "columns": COLUMNS,
        "video_uri": video_uri,
        "strip": strip,
        "bars": bars,
        "typical_seconds": typical_seconds,
        "plots": plots,
        "step_ticks": step_ticks,
    }
    files = {name: Markup((FOLDER / f"report.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return environment.get_template("report.html.in").render(sections=sections, means=means, **files)


def video_uri(video: Path) -> str:
    """The file as a data URI."""
    return f"data:{PLAYABLE[video.suffix.lower()]};base64,{base64.b64encode(video.read_bytes()).decode()}"


def strip(run: Run, computed: bool) -> str:
    """An SVG path with a cell for every computed, or every reused, step; one unit a step wide, one high."""
    return "".join(f"M{step} 0h{CELL}v1h-{CELL}z" for step in _steps(run, computed))


def bars(run: Run, computed: bool, longest: float) -> str:
    """An SVG path with a bar for every computed, or every reused, step, BAR_HEIGHT high for `longest` seconds."""
    heights = {step: max(LEAST_BAR, BAR_HEIGHT * run.step_seconds[step] / longest) for step in _steps(run, computed)}
    return "".join(f"M{step} {BAR_HEIGHT}h{CELL}v-{height:.1f}h-{CELL}z" for step, height in heights.items())


def typical_seconds(run: Run, computed: bool) -> str:
    """The median time of a computed, or a reused, step; "" if there is none."""
    seconds = [run.step_seconds[step] for step in _steps(run, computed)]
    return duration(median(seconds)) if seconds else ""


def _steps(run: Run, computed: bool) -> list[int]:
    """The computed, or the reused, steps; where they are not known, all count as computed."""
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
    """Labels beside their points, on the inner side, moved down where they would cover another."""
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


def duration(seconds: float) -> str:
    """Seconds or milliseconds with three digits."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f} {unit}"


def decibel(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "∞ (equal)"
