"""What an evaluation found: a row per method, and the same as a document. Standard library only."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lemica.quality.table import markdown


@dataclass(frozen=True)
class Request:
    """A sample in words: what the page and the document call it."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Measured:
    """One method on one sample.

    Args:
        psnr: in dB against the uncached result, mean over its frames; infinite where all are equal.
        ssim: against the same, mean over frames.
        seconds: of the whole call, with encoding and decoding.
        steps: steps on which the denoiser ran.
        fallbacks: denoiser calls that were computed though the mask reuses: what they needed was not kept.
        lpips: against the same, mean over frames; None where it is not installed.
        dit_seconds: of the denoising loop alone; None where the model cannot tell.
        video: the file that was saved, as a path from the evaluation's folder; None where none was.
    """

    psnr: float
    ssim: float
    seconds: float
    steps: int
    fallbacks: int = 0
    lpips: float | None = None
    dit_seconds: float | None = None
    video: str | None = None


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
        psnr_error: standard error of `psnr`; None of one sample.
        lpips: mean over samples; None where one has none.
        dit_seconds, dit_speedup: as `seconds` and `speedup`, of the denoising loop; None where one sample has none.
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
    psnr_error: float | None = None
    lpips: float | None = None
    dit_seconds: float | None = None
    dit_speedup: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What masks cost; ``print(evaluation)`` shows the table, in Markdown.

    Args:
        rows: one per method; the first is the uncached one, which all others are measured against.
        model: what the figures are of: pipeline, digest of its config, sampler, arithmetic, device.
        software: versions by package.
        notes: what to know about single rows.
        requests: the samples in words, in the order of each row's.
    """

    rows: tuple[Row, ...]
    model: Mapping[str, Any]
    software: Mapping[str, str]
    notes: tuple[str, ...] = ()
    requests: tuple[Request, ...] = ()

    @property
    def table(self) -> str:
        """The rows, in Markdown."""
        return "\n".join(markdown(self.rows))

    @property
    def facts(self) -> tuple[str, ...]:
        """What stands below the table: notes, what was measured, and with which versions."""
        count = len(self.rows[0].samples)
        facts = ", ".join(f"{name} {value}" for name, value in self.model.items())
        versions = ", ".join(f"{name} {version}" for name, version in self.software.items())
        return *self.notes, f"{count} sample{'s' * (count > 1)}; {facts}", versions

    def __str__(self) -> str:
        return "\n".join([self.table, "", *self.facts])


def row_of(method: str, samples: Sequence[Measured], rival: Sequence[Measured], uncached: Sequence[Measured]) -> Row:
    """The row of a method.

    Args:
        method: its name.
        samples: what it gave, one per sample.
        rival: what sampling with as few steps gave on the same samples; empty where it was not measured.
        uncached: what no cache gave on them.
    """
    gains = _finite([own.psnr - its.psnr for own, its in zip(samples, rival, strict=False)])
    psnrs = _finite([sample.psnr for sample in samples])
    seconds = statistics.fmean(sample.seconds for sample in samples)
    dit_seconds, uncached_dit = (_mean([each.dit_seconds for each in all_of]) for all_of in (samples, uncached))
    return Row(
        method,
        statistics.fmean(sample.steps for sample in samples),
        statistics.fmean(psnrs) if psnrs else math.inf,
        min(sample.psnr for sample in samples),
        statistics.fmean(sample.ssim for sample in samples),
        statistics.fmean(gains) if gains else None,
        _standard_error(gains),
        seconds,
        statistics.fmean(sample.seconds for sample in uncached) / seconds,
        tuple(samples),
        psnr_error=_standard_error(psnrs),
        lpips=_mean([sample.lpips for sample in samples]),
        dit_seconds=dit_seconds,
        dit_speedup=None if None in (dit_seconds, uncached_dit) else uncached_dit / dit_seconds,
    )


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else statistics.fmean(values)


def _standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def document(evaluation: Evaluation) -> dict[str, Any]:
    """The same for JSON, which has no infinity: an infinite PSNR becomes None."""
    rows = [
        {**finite(asdict(row)), "samples": [finite(asdict(sample)) for sample in row.samples]}
        for row in evaluation.rows
    ]
    facts = {"model": dict(evaluation.model), "software": dict(evaluation.software), "notes": list(evaluation.notes)}
    requests = [asdict(request) for request in evaluation.requests]
    return {"format": "lemica-evaluation/1", **facts, "requests": requests, "rows": rows}


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with None for infinity.

    >>> finite({"psnr": math.inf, "ssim": 1.0})
    {'psnr': None, 'ssim': 1.0}
    """
    return {name: None if value == math.inf else value for name, value in values.items()}
