"""Step reuse: what the denoiser returned at computed steps, summed with a mask's weights at the reused ones.

A computed call runs the denoiser and keeps what it returns. A reused call returns sum_k w_k y_k of the last outputs y_k
that its slot has kept (LeMiCa, arXiv 2511.00090, with weight 1 for the newest one) and never enters the denoiser. Where
a slot has kept the newest output only, it is held; where not even that, the call is computed: a fallback, which is
counted. A computed call may return such a sum, too, its own output among them, if all that the sum reads is there and
the sampler is Euler's.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from lemica.masks import Mask, kept_steps
from lemica.reuse.clock import Clock, working_device
from lemica.reuse.hook import Call, Interceptor, Run
from lemica.reuse.sampler import is_euler


@dataclass(frozen=True)
class Kept:
    """What a call of a run's step number `done` returned."""

    done: int
    output: Any


@dataclass
class RunRecord:
    """What one run did.

    Args:
        mask: what it was to do.
        clock: marked before the first step and after every step.
        first: the step that it began with.
        calls: of every step from there on, and in it of every denoiser call, whether it was computed.
        kept_bytes: the most memory that kept outputs took.
    """

    mask: Mask
    clock: Clock
    first: int = 0
    calls: list[list[bool]] = field(default_factory=lambda: [[]])
    kept_bytes: int = 0

    @property
    def fallbacks(self) -> list[tuple[int, int]]:
        """(step, slot) of the calls that were computed where the mask reuses."""
        steps = enumerate(self.calls, self.first)
        return [
            (step, slot)
            for step, calls in steps
            if not self.mask.steps[step]
            for slot, computed in enumerate(calls)
            if computed
        ]


class StepReuse(Interceptor):
    """Reuse on the steps that a mask says, chosen when the number of steps is known.

    Args:
        choose: from the scheduler, whose time steps are set, to the mask; raises ValueError where there is none.

    `record` tells of the last run.
    """

    def __init__(self, choose: Callable[[Any], Mask]):
        self.choose = choose
        self.record: RunRecord | None = None
        self._kept: dict[Any, deque[Kept]] = {}

    def begin_run(self, run: Run, scheduler: Any) -> None:
        mask = self.choose(scheduler)
        if not is_euler(scheduler):
            mask = mask.without_corrections()
        self._keeps, self._history = kept_steps(mask), mask.history
        self.run, self.record = run, RunRecord(mask, Clock(working_device(scheduler)))

    def call(self, call: Call) -> Any:
        if call.done == call.slot == 0:
            # Not before: between set_timesteps and here some pipelines encode a video.
            self.record.clock.mark()
        kept = self._kept.setdefault((call.slot, call.kind), deque(maxlen=self._history))
        mask = self.record.mask
        outputs, weights = ([], ()) if mask.steps[call.step] else self._read(call.step, kept)
        self.record.calls[-1].append(not outputs)
        if outputs:
            return weighted_sum(outputs, weights)
        output = call.compute()
        returned = self._corrected(call, kept, output)
        # The first call, too, and a fallback: what begins in the middle of a mask has nothing else.
        if call.done == 0 or self._keeps[call.step] or not mask.steps[call.step]:
            # A copy, because pipelines write into what their denoiser returned.
            kept.append(Kept(call.done, tree_map(copied, output)))
            self.record.kept_bytes = max(self.record.kept_bytes, self._bytes())
        return returned

    def end_step(self, run: Run, before: torch.Tensor | None, after: torch.Tensor) -> None:
        self.record.first = run.first
        self.record.clock.mark()
        if run.step == 0 and not self._keeps[0]:
            # It was kept for the case that this is a later step.
            self._kept.clear()
        self.record.calls.append([])

    def end_run(self) -> None:
        self._kept.clear()
        if not self.record.calls[-1]:
            self.record.calls.pop()

    def _read(self, step: int, kept: Sequence[Kept]) -> tuple[list[Any], Sequence[float]]:
        """Kept outputs and their weights for a reused step; none where the newest output is missing.

        Where older ones are missing, as after a beginning in the middle of the mask, the newest is held.
        """
        weights = self.record.mask.weights[step]
        read, wanted = self._last(len(weights), step, kept)
        found = [self.run.first + entry.done for entry in read]
        if not found or found[-1] < wanted[-1]:
            return [], ()
        if found == wanted and _are_alike(read):
            return [entry.output for entry in read], weights
        return [read[-1].output], (1.0,)

    def _corrected(self, call: Call, kept: Sequence[Kept], output: Any) -> Any:
        """The output of a computed step, summed with kept ones where the mask says so and all of them are there."""
        weights = self.record.mask.weights[call.step] if self.record.mask.steps[call.step] else ()
        if not weights:
            return output
        read, wanted = self._last(len(weights) - 1, call.step, kept)
        read.append(Kept(call.done, output))
        if [self.run.first + entry.done for entry in read[:-1]] != wanted or not _are_alike(read):
            return output
        return weighted_sum([entry.output for entry in read], weights)

    def _last(self, count: int, step: int, kept: Sequence[Kept]) -> tuple[list[Kept], list[int]]:
        """The last `count` kept outputs before a step, and the computed steps that they should be of."""
        return list(kept)[-count:], [each for each in self.record.mask.computed_steps if each < step][-count:]

    def _bytes(self) -> int:
        tensors = (leaf for kept in self._kept.values() for entry in kept for leaf in tree_leaves(entry.output))
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def fitting(mask: Mask, num_steps: int) -> Mask:
    """The mask, if it is for so many steps and has its weights; raises ValueError, saying what to do, where not."""
    if mask.num_steps != num_steps:
        raise ValueError(
            f"the mask is for {mask.num_steps} steps and this run has {num_steps}: run as many as the mask has, or "
            f"plan a mask for {num_steps}"
        )
    if mask.weights is None:
        raise ValueError("the mask has no weights: give it some by its with_weights, or plan it again")
    return mask


def weighted_sum(outputs: Sequence[Any], weights: Sequence[float]) -> Any:
    """sum_k w_k y_k of outputs of one structure, taken in float32 at least; a copy where the only weight is 1.

    Args:
        outputs: tensors, or tuples, lists, dicts or diffusers' outputs of tensors, all alike, oldest first.
        weights: one per output.

    What is not a floating point tensor is taken from the newest output.

        >>> weighted_sum([torch.tensor([1.0]), torch.tensor([3.0])], [-0.5, 1.5])
        tensor([4.])
    """
    return tree_map(lambda *leaves: _weighted_sum(leaves, weights), *outputs)


def _weighted_sum(leaves: Sequence[Any], weights: Sequence[float]) -> Any:
    newest = leaves[-1]
    if tuple(weights) == (1.0,) or not (isinstance(newest, torch.Tensor) and newest.is_floating_point()):
        return copied(newest)
    total = weights[0] * leaves[0].to(torch.promote_types(newest.dtype, torch.float32))
    for leaf, weight in zip(leaves[1:], weights[1:], strict=True):
        total.add_(leaf, alpha=weight)
    return total.to(newest.dtype)


def _are_alike(entries: Sequence[Kept]) -> bool:
    shapes = {tuple(leaf.shape for leaf in tree_leaves(entry.output) if _is_tensor(leaf)) for entry in entries}
    return len(shapes) == 1


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def copied(leaf: Any) -> Any:
    """A copy of a tensor; anything else as it is.

    >>> copied("cond")
    'cond'
    """
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
