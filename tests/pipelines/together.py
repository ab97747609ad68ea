"""What test_together.py and its workers share: a mask, and what happens at each step of an enabled pipeline."""

from collections.abc import Callable

from diffusers import DiffusionPipeline
from tiny import TinyPipeline, run

import lemica
from lemica.masks import Mask, hold, mask_of


def held(*computed: int, num_steps: int = 6, **settings) -> Mask:
    steps = mask_of(computed, num_steps)
    return Mask(steps, kept="velocity", weights=hold(steps), **settings)


MASK = held(0, 1, 3, 5)


class Count:
    """How often things happened since it was last asked: a hook of modules."""

    def __init__(self):
        self._count = 0

    def __call__(self, *_):
        self._count += 1

    def taken(self) -> int:
        count, self._count = self._count, 0
        return count


def counted_blocks(tiny: TinyPipeline) -> Count:
    count = Count()
    for block in dict.fromkeys(tiny.blocks):
        block.register_forward_pre_hook(count)
    return count


def run_noting(tiny: TinyPipeline, *counts: Count, **changes) -> tuple:
    """The latents, and for each count a list that says of each step whether anything happened."""
    happened = [[] for _ in counts]

    def note(_pipe, _step, _time, tensors):
        for count, steps in zip(counts, happened, strict=True):
            steps.append(count.taken() > 0)
        return tensors

    latents = run(tiny, callback_on_step_end=note, **changes)
    return latents, *happened


def applied_and_enabled(pipe: DiffusionPipeline, apply: Callable, first: bool, mask: Mask = MASK) -> None:
    """`apply` is called on the pipeline, and LeMiCa enabled; `first` says whether in this order."""
    if first:
        apply(pipe)
    lemica.enable(pipe, mask)
    if not first:
        apply(pipe)
