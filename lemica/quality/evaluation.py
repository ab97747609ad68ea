"""What an evaluation found: a row per method, as a table and as a document. Standard library only."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_HEAD = ("method", "computed steps", "PSNR, dB (worst)", "SSIM", "over fewer steps, dB", "seconds", "speed-up")


@dataclass(frozen=True)
class Measured:
    """One method on one sample.

    Args:
        psnr: in dB against the uncached result, mean over its frames; infinite where all are equal.
        ssim: against the same, mean over frames.
        seconds: of the whole call, with encoding and decoding.
        steps: steps on which the denoiser ran.
        fallbacks: denoiser calls that were computed though the mask reuses: what they needed was not kept.
    """

    psnr: float
    ssim: float
    seconds: float
    steps: int
    fallbacks: int = 0


@dataclass(frozen=True)
class Row:
    """A method over all samples.

    Args:
        method: its name.
        steps: computed steps, mean over samples.
        psnr: in dB, mean over the samples that do not equal the uncached result; infinite where all do.
        worst_psnr: of the worst sample.
        ssim: mean over samples.
        gain, gain_error: PSNR over that of sampling with as few steps, in dB: mean of the differences on each sample,
            and its standard error; None where there is nothing to compare, or one sample only.
        seconds: of a call, mean over samples.
        speedup: how much longer a call without a cache takes.
        samples: what the means are of.
    """

    method: str
    steps: float
    psnr: float
    worst_psnr: float
    ssim: float
    gain: float | None
    gain_error: float | None
    seconds: float
    speedup: float
    samples: tuple[Measured, ...]


@dataclass(frozen=True)
class Evaluation:
    """What masks cost; ``print(evaluation)`` shows the table, in Markdown.

    Args:
        rows: one per method; the first is the uncached one, which all others are measured against.
        model: what the figures are of: pipeline, digest of its config, sampler, arithmetic, device.
        software: versions by package.
        notes: what to know about single rows.
    """

    rows: tuple[Row, ...]
    model: Mapping[str, Any]
    software: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        count = len(self.rows[0].samples)
        facts = (f"{name} {value}" for name, value in self.model.items())
        versions = (f"{name} {version}" for name, version in self.software.items())
        samples = f"{count} sample{'s' * (count > 1)}"
        return "\n".join([*_table(self.rows), "", *self.notes, f"{samples}; {', '.join(facts)}", ", ".join(versions)])


def row_of(method: str, samples: Sequence[Measured], rival: Sequence[Measured], uncached: Sequence[Measured]) -> Row:
    """The row of a method.

    Args:
        method: its name.
        samples: what it gave, one per sample.
        rival: what sampling with as few steps gave on the same samples; empty where it was not measured.
        uncached: what no cache gave on them.
    """
    gains = [own.psnr - its.psnr for own, its in zip(samples, rival, strict=False)]
    finite = [gain for gain in gains if math.isfinite(gain)]
    seconds = statistics.fmean(sample.seconds for sample in samples)
    return Row(
        method,
        statistics.fmean(sample.steps for sample in samples),
        _mean_psnr([sample.psnr for sample in samples]),
        min(sample.psnr for sample in samples),
        statistics.fmean(sample.ssim for sample in samples),
        statistics.fmean(finite) if finite else None,
        statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else None,
        seconds,
        statistics.fmean(sample.seconds for sample in uncached) / seconds,
        tuple(samples),
    )


def _mean_psnr(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.inf


def document(evaluation: Evaluation) -> dict[str, Any]:
    """The same for JSON, which has no infinity: an infinite PSNR becomes None."""
    rows = [
        {**finite(asdict(row)), "samples": [finite(asdict(sample)) for sample in row.samples]}
        for row in evaluation.rows
    ]
    facts = {"model": dict(evaluation.model), "software": dict(evaluation.software), "notes": list(evaluation.notes)}
    return {"format": "lemica-evaluation/1", **facts, "rows": rows}


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with None for infinity.

    >>> finite({"psnr": math.inf, "ssim": 1.0})
    {'psnr': None, 'ssim': 1.0}
    """
    return {name: None if value == math.inf else value for name, value in values.items()}


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown with padded columns."""
    cells = [_HEAD, *(_cells(row, is_uncached=number == 0) for number, row in enumerate(rows))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, line in enumerate(cells):
        name, *figures = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        yield f"| {' | '.join([name.strip().ljust(widths[0]), *figures])} |"
        if number == 0:
            first, *others = ("-" * width for width in widths)
            yield f"| {first} | {' | '.join(f'{dashes[1:]}:' for dashes in others)} |"


def _cells(row: Row, is_uncached: bool) -> tuple[str, ...]:
    quality = ("", "") if is_uncached else (_psnr(row), f"{row.ssim:.4f}")
    gain = "" if row.gain is None else f"{row.gain:+.2f}"
    if row.gain_error is not None:
        gain += f" ± {row.gain_error:.2f}"
    return row.method, f"{row.steps:g}", *quality, gain, f"{row.seconds:.2f}", f"{row.speedup:.2f}x"


def _psnr(row: Row) -> str:
    return "equal" if row.psnr == math.inf else f"{row.psnr:.2f} ({row.worst_psnr:.2f})"
