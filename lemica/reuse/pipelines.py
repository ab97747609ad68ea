"""LeMiCa on any diffusers pipeline: enable, disable, summary.

    >>> lemica.enable(pipe, budget=20)
    >>> image = pipe("a red circle").images[0]
    >>> print(lemica.summary(pipe))
    >>> lemica.disable(pipe)

The pipeline, its denoisers and its scheduler are watched (``lemica.reuse.watch``): a call of the pipeline is the scope
of a run, so that nothing of it outlives the call, whatever happens in it.
"""

import functools
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from lemica.masks import SPACINGS, Mask, balanced_mask, read_mask
from lemica.released import mask_for_budget, recognise, released_models
from lemica.reuse.cache import StepReuse, fitting
from lemica.reuse.hook import Hook
from lemica.reuse.identity import class_name, config_of, denoisers_of, target_of
from lemica.reuse.others import refuse_other_caches
from lemica.reuse.sampler import is_euler, noise_levels
from lemica.reuse.summary import Summary, summary_of
from lemica.reuse.watch import owner_of, unwatch, watch

# The arguments of diffusers' pipelines that are called after each step.
_CALLBACKS = ("callback_on_step_end", "callback")


def enable(
    pipe: Any,
    mask: Mask | str | os.PathLike | None = None,
    *,
    budget: int | None = None,
    spacing: str | None = None,
    model: str | None = None,
    force: bool = False,
) -> "Acceleration":
    """From now on, calls of a pipeline compute the denoiser on the steps of a mask only.

    Args:
        pipe: a diffusers pipeline with a ``transformer``, ``transformer_2`` or ``unet``.
        mask: a mask, or the file of one, as from ``lemica.plan``.
        budget: instead of a mask, the number of computed steps.
        spacing: where a budget's steps lie. "released", the default: the LeMiCa authors' mask for the pipeline's model
            and number of steps where they have one, else one that is derived from theirs; outputs are held. "balanced":
            spread evenly by step number and noise level (``lemica.masks.balanced_mask``), outputs carried on halfway
            along their line (damped), and corrected with Euler's sampler.
        model: with a budget, the name of the authors' model (``lemica.released.released_models``), where the
            pipeline's is not recognised.
        force: take a mask that belongs to another model, sampler or arithmetic.

    Enabling again replaces the mask. Used in a ``with`` statement, the pipeline is as before after it.

    Raises ValueError for a mask that does not fit the pipeline, and another cache on it. What only a run shows, another
    number of steps or other noise levels, is refused as ValueError by the call of the pipeline; so is one that is made
    while another runs, as RuntimeError.

    Example:
        >>> with lemica.enable(pipe, budget=20):
        ...     image = pipe("a red circle", num_inference_steps=50).images[0]
    """
    if (mask is None) == (budget is None):
        raise ValueError('give a mask or a budget: lemica.enable(pipe, "mask.json") or lemica.enable(pipe, budget=20)')
    if mask is not None and spacing is not None:
        raise ValueError("the mask says which steps are computed: leave out spacing")
    if mask is not None and not isinstance(mask, (Mask, str, os.PathLike)):
        raise ValueError(f"a mask is a Mask or the file of one, got {mask!r:.60}: for a number of steps type budget=20")
    if budget is not None and (type(budget) is not int or budget < 2):
        raise ValueError(f"budget must be a whole number of steps, at least 2; got {budget!r:.60}")
    denoisers = denoisers_of(pipe)
    if getattr(pipe, "scheduler", None) is None:
        raise ValueError(f"{type(pipe).__name__} has no scheduler: give it one first")
    if mask is None:
        choose = _budget_chooser(pipe, budget, "released" if spacing is None else spacing, model)
    else:
        choose = _mask_chooser(pipe, mask if isinstance(mask, Mask) else read_mask(mask), force)
    refuse_other_caches(denoisers)
    disable(pipe)
    acceleration = Acceleration(pipe, denoisers, choose)
    acceleration.attach()
    return acceleration


def disable(pipe: Any) -> None:
    """The pipeline as it was before ``enable``; nothing happens to one that is not enabled.

    Example:
        >>> lemica.disable(pipe)
    """
    acceleration = owner_of(pipe)
    if acceleration is not None:
        acceleration.detach()


def summary(pipe: Any) -> Summary:
    """What the last run of an enabled pipeline did; raises ValueError where it is not enabled.

    Example:
        >>> lemica.summary(pipe).fallbacks
        ()
    """
    acceleration = owner_of(pipe)
    if acceleration is None:
        raise ValueError("LeMiCa is not enabled on this pipeline: call lemica.enable(pipe, ...) first")
    return summary_of(type(pipe).__name__, acceleration.reuse.record)


