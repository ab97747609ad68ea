"""The table of what demo/transfer.py found: settings by methods, a table per budget."""

import math
import statistics
from collections.abc import Iterator

from demo.results import Results

# What docs/quality.md calls the methods of demo/transfer.py, in its order.
NAMES = {
    "fewer steps": "fewer steps",
    "uniform, damped, velocity + damped": "uniform, damped",
    "balanced, damped, velocity + damped": "balanced, damped",
    "planned on the demo model, damped, velocity + damped": "demo model's plan, damped",
    "planned and fitted on the demo model, velocity + fitted": "demo model's plan and weights",
    "planned on the demo model, fitted here, velocity + fitted": "demo model's plan, own weights",
    "planned and fitted here, velocity + fitted": "own plan and weights",
}


def transfer_table(results: Results) -> Iterator[str]:
    """Mean PSNR in dB with its standard error, and the worst, of every setting."""
    settings: dict[str, list[dict]] = {}
    for name, rows in results.items():
        settings.setdefault(name.rsplit(" ", 1)[0], []).append(rows)
    budgets = dict.fromkeys(key.split(", ", 2)[1] for rows in results.values() for key in rows)
    for budget in budgets:
        yield f"| {budget}, PSNR in dB | {' | '.join(NAMES.values())} |"
        yield "|---" * (len(NAMES) + 1) + "|"
        for setting, pairs in settings.items():
            cells = [_cell([rows[f"50 steps, {budget}, {method}"]["psnr"] for rows in pairs]) for method in NAMES]
            yield f"| {setting} | {' | '.join(cells)} |"
        yield ""


def _cell(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.1f} ± {error:.1f} ({min(values):.1f})"
