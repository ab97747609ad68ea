"""Any diffusers pipeline, to evaluate: each result is a call of it, decoded."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from lemica.calibration.locks import Exchange
from lemica.calibration.pipelines import PipelineModel, quiet
from lemica.errors import Refused, refusing
from lemica.masks import Mask, StepMask, hold, mask_of
from lemica.quality.evaluation import Request
from lemica.quality.models import Made, Method, Tried
from lemica.quality.noise import moved
from lemica.quality.wanted import Wanted, masks_of
from lemica.reuse.cache import RunRecord, StepReuse, fitting
from lemica.reuse.hook import intercepted
from lemica.reuse.identity import denoisers_of, target_of
from lemica.reuse.others import refuse_other_caches
from lemica.reuse.pipelines import enable
from lemica.reuse.sampler import is_euler, noise_levels
from lemica.reuse.watch import owner_of, unwatch, watch

# What an evaluation says itself in every call, and what it would have to say instead.
_OWN_ARGUMENTS = {"generator": "a seed", "num_inference_steps": "num_inference_steps to the evaluation"}
# With these a call has its own steps, however many are asked for.
_OWN_STEPS = ("sigmas", "timesteps")
_NO_FLOOR = "no noise floor: the pipeline has no prepare_latents, whose result is what would be moved"

Choose = Callable[[Any], Mask]


class PipelineCalls:
    """A pipeline whose calls are what is evaluated (``lemica.quality.models.Model``).

    Args:
        pipe: the diffusers pipeline.
        num_inference_steps: as in its call.
    """

    group_size = 1

    def __init__(self, pipe: Any, num_inference_steps: int):
        self.pipe, self.num_inference_steps = pipe, num_inference_steps
        self._takes = inspect.signature(type(pipe).__call__).parameters
        if owner_of(pipe) is not None:
            raise Refused("LeMiCa is enabled on this pipeline: call lemica.disable(pipe) first")
        with refusing(ValueError):
            refuse_other_caches(denoisers_of(pipe))

    def ranks_together(self) -> AbstractContextManager[tuple[int, int, Exchange]]:
        """This rank, the number of ranks, and how they exchange values; from then on each works alone."""
        return PipelineModel(self.pipe, self.num_inference_steps).ranks_together()

    def share(self, value: Any) -> Any:
        """Its own: each rank makes samples alone."""
        return value

    def ready(self) -> AbstractContextManager:
        """Around all calls: no progress bar for each."""
        return quiet(self.pipe)

    def settings(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What decides the numbers: other ones are no part of the same evaluation."""
        return PipelineModel(self.pipe, self.num_inference_steps).settings(samples) | {
            "loaded_from": str(dict(getattr(self.pipe, "config", {})).get("_name_or_path")),
            "device": _device_name(self.pipe),
        }

    def about(self) -> dict[str, Any]:
        """What the figures are of."""
        target = target_of(self.pipe)
        return {
            "pipeline": target.model,
            "config": target.config,
            "num_inference_steps": self.num_inference_steps,
            "dtype": target.dtype,
            "device": _device_name(self.pipe),
        }

    def request(self, sample: Mapping[str, Any]) -> Request:
        """The prompt and the seed of a call."""
        return Request(str(sample.get("prompt", "")), sample.get("seed", 0))

    def refuse(self, samples: Sequence[Mapping[str, Any]], wanted: Mapping[str, Wanted], fewer_steps: bool) -> None:
        """Raises Refused for a sample that the pipeline's call would not take as an evaluation makes it."""
        for sample in samples:
            self._refuse(sample, fewer_steps)

    def _refuse(self, sample: Mapping[str, Any], fewer_steps: bool) -> None:
        for name, instead in _OWN_ARGUMENTS.items():
            if name in sample:
                raise Refused(f"a sample has {name}: leave it out, and give {instead}")
        takes_any = any(it.kind is it.VAR_KEYWORD for it in self._takes.values())
        unknown = [name for name in sample if name not in ("seed", *self._takes)]
        if unknown and not takes_any:
            raise Refused(f"the call of {type(self.pipe).__name__} takes no {unknown[0]!r:.60}: leave it out")
        own_steps = [name for name in _OWN_STEPS if sample.get(name) is not None]
        if fewer_steps and own_steps:
            raise Refused(f"a sample has {own_steps[0]}, with which there are no fewer steps: leave fewer_steps out")

    def try_out(self, sample: Mapping[str, Any], wanted: Mapping[str, Wanted]) -> Tried:
        """One call that computes the first and the last step only, and what it tells.

        Args:
            sample: what to make.
            wanted: masks and budgets by name.

        Raises Refused for masks and budgets that do not fit. What is slow in a first call is over after it.
        """
        choosers = {name: self._chooser(what) for name, what in wanted.items()}
        seen = []

        def ends(scheduler: Any) -> Mask:
            seen.append(scheduler)
            last = len(scheduler.timesteps) - 1
            return _held(mask_of((0, last), last + 1))

        with _noise_moved(self.pipe) as moves:
            _, _, record = self._run(sample, self.num_inference_steps, ends)
        masks, notes = masks_of(wanted, lambda name: choosers[name](seen[-1]))
        if not moves:
            notes.append(_NO_FLOOR)
        return Tried(record.mask.num_steps, masks, can_move_noise=bool(moves), notes=tuple(notes))

    def warm_up(self, sample: Mapping[str, Any]) -> None:
        """The call that looked for the masks was it."""

    def make(self, sample: Mapping[str, Any], method: Method) -> Made:
        """The decoded result of one call."""

        def choose(scheduler: Any) -> Mask:
            num_steps = len(scheduler.timesteps)
            return fitting(method.mask or _held((True,) * num_steps), num_steps)

        with _noise_moved(self.pipe) if method.moves_noise else nullcontext():
            frames, seconds, record = self._run(sample, method.num_inference_steps, choose)
        return Made(frames, seconds, sum(map(any, record.calls)), len(record.fallbacks))

    def _chooser(self, wanted: Wanted) -> Choose:
        """What ``lemica.enable`` takes the mask of a run from, and what becomes of it."""
        with refusing(ValueError), enable(self.pipe, **wanted.for_enable) as acceleration:
            choose = acceleration.reuse.choose

        def chosen(scheduler: Any) -> Mask:
            return wanted.carried_on(choose(scheduler), noise_levels(scheduler), is_euler(scheduler))

        return chosen

    def _run(
        self, sample: Mapping[str, Any], num_inference_steps: int, choose: Choose
    ) -> tuple[np.ndarray, float, RunRecord]:
        """Frames, seconds, and what was done."""
        call = {name: value for name, value in sample.items() if name != "seed"}
        if "output_type" in self._takes:
            call["output_type"] = "np"
        generator = torch.Generator().manual_seed(sample.get("seed", 0))
        reuse = StepReuse(choose)
        with torch.no_grad(), intercepted(denoisers_of(self.pipe), self.pipe.scheduler, reuse):
            start = time.perf_counter()
            result = self.pipe(**call, generator=generator, num_inference_steps=num_inference_steps)
            # On a GPU, what is in numpy arrays is done.
            seconds = time.perf_counter() - start
        if reuse.record is None:
            raise Refused(f"{type(self.pipe).__name__} called neither its scheduler nor its denoiser")
        return frames_of(result), seconds, reuse.record