class Acceleration:
    """Step reuse on a pipeline; a context manager that ends with ``disable``."""

    def __init__(self, pipe: Any, denoisers: list, choose: Callable[[Any], Mask]):
        # Not the pipeline itself, which holds this: it shall go when its user lets it go.
        self._pipe, self.scheduler = weakref.ref(pipe), pipe.scheduler
        self.reuse = StepReuse(choose)
        self.hook = Hook(denoisers, pipe.scheduler, self.reuse)

    def attach(self) -> None:
        pipe = self._pipe()
        self.hook.attach()
        watch(pipe, {"__call__": self._on_pipeline_call}, owner=self)
        # Another pipeline may go on with these denoisers.
        self._when_gone = weakref.finalize(pipe, self.hook.detach)

    def detach(self) -> None:
        self._when_gone()
        # Another one may have taken its place.
        if (pipe := self._pipe()) is not None and owner_of(pipe) is self:
            unwatch(pipe)

    def __enter__(self) -> "Acceleration":
        return self

    def __exit__(self, *_):
        if (pipe := self._pipe()) is not None:
            disable(pipe)

    def _on_pipeline_call(self, call: Callable, args: tuple, kwargs: dict) -> Any:
        pipe = self._pipe()
        if call.args[0] is not pipe:
            # A copy of the pipeline, on which nobody has enabled anything.
            return call(*args, **kwargs)
        if pipe.scheduler is not self.scheduler or denoisers_of(pipe) != self.hook.denoisers:
            raise RuntimeError(
                "the pipeline has another scheduler or denoiser than at lemica.enable: call lemica.enable again"
            )
        refuse_other_caches(self.hook.denoisers)
        own = {name: self._outside_the_run(kwargs[name]) for name in _CALLBACKS if name in kwargs}
        with self.hook.running():
            return call(*args, **{**kwargs, **own})

    def _outside_the_run(self, callback: Any) -> Any:
        """What a callback does with the denoiser, maybe through another pipeline, is no part of the run."""
        # Diffusers' own callbacks, which the pipeline tells from others, have tensor_inputs and change settings only.
        if not callable(callback) or hasattr(callback, "tensor_inputs"):
            return callback

        @functools.wraps(callback)
        def outside(*args, **kwargs):
            with self.hook.paused():
                return callback(*args, **kwargs)

        return outside


def _budget_chooser(pipe: Any, budget: int, spacing: str, model: str | None) -> Callable[[Any], Mask]:
    """Chooses a mask of that spacing when the number of steps is known."""
    if spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}; got {spacing!r:.60}")
    if spacing == "balanced" and model is not None:
        raise ValueError("balanced steps follow from the sampler's noise levels and need no model: leave out model")
    if spacing == "balanced":
        return partial(_balanced, budget)
    if model is not None and model not in released_models():
        raise ValueError(f"the authors' models are {', '.join(released_models())}; got {model!r:.60}")
    name = model or recognised_model(pipe)
    return lambda scheduler: mask_for_budget(name, budget, len(scheduler.timesteps))


def _balanced(budget: int, scheduler: Any) -> Mask:
    """Balanced steps, damped and corrected, for a scheduler whose time steps are set."""
    levels = noise_levels(scheduler)
    steps = balanced_mask(budget, len(scheduler.timesteps), levels)
    mask = Mask(steps, "velocity", rule="damped", origin="balanced", made_by="balanced steps, without a calibration")
    return mask.with_weights(levels, is_euler(scheduler))


def recognised_model(pipe: Any) -> str | None:
    """Which of the authors' models a pipeline has; None if none that is known."""
    denoiser = denoisers_of(pipe)[0]
    own = dict(getattr(pipe, "config", {}))
    return recognise(class_name(denoiser), {**own, **config_of(denoiser)}, own.get("_name_or_path") or "")


def _mask_chooser(pipe: Any, mask: Mask, force: bool) -> Callable[[Any], Mask]:
    """Chooses this one mask, once it fits the run."""
    if not force:
        _refuse_other_target(mask, target_of(pipe))
        if mask.kept != "velocity":
            raise ValueError(
                "the mask keeps residuals of HunyuanVideo-1.5's blocks, which the kit alone can: plan one that keeps "
                "velocities, or pass force=True to keep outputs on its steps"
            )

    # Whatever has become of it since then; weakly, because the pipeline holds what is chosen with.
    own = weakref.ref(pipe)

    def choose(scheduler: Any) -> Mask:
        levels = noise_levels(scheduler)
        weighted = (
            mask if mask.weights is not None or levels is None else mask.with_weights(levels, is_euler(scheduler))
        )
        fitting(weighted, len(scheduler.timesteps))
        if not force:
            _refuse_other_target(mask, replace(target_of(own()), sigmas=levels))
        return weighted

    return choose


def _refuse_other_target(mask: Mask, run: Any) -> None:
    difference = mask.target.difference(run)
    if difference is not None:
        raise ValueError(
            f"the mask is for {difference}: plan one for this pipeline, or pass force=True to take it anyway"
        )
