"""Denoising loops and parts of them, with the kit's cache or the released kit's; what they keep, and what that takes.

A way says how steps are reused: "uncached", what the kit keeps and the rule of its weights, or "released kit", which is
angelslim's TeaCacheHelper as the released LeMiCa kit uses it (pip install --no-deps angelslim==0.2.2).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from hyvideo.commons.infer_state import Mask, StepMask, computed_steps
from hyvideo.pipelines import hunyuan_video_pipeline
from hyvideo.pipelines.hunyuan_video_pipeline import DenoiseInputs, HunyuanVideo_1_5_Pipeline, StepCache, Stopwatch

from benchmarks.memory import peak_memory, unique_bytes
from demo.angelslim_caches import import_angelslim_caches

UNCACHED, RELEASED = "uncached", "released kit"
WAYS = (UNCACHED, "residual + hold", "residual + damped", "velocity + hold", "velocity + damped", RELEASED)

Kept = Callable[[], list[torch.Tensor | None]]


class Onlooker(Stopwatch):
    """A stopwatch that calls `note` when the loop begins and after every step."""

    def __init__(self, device: torch.device, note: Callable[[], None]):
        super().__init__(device)
        self.note = note

    def mark(self) -> None:
        super().mark()
        self.note()


def part_of(
    inputs: DenoiseInputs, way: str, steps: StepMask, start: int = 0, latents: torch.Tensor | None = None
) -> DenoiseInputs:
    """Inputs of a loop over some steps, from step `start` on, whose number is that of `steps`.

    Args:
        steps: which are computed; the first must be.
        latents: where they begin; by default with the noise of `inputs`.
    """
    # A mask must end with a computed step. One more does it: it has no time step, and is not run.
    mask = Mask((True,) * (len(steps) + 1))
    if way not in (UNCACHED, RELEASED):
        kept, rule = way.split(" + ")
        mask = Mask((*steps, True), kept=kept, rule=rule)
    return replace(
        inputs,
        noise=inputs.noise if latents is None else latents,
        timesteps=inputs.timesteps[start : start + len(steps)],
        mask=mask.with_weights(inputs.scheduler.sigmas.tolist()[start:]),
    )


@contextmanager
def caching(pipe: HunyuanVideo_1_5_Pipeline, way: str, steps: StepMask) -> Iterator[Kept]:
    """Inside, a loop over `steps` has the way's cache; yields a function that returns what is kept at the time."""
    if way == RELEASED:
        with _released_cache(pipe, steps) as kept:
            yield kept
        return
    caches: list[StepCache] = []

    def noted(*args) -> StepCache:
        caches.append(StepCache(*args))
        return caches[-1]

    with patch.object(hunyuan_video_pipeline, "StepCache", noted):
        yield lambda: [tensor for cache in caches for tensor in cache.kept]


@contextmanager
def _released_cache(pipe: HunyuanVideo_1_5_Pipeline, steps: StepMask) -> Iterator[Kept]:
    """Wrappers around every block, which are told what steps to compute; the loop itself enters the blocks always."""
    helper = import_angelslim_caches().TeaCacheHelper(
        double_blocks=pipe.transformer.double_blocks, no_cache_steps=set(computed_steps(steps))
    )

    def kept() -> list[torch.Tensor | None]:
        outputs = [tensor for output in helper.cached_output.values() for tensor in output]
        return [*outputs, helper.cached_input, helper.previous_residual]

    helper.enable()
    pipe.cache_helper = helper
    try:
        yield kept
    finally:
        pipe.cache_helper = None
        helper.disable()


@dataclass(frozen=True)
class Memory:
    """Bytes: the most that is kept from one step to the next, what is left of that after the loop, and the most alive
    at once beside weights and inputs."""

    held: int
    after: int
    peak: int


def memory_of(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, way: str, steps: StepMask) -> Memory:
    held = [0]
    with caching(pipe, way, steps) as kept, peak_memory(pipe.execution_device) as memory:
        clock = Onlooker(pipe.execution_device, lambda: held.append(unique_bytes(kept())))
        pipe.denoise(part_of(inputs, way, steps), clock)
        # The kit clears what it can reach; the helper may still hold more.
        after = unique_bytes(kept())
    return Memory(max(held), after, memory.peak)
