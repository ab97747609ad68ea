"""The report of many requests: a grid of prompts by methods, with a video in every cell.

The page refers to its videos; the browser loads those near what it shows. Markup is in grid.html.in, style in base.css
and grid.css, the player in player.js and grid.js. Whoever imports this module needs jinja2.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from lemica.report.templates import fill


@dataclass(frozen=True)
class Cell:
    """One video: how it was made, where it is, what it costs and gives against the reference of its request.

    Args:
        method: names the column.
        video: URL relative to the page, or a data URI.
        psnr: in dB; infinite where the video equals the reference, None for the reference itself.
        ssim: None for the reference, and where it was not measured; so is `lpips`.
        seconds: that making it took.
        speedup: over the reference.
    """

    method: str
    video: str
    psnr: float | None
    ssim: float | None
    lpips: float | None
    seconds: float | None
    speedup: float | None


@dataclass(frozen=True)
class GridRequest:
    """A row: what was asked for, and the videos of it, the reference first."""

    prompt: str
    seed: int
    cells: tuple[Cell, ...]

    def cell(self, method: str) -> Cell | None:
        """The cell in the column of that name."""
        return next((cell for cell in self.cells if cell.method == method), None)


@dataclass(frozen=True)
class Mean:
    """A method over all requests that have it; what none of them has is None.

    Args:
        psnr: mean over the videos that do not equal their reference; infinite where all do.
        worst_psnr: of the worst video.
        speedup: mean over videos.
        count: how many videos there are.
    """

    psnr: float | None
    worst_psnr: float | None
    speedup: float | None
    count: int


def render_grid(title: str, requests: Sequence[GridRequest], facts: Sequence[str] = (), table: str = "") -> str:
    """The whole page as HTML.

    Args:
        title: of the page.
        requests: the rows, in the order in which they are shown at first.
        facts: what holds for all videos, such as their size.
        table: all numbers as lines of text, shown at the end.

    Example:
        >>> reference = Cell("no cache", "runs/no%20cache.mp4", None, None, None, 20.0, 1.0)
        >>> cached = Cell("b25", "runs/b25.mp4", 41.5, 0.99, None, 10.0, 2.0)
        >>> render_grid("1 prompt", [GridRequest("a red disc", 1, (reference, cached))])[:15]
        '<!doctype html>'
    """
    methods = methods_of(requests)
    means = {method: mean_of(method, requests) for method in methods}
    values = {"title": title, "requests": requests, "facts": facts, "table": table, "means": means}
    return fill("grid", **values, references=references_of(requests), decibel=decibel, number=number)


def references_of(requests: Sequence[GridRequest]) -> list[str]:
    """The names of references; one, unless requests call theirs differently."""
    return list(dict.fromkeys(request.cells[0].method for request in requests))


def methods_of(requests: Sequence[GridRequest]) -> list[str]:
    """The columns: references first, then all methods in the order of their first appearance.

    Example:
        >>> a, b, c = (Cell(name, "", None, None, None, None, None) for name in "abc")
        >>> methods_of([GridRequest("", 1, (c, b)), GridRequest("", 2, (c, a, b))])
        ['c', 'b', 'a']
    """
    others = (cell.method for request in requests for cell in request.cells)
    return list(dict.fromkeys([*references_of(requests), *others]))


def mean_of(method: str, requests: Sequence[GridRequest]) -> Mean:
    """The means of a column.

    Example:
        >>> cells = [Cell("b25", "", psnr, None, None, None, 2.0) for psnr in (30.0, 40.0, math.inf)]
        >>> mean_of("b25", [GridRequest("", seed, (cell,)) for seed, cell in enumerate(cells)])
        Mean(psnr=35.0, worst_psnr=30.0, speedup=2.0, count=3)
    """
    cells = [cell for request in requests if (cell := request.cell(method))]
    psnr = _known(cell.psnr for cell in cells)
    speedups = _known(cell.speedup for cell in cells)
    finite = list(filter(math.isfinite, psnr))
    return Mean(
        psnr=fmean(finite) if finite else max(psnr, default=None),
        worst_psnr=min(psnr, default=None),
        speedup=fmean(speedups) if speedups else None,
        count=len(cells),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def decibel(psnr: float) -> str:
    """A PSNR with two decimals; an infinite one says what it means."""
    return f"{psnr:.2f}" if math.isfinite(psnr) else "equal"


def number(psnr: float) -> str:
    """A PSNR as JavaScript reads it."""
    return f"{psnr:.4f}" if math.isfinite(psnr) else "Infinity"
