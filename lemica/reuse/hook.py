"""One hook on any pipeline that has a denoiser and a scheduler: it sees every denoiser call, and every step's end.

A run is a sequence of steps. Within a step the pipeline calls its denoiser once or more: call number 0, 1, ... is the
call's slot (separate guidance branches have slots of their own). The step ends when ``scheduler.step`` returns.

    >>> with intercepted(pipe.transformer, pipe.scheduler, Interceptor()):
    ...     pipe("a red circle moves left")

The module's hook is a diffusers ``ModelHook``. The scheduler gets a subclass of its class for the time being, because
pipelines copy schedulers: a copy is watched like the original.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

HOOK_NAME = "lemica"


class Interceptor:
    """What becomes of the denoiser calls of one run; this one computes them all.

    `step` and `slot` say where the run is.
    """

    def __init__(self):
        self.step = 0
        self.slot = 0

    def call(self, compute: Callable[[], Any]) -> Any:
        """The output of one denoiser call; `compute()` runs the module."""
        return compute()

    def end_step(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """The scheduler has made the latents `after` of the latents `before`."""


class _DenoiserHook(ModelHook):
    def __init__(self, interceptor: Interceptor):
        super().__init__()
        self.interceptor = interceptor

    def new_forward(self, module: torch.nn.Module, *args, **kwargs):
        output = self.interceptor.call(lambda: self.fn_ref.original_forward(*args, **kwargs))
        self.interceptor.slot += 1
        return output


@contextmanager
def intercepted(denoiser: torch.nn.Module, scheduler: Any, interceptor: Interceptor) -> Iterator[None]:
    """Inside, one run of a pipeline obeys `interceptor`; afterwards denoiser and scheduler are as before.

    Args:
        denoiser: the module that the pipeline calls at every step.
        scheduler: the object, or the original of the copy, whose ``step(output, t, latents)`` ends a step.
        interceptor: a fresh one; it counts the run's steps.
    """
    had_registry, had_forward = (name in vars(denoiser) for name in ("_diffusers_hook", "forward"))
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    registry.register_hook(_DenoiserHook(interceptor), HOOK_NAME)
    try:
        with _watched(scheduler, interceptor):
            yield
    finally:
        registry.remove_hook(HOOK_NAME, recurse=False)
        if not had_registry:
            del denoiser._diffusers_hook
        if not had_forward:
            # diffusers leaves the class's method on the object, which then holds itself until gc finds it.
            del denoiser.forward


@contextmanager
def _watched(scheduler: Any, interceptor: Interceptor) -> Iterator[None]:
    original = type(scheduler)

    class Watched(original):
        # Pipelines look at the signature of `step` to see which arguments it takes.
        @functools.wraps(original.step)
        def step(self, model_output, timestep, sample, *args, **kwargs):
            result = original.step(self, model_output, timestep, sample, *args, **kwargs)
            interceptor.end_step(sample, result[0])
            interceptor.step += 1
            interceptor.slot = 0
            return result

    scheduler.__class__ = Watched
    try:
        yield
    finally:
        scheduler.__class__ = original
