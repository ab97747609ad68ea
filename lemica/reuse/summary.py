"""What a run did, for people."""

from collections.abc import Sequence
from dataclasses import dataclass

from lemica.masks import Mask
from lemica.reuse.cache import RunRecord


@dataclass(frozen=True)
class Summary:
    """What the last run of a pipeline did.

    Args:
        pipeline: the name of its class.
        mask: which steps were to be computed, and where they come from; None before the first run.
        computed_seconds, reused_seconds: time of every step that was computed, and of every other, in order.
        fallbacks: (step, slot) of the denoiser calls that were computed though the mask reuses: what they needed was
            not kept.
        kept_bytes: the most memory that kept outputs took.
    """

    pipeline: str
    mask: Mask | None = None
    computed_seconds: tuple[float, ...] = ()
    reused_seconds: tuple[float, ...] = ()
    fallbacks: tuple[tuple[int, int], ...] = ()
    kept_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Of all steps, without encoding and decoding."""
        return sum(self.computed_seconds) + sum(self.reused_seconds)

    @property
    def speedup(self) -> float:
        """How much longer all steps would have taken at the mean time of a computed one; 1 before the first run."""
        count = len(self.computed_seconds)
        whole = sum(self.computed_seconds) / max(count, 1) * (count + len(self.reused_seconds))
        return whole / self.seconds if self.seconds else 1.0

    def __str__(self) -> str:
        if self.mask is None:
            return f"LeMiCa on {self.pipeline}: no run yet"
        mask, computed, reused = self.mask, len(self.computed_seconds), len(self.reused_seconds)
        lines = [
            f"LeMiCa on {self.pipeline}: budget {mask.budget} of {mask.num_steps} steps, {mask.rule}",
            f"  mask       {mask.made_by or mask.origin}",
            f"  computed   {computed} steps in {sum(self.computed_seconds):.2f} s",
            f"  reused     {reused} steps in {sum(self.reused_seconds):.2f} s: {self.speedup:.2f}x faster",
            f"  fallbacks  {_listed(self.fallbacks)}",
            f"  kept       {self.kept_bytes / 2**20:.1f} MiB at most",
        ]
        return "\n".join(lines)


def summary_of(pipeline: str, record: RunRecord | None) -> Summary:
    """The summary of a run's record; of no run, where there is no record."""
    if record is None:
        return Summary(pipeline)
    steps = list(zip(record.clock.seconds(), map(any, record.calls), strict=False))
    return Summary(
        pipeline,
        record.mask,
        computed_seconds=tuple(seconds for seconds, computed in steps if computed),
        reused_seconds=tuple(seconds for seconds, computed in steps if not computed),
        fallbacks=tuple(record.fallbacks),
        kept_bytes=record.kept_bytes,
    )


def _listed(fallbacks: Sequence[tuple[int, int]]) -> str:
    if not fallbacks:
        return "none"
    shown = ", ".join(f"step {step} call {slot}" for step, slot in fallbacks[:4]) + ", ..." * (len(fallbacks) > 4)
    return f"{len(fallbacks)} calls computed, for what they needed was not kept: {shown}"
