"""The results of measure.py: their file.

A file has a list of pairs, and a line per setting with its figures on each of them, null where it was not run.
"""

import json
from pathlib import Path

from lemica.files import write_text

# PSNR in dB, SSIM, forwards of blocks as a share of the uncached run's, CPU seconds.
Figures = dict[str, float]
NAMES = ("psnr", "ssim", "cost", "seconds")
DECIMALS = 5
# By pair and setting.
Results = dict[str, dict[str, Figures]]


def read_results(path: Path) -> Results:
    """The results of a file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    results: Results = {pair: {} for pair in document["pairs"]}
    for key, columns in document["settings"].items():
        for rows, *values in zip(results.values(), *(columns[name] for name in NAMES), strict=True):
            if None not in values:
                rows[key] = dict(zip(NAMES, values, strict=True))
    return results


def write_results(results: Results, path: Path) -> None:
    """Write a file, in one move."""
    lines = []
    for key in dict.fromkeys(key for rows in results.values() for key in rows):
        columns = {name: [_rounded(rows.get(key, {}).get(name)) for rows in results.values()] for name in NAMES}
        lines.append(f"{json.dumps(key)}: {json.dumps(columns, separators=(',', ':'))}")
    write_text(path, f'{{"pairs": {json.dumps(list(results))},\n"settings": {{\n' + ",\n".join(lines) + "\n}}\n")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)
