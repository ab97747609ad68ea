"""Step reuse in a denoising loop of one's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lemica.masks import Mask
from lemica.reuse.cache import StepReuse, fitting
from lemica.reuse.hook import intercepted


@contextmanager
def reusing(
    denoisers: Sequence[torch.nn.Module], scheduler: Any, mask: Mask, timesteps_are_set: bool = False
) -> Iterator[StepReuse]:
    """Inside, one run of any loop obeys a mask.

    Args:
        denoisers: the modules that the loop calls at every step.
        scheduler: any object with ``set_timesteps(...)``, ``timesteps`` and ``step(output, timestep, sample)``; the
            loop uses all of them.
        mask: of as many steps as the scheduler has; it must have its weights.
        timesteps_are_set: whether the loop does without ``set_timesteps``, which was called before.

    Gives the reuse, whose `record` tells afterwards what was done.

        >>> with reusing([model], scheduler, mask) as reuse:
        ...     scheduler.set_timesteps(50)
        ...     for t in scheduler.timesteps:
        ...         latents = scheduler.step(model(latents, t), t, latents)[0]
        >>> reuse.record.fallbacks
        []
    """
    reuse = StepReuse(lambda scheduler: fitting(mask, len(scheduler.timesteps)))
    with intercepted(denoisers, scheduler, reuse, timesteps_are_set):
        yield reuse
    if reuse.record is None:
        raise RuntimeError(
            "no run was seen: call scheduler.set_timesteps inside, or give timesteps_are_set=True if that was before"
        )
