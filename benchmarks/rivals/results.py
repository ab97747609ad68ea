"""The results of measure.py: their file.

A file has the arithmetic, a list of pairs, and a line per setting with its knobs and its figures on each pair, null
where it was not run.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rivals.settings import Setting
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


def still_good(path: Path, settings: Sequence[Setting], dtype: str) -> Results:
    """What a file has of these settings, whose knobs may have been changed since; nothing where there is no file.

    Raises ValueError for results of another arithmetic.
    """
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["dtype"] != dtype:
        raise ValueError(f"{path} holds results in {document['dtype']}, not {dtype}: give another file")
    knobs = {key: columns["knobs"] for key, columns in document["settings"].items()}
    good = {setting.key for setting in settings if knobs.get(setting.key) == setting.knobs}
    return {pair: {key: rows[key] for key in rows if key in good} for pair, rows in read_results(path).items()}


def write_results(results: Results, settings: Sequence[Setting], dtype: str, path: Path) -> None:
    """Write a file, in one move; the settings in their order, those without a figure left out."""
    lines = []
    for setting in settings:
        rows = [pair.get(setting.key, {}) for pair in results.values()]
        if any(rows):
            columns = {name: [_rounded(row.get(name)) for row in rows] for name in NAMES}
            text = json.dumps({"knobs": setting.knobs, **columns}, separators=(",", ":"))
            lines.append(f"{json.dumps(setting.key)}: {text}")
    head = f'"dtype": {json.dumps(dtype)},\n"pairs": {json.dumps(list(results))}'
    write_text(path, f'{{{head},\n"settings": {{\n' + ",\n".join(lines) + "\n}}\n")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)
