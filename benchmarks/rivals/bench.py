"""The bench: one transformer, one loop, one decoder for all methods, on the demo model in diffusers' own classes.

    >>> bench = Bench("bf16")
    >>> run = bench.run(bench.request(0), num_steps=50)
    >>> run.cost, bench.frames(run.latents).shape
    (1.0, (9, 64, 64, 3))

The loop is that of diffusers' pipeline, with the context that its caches are told of. Latents and guidance are in
float32, as in upstream's repository, so that the noise floor is that of the transformer and not that of the latents.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from demo.calibrations import CHECKPOINT, IMAGE_SIZE
from demo.data import Spec, prompt_of, spec_of
from demo.diffusers_model import demo_pipeline
from demo.pairs import FIRST_SEED, FRAMES, IMAGE_SIZES

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# As diffusers' guider calls them, in its order.
BRANCHES = ("pred_cond", "pred_uncond")
GUIDANCE = 6.0
REAL_BLOCKS = 54
EMBEDDINGS = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "encoder_hidden_states_2",
    "encoder_attention_mask_2",
)


@dataclass(frozen=True)
class Request:
    """A prompt and its noise.

    Args:
        noise: (1, 32, T, H, W), float32.
        condition: the channels that go beside the latents, (1, 33, T, H, W).
        embeddings: keywords of the transformer by branch.
    """

    noise: Tensor
    condition: Tensor
    embeddings: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Run:
    """What a run gave: latents (1, 32, T, H, W) in float32, the share of its blocks' work, and its CPU seconds."""

    latents: Tensor
    cost: float
    seconds: float


def shares(blocks: int) -> list[float]:
    """How much of a step each block is: the first as much as in the real model, which has 54, the others all the rest.

    Caches that let the first block decide would pay 1/8 of a step for it here.
    """
    return [1 / REAL_BLOCKS, *[(1 - 1 / REAL_BLOCKS) / (blocks - 1)] * (blocks - 1)]


class Place(NamedTuple):
    """Where a run is: what it makes, its step, and its latents."""

    request: Request
    step: int
    latents: Tensor


class Bench:
    """The demo model, text to video, in the arithmetic `dtype`: "bf16" autocast or "fp32".

    A method of reuse is put on for a run: on `transformer`, or in place of `velocity` or `guided_velocity`
    (``in_place_of``), or of the blocks (benchmarks/rivals/stack.py). `step` and `branch` say which call runs.
    """

    def __init__(self, dtype: str):
        self.dtype = DTYPES[dtype]
        self.pipe = demo_pipeline(CHECKPOINT, "t2v")
        self.transformer, self.scheduler = self.pipe.transformer, self.pipe.scheduler
        self.step, self.branch = 0, BRANCHES[0]
        self._work = 0.0
        for share, block in zip(shares(len(self.blocks)), self.blocks, strict=True):
            # A cache may skip the block and not its hooks; what it skips runs no feed-forward network.
            block.ff.register_forward_pre_hook(partial(self._count, share))

    @cached_property
    def blocks(self) -> list[torch.nn.Module]:
        """The transformer's blocks."""
        return list(self.transformer.transformer_blocks)

    def _count(self, share: float, *_: Any) -> None:
        self._work += share

    def request(self, index: int) -> Request:
        """A pair of demo/pairs.py."""
        return self._request(spec_of(index, held_out=True), IMAGE_SIZES[index % len(IMAGE_SIZES)], FIRST_SEED + index)

    def sample(self, index: int) -> Request:
        """A calibration sample, those that the demo model's error graphs were measured on (demo/calibrations.py)."""
        return self._request(spec_of(index), IMAGE_SIZE, seed=0)

    @torch.no_grad()
    def _request(self, spec: Spec, size: tuple[int, int], seed: int) -> Request:
        pipe, cpu = self.pipe, torch.device("cpu")
        prompts = (prompt_of(spec), "")
        embeddings = [
            dict(zip(EMBEDDINGS, pipe.encode_prompt(prompt=prompt, device=cpu, dtype=torch.float32), strict=True))
            for prompt in prompts
        ]
        generator = torch.Generator().manual_seed(seed)
        noise = pipe.prepare_latents(1, pipe.num_channels_latents, *size, FRAMES, torch.float32, cpu, generator)
        condition = torch.cat(pipe.prepare_cond_latents_and_mask(noise, torch.float32, cpu), dim=1)
        return Request(noise, condition, dict(zip(BRANCHES, embeddings, strict=True)))

    @torch.no_grad()
    def run(self, request: Request, num_steps: int, each_step: Callable[[], None] = lambda: None) -> Run:
        """Denoise; `each_step` is called at the end of every step."""
        self._work = 0.0
        begin = time.thread_time()
        self.scheduler.set_timesteps(sigmas=self.sigmas(num_steps))
        latents = request.noise
        for step, timestep in enumerate(self.scheduler.timesteps):
            velocity = self.guided_velocity(Place(request, step, latents))
            latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            each_step()
        seconds = time.thread_time() - begin
        return Run(latents, self._work / (len(BRANCHES) * num_steps), seconds)

    @staticmethod
    def sigmas(num_steps: int) -> np.ndarray:
        """Noise levels as the pipeline hands them to the scheduler, which shifts them."""
        return np.linspace(1.0, 0.0, num_steps + 1)[:-1]

    def guided_velocity(self, place: Place) -> Tensor:
        """What the scheduler is given, (1, 32, T, H, W)."""
        cond, uncond = (self.velocity(place, branch) for branch in BRANCHES)
        return uncond + GUIDANCE * (cond - uncond)

    def velocity(self, place: Place, branch: str) -> Tensor:
        """What the transformer returns for a branch, in float32."""
        scheduler, request = self.scheduler, place.request
        context = dict(
            step_index=place.step,
            sigma=float(scheduler.sigmas[place.step]),
            num_inference_steps=len(scheduler.timesteps),
        )
        self.step, self.branch = place.step, branch
        with self.transformer.cache_context(branch, **context), self._autocast():
            return self.transformer(
                hidden_states=torch.cat([place.latents, request.condition], dim=1),
                timestep=scheduler.timesteps[place.step].expand(1),
                image_embeds=self._no_image,
                return_dict=False,
                **request.embeddings[branch],
            )[0].float()

    @contextmanager
    def in_place_of(self, name: str, function: Callable) -> Iterator[None]:
        """Inside, the method `name` is another function."""
        setattr(self, name, function)
        try:
            yield
        finally:
            delattr(self, name)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            yield

    @cached_property
    def _no_image(self) -> Tensor:
        return torch.zeros(1, self.pipe.vision_num_semantic_tokens, self.pipe.vision_states_dim)

    @torch.no_grad()
    def frames(self, latents: Tensor) -> np.ndarray:
        """The video, (F, H, W, 3) in [0, 1]."""
        vae = self.pipe.vae
        video = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.video_processor.postprocess_video(video, output_type="np")[0]