def frames_of(result: Any) -> np.ndarray:
    """The pictures or frames in a pipeline's result, (F, H, W, 3), float32 RGB in [0, 1].

    Args:
        result: its first entry holds pictures (N, H, W, 3) or videos (N, F, H, W, 3), as arrays, or PIL images.

    Raises Refused where it holds neither.

    >>> frames_of([np.zeros((1, 5, 32, 48, 3))]).shape
    (5, 32, 48, 3)
    """
    pictures = np.asarray(result[0])
    if pictures.ndim < 4:
        raise Refused(f"the pipeline returns no pictures or videos, which are what is measured, but {pictures.shape}")
    peak = 255 if pictures.dtype == np.uint8 else 1
    return (pictures.reshape(-1, *pictures.shape[-3:]) / peak).astype(np.float32)


@contextmanager
def _noise_moved(pipe: Any) -> Iterator[list[bool]]:
    """Inside, calls begin with noise that is a little another one; gives a list with an entry for each time."""
    moves: list[bool] = []
    if not hasattr(pipe, "prepare_latents"):
        yield moves
        return

    def move(prepare: Callable, args: tuple, kwargs: dict) -> Any:
        # The latents come first, alone or before images and positions.
        (latents, *others), structure = tree_flatten(prepare(*args, **kwargs))
        if isinstance(latents, torch.Tensor) and latents.is_floating_point():
            latents = moved(latents)
            moves.append(True)
        return tree_unflatten([latents, *others], structure)

    watch(pipe, {"prepare_latents": move})
    try:
        yield moves
    finally:
        unwatch(pipe)


def _held(steps: StepMask) -> Mask:
    return Mask(steps, kept="velocity", weights=hold(steps))


def _device_name(pipe: Any) -> str:
    """The device that the pipeline computes on, also where its models wait elsewhere."""
    device = torch.device(getattr(pipe, "_execution_device", "cpu"))
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
