"""Results of the measurements: their file, and the tables that are made of them.

A file has a list of pairs, and a line per method with its PSNR and SSIM on each of them, null where it was not run.
"""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lemica.files import write_text

# What a pair's methods gave: {"480p_t2v 0": {"50 steps, B = 25, ...": {"psnr": 41.2, "ssim": 0.99}}}.
Results = dict[str, dict[str, dict[str, float]]]
METRICS = ("psnr", "ssim")
DECIMALS = 6


def read_results(path: Path) -> Results:
    """The results of a file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    results: Results = {pair: {} for pair in document["pairs"]}
    for key, columns in document["methods"].items():
        for pair, *values in zip(results, *(columns[name] for name in METRICS), strict=True):
            if None not in values:
                results[pair][key] = dict(zip(METRICS, values, strict=True))
    return results


def write_results(results: Results, path: Path) -> None:
    """Write a file, in one move, with a line per method."""
    lines = []
    for key in methods_in(results):
        rows = [pair.get(key, {}) for pair in results.values()]
        columns = {name: [_rounded(row.get(name)) for row in rows] for name in METRICS}
        lines.append(f"{json.dumps(key)}: {json.dumps(columns, separators=(',', ':'))}")
    write_text(path, f'{{"pairs": {json.dumps(list(results))},\n"methods": {{\n' + ",\n".join(lines) + "\n}}\n")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def methods_in(results: Results) -> list[str]:
    """Every method, in the order in which they were first measured."""
    return list(dict.fromkeys(key for rows in results.values() for key in rows))


@dataclass(frozen=True)
class Row:
    """A method's PSNR over pairs: mean, standard error and worst, and the paired difference to another method."""

    key: str
    psnr: float
    error: float
    worst: float
    gain: float
    gain_error: float

    @property
    def parts(self) -> tuple[str, str, str]:
        """Number of steps, budget and method, in words."""
        steps, budget, method = self.key.split(", ", 2)
        return steps, budget, method


def rows_of(results: Results, against: str | None = None) -> Iterator[Row]:
    """A row per method, with paired differences to the method `against` at its number of steps and budget."""
    for key in methods_in(results):
        measured = [rows for rows in results.values() if key in rows]
        psnrs = [rows[key]["psnr"] for rows in measured]
        rival = against and ", ".join([*key.split(", ", 2)[:2], against])
        gains = [rows[key]["psnr"] - rows[rival]["psnr"] for rows in measured if rival in rows]
        yield Row(
            key,
            statistics.fmean(psnrs),
            _error(psnrs),
            min(psnrs),
            statistics.fmean(gains) if gains else math.nan,
            _error(gains),
        )


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def budget_table(rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table with a line per method and a column per budget, for each number of steps.

    In each cell the mean PSNR with its standard error, and the worst.
    """
    return _by_budget({row.parts: f"{row.psnr:.1f} ± {row.error:.1f} ({row.worst:.1f})" for row in rows}, "PSNR in dB")


def gain_table(rows: Sequence[Row]) -> Iterator[str]:
    """The same with paired differences and their standard errors."""
    return _by_budget({row.parts: f"{row.gain:+.1f} ± {row.gain_error:.1f}" for row in rows}, "difference in dB")


def _by_budget(cells: dict[tuple[str, str, str], str], unit: str) -> Iterator[str]:
    for steps in dict.fromkeys(steps for steps, _, _ in cells):
        budgets = sorted({budget for each, budget, _ in cells if each == steps}, key=lambda b: -int(b.split()[-1]))
        yield f"| {steps}, {unit} | {' | '.join(budgets)} |"
        yield "|---" * (len(budgets) + 1) + "|"
        for method in dict.fromkeys(method for each, _, method in cells if each == steps):
            yield f"| {method} | {' | '.join(cells.get((steps, budget, method), '') for budget in budgets)} |"
        yield ""
