"""The table of an evaluation, in Markdown. Standard library only."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lemica.quality.evaluation import Row

_HEAD = (
    *("method", "computed steps", "PSNR, dB (worst)", "SSIM", "LPIPS", "over fewer steps, dB"),
    *("DiT seconds", "DiT speed-up", "seconds", "speed-up"),
)


def markdown(rows: "Sequence[Row]") -> Iterator[str]:
    """The lines of the table, its columns padded; a column that no row has anything for is left out.

    Args:
        rows: one per method, the uncached one first, which has no quality: it is what the others are measured against.
    """
    found = [_times(rows[0]), *({**_times(row), **_quality(row)} for row in rows[1:])]
    head = [title for title in _HEAD if any(cells.get(title) for cells in found)]
    lines = [head, *([cells.get(title, "") for title in head] for cells in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        name, *figures = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        yield f"| {' | '.join([name.strip().ljust(widths[0]), *figures])} |"
        if number == 0:
            first, *others = ("-" * width for width in widths)
            yield f"| {first} | {' | '.join(f'{dashes[1:]}:' for dashes in others)} |"


def _times(row: "Row") -> dict[str, str]:
    return {
        "method": row.method,
        "computed steps": f"{row.steps:g}",
        "DiT seconds": _known(row.dit_seconds, "{:.2f}"),
        "DiT speed-up": _known(row.dit_speedup, "{:.2f}x"),
        "seconds": f"{row.seconds:.2f}",
        "speed-up": f"{row.speedup:.2f}x",
    }


def _quality(row: "Row") -> dict[str, str]:
    psnr = f"{row.psnr:.2f}{_known(row.psnr_error, ' ± {:.2f}')} ({row.worst_psnr:.2f})"
    return {
        "PSNR, dB (worst)": "equal" if row.psnr == math.inf else psnr,
        "SSIM": f"{row.ssim:.4f}",
        "LPIPS": _known(row.lpips, "{:.4f}"),
        "over fewer steps, dB": _known(row.gain, "{:+.2f}") + _known(row.gain_error, " ± {:.2f}"),
    }


def _known(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
