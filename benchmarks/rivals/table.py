"""The tables and the picture of docs/rivals.md, from what measure.py found.

python -m benchmarks.rivals.table assets/measurements/rivals_bf16.json --picture assets/rivals.png
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from benchmarks.rivals.results import Results, read_results
from benchmarks.rivals.settings import DEFAULT, TARGETS

FLOOR = "noise floor"
COSTS = tuple(map(str, TARGETS))
# How far a cost may be from that of its column without being told.
UNTOLD = 0.005


@dataclass(frozen=True)
class Point:
    """A method at a cost, over pairs.

    Args:
        psnr, error, worst: mean in dB, its standard error, and the worst pair.
        cost: mean forwards of blocks as a share of the uncached run's.
        seconds: of the CPU, mean, as a share of the uncached run's.
        gain, gain_error: of ``best`` over this one, in dB: mean of the paired differences and its standard error.
    """

    psnr: float
    error: float
    worst: float
    cost: float
    seconds: float
    gain: float
    gain_error: float


def points(results: Results, best: str) -> dict[str, dict[str, Point]]:
    """Every method at every cost, the methods in the order of the file; `best` is what all are compared with."""
    found: dict[str, dict[str, Point]] = {}
    for key in dict.fromkeys(key for rows in results.values() for key in rows):
        cost, method = key.removeprefix("cost ").split(", ", 1)
        measured = [rows for rows in results.values() if key in rows]
        found.setdefault(method, {})[cost] = _point(measured, key, f"cost {cost}, {best}")
    return found


def _point(measured: Sequence[dict], key: str, best: str) -> Point:
    psnrs = [rows[key]["psnr"] for rows in measured]
    gains = [rows[best]["psnr"] - rows[key]["psnr"] for rows in measured if best in rows]
    whole = statistics.fmean(rows[f"cost {DEFAULT}, {FLOOR}"]["seconds"] for rows in measured)
    return Point(
        statistics.fmean(psnrs),
        _error(psnrs),
        min(psnrs),
        statistics.fmean(rows[key]["cost"] for rows in measured),
        statistics.fmean(rows[key]["seconds"] for rows in measured) / whole,
        statistics.fmean(gains) if gains else math.nan,
        _error(gains),
    )


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def quality_table(found: dict[str, dict[str, Point]]) -> Iterator[str]:
    """Mean PSNR with its standard error, and the worst; the floor first, the rest by their mean at cost 0.3."""
    yield f"| PSNR in dB at cost | {' | '.join(COSTS)} |"
    yield "|---" * (len(COSTS) + 1) + "|"
    floor = found[FLOOR][DEFAULT]
    yield _line("nothing reused, noise moved by 1e-5: the floor", [_quality(floor)] * len(COSTS))
    for method, row in sorted(found.items(), key=_rank):
        if any(cost in row for cost in COSTS):
            yield _line(method, [_at(row[cost], cost) if cost in row else "" for cost in COSTS])


def _rank(item: tuple[str, dict[str, Point]]) -> float:
    at = item[1].get("0.3")
    return -at.psnr if at else math.inf


def _at(point: Point, cost: str) -> str:
    """The quality, and the cost where it is not that of the column."""
    return _quality(point) + (f" at {point.cost:.2f}" if abs(point.cost - float(cost)) > UNTOLD else "")


def _quality(point: Point) -> str:
    return f"{point.psnr:.1f} ± {point.error:.1f} ({point.worst:.1f})"


def gain_table(found: dict[str, dict[str, Point]], best: str) -> Iterator[str]:
    """How far the best is above each method, pair by pair."""
    yield f"| dB of “{best}” over | {' | '.join(COSTS)} |"
    yield "|---" * (len(COSTS) + 1) + "|"
    for method, row in sorted(found.items(), key=_rank):
        cells = [f"{row[cost].gain:+.1f} ± {row[cost].gain_error:.1f}" if cost in row else "" for cost in COSTS]
        if method != best and any(cells):
            yield _line(method, cells)


def time_table(found: dict[str, dict[str, Point]], kept: Mapping[str, int]) -> Iterator[str]:
    """CPU seconds of the denoising loop as a share of the uncached one's, and bytes kept at cost 0.3."""
    yield f"| share of seconds at cost | {' | '.join(COSTS)} | KiB kept |"
    yield "|---" * (len(COSTS) + 2) + "|"
    for method, row in sorted(found.items(), key=_rank):
        if any(cost in row for cost in COSTS):
            memory = f"{kept[method] / 1024:.0f}" if method in kept else ""
            yield _line(method, [*(f"{row[cost].seconds:.2f}" if cost in row else "" for cost in COSTS), memory])


def default_table(found: dict[str, dict[str, Point]]) -> Iterator[str]:
    """The authors' own settings."""
    yield "| authors' defaults | cost | PSNR, dB |"
    yield "|---|---|---|"
    for method, row in found.items():
        if DEFAULT in row and method != FLOOR:
            yield _line(method, [f"{row[DEFAULT].cost:.2f}", _quality(row[DEFAULT])])


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def draw(found: dict[str, dict[str, Point]], path: Path) -> None:
    """Quality against cost: a line per method, LeMiCa's bold, the floor dashed; what is below 20 dB is cut off."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(found[FLOOR][DEFAULT].psnr, linestyle="--", color="0.5", linewidth=1)
    axes.annotate("noise floor", (0.5, found[FLOOR][DEFAULT].psnr), xytext=(0, 4), textcoords="offset points")
    markers = "osvD^<>pPX*hHd"
    # Colours of LeMiCa's lines, which are bright, and of the others.
    colours = {True: iter(colormaps["tab10"].colors), False: cycle(colormaps["tab20b"].colors)}
    for number, (method, row) in enumerate(sorted(found.items(), key=_rank)):
        line = [row[cost] for cost in COSTS if cost in row]
        if line and method != FLOOR:
            ours = method.startswith("LeMiCa")
            axes.plot(
                [point.cost for point in line],
                [point.psnr for point in line],
                color=next(colours[ours]),
                marker=markers[number % len(markers)],
                markersize=5,
                linewidth=2.2 if ours else 1,
                label=method,
                zorder=3 if ours else 2,
            )
    axes.set_xlabel("block forwards, share of the uncached run")
    axes.set_ylabel("PSNR against the uncached video, dB")
    axes.set_ylim(bottom=20)
    axes.legend(fontsize=7, loc="lower right", ncols=2)
    axes.grid(alpha=0.3)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--best", default="LeMiCa: planned, fitted", metavar="METHOD")
    parser.add_argument("--memory", type=Path, help="what memory.py found")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args(arguments)
    found = points(read_results(options.results), options.best)
    kept = json.loads(options.memory.read_text(encoding="utf-8")) if options.memory else {}
    for table in (quality_table(found), gain_table(found, options.best), time_table(found, kept), default_table(found)):
        print("\n".join(table), end="\n\n")
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
