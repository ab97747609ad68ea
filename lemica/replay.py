"""One sample's trajectory and its replays with some steps reused: all that calibration asks of the pipeline.

Only here does calibration meet torch and hyvideo. Every step runs in the pipeline's own denoising loop.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import torch
from hyvideo.commons.infer_state import ReuseRule
from hyvideo.pipelines.hunyuan_video_pipeline import DenoiseInputs, HunyuanVideo_1_5_Pipeline, StepCache

from lemica.edges import Errors, Work
from lemica.graph import Edge


@torch.no_grad()
def prepare(
    pipe: HunyuanVideo_1_5_Pipeline,
    *,
    prompt: str,
    seed: int,
    num_steps: int,
    aspect_ratio: str,
    video_length: int,
    negative_prompt: str = "",
    image_path: str | None = None,
    flow_shift: float | None = None,
    reuse: str = "residual",
    forecast: str = "hold",
) -> DenoiseInputs:
    """What the denoising loop reads for one sample; `video_length` in frames, the model's own `flow_shift` by default.

    Replays reuse by the rule of that name.

    Raises ValueError if the sampler does not take `num_steps` steps.
    """
    settings = pipe.resolve_settings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        reference_image=image_path,
        aspect_ratio=aspect_ratio,
        video_length=video_length,
        prompt_rewrite=False,
        num_inference_steps=num_steps,
        guidance_scale=None,
        embedded_guidance_scale=None,
        flow_shift=flow_shift,
        seed=seed,
        generator=None,
        options={},
    )
    if len(settings.timesteps) != num_steps:
        raise ValueError(f"the sampler takes {len(settings.timesteps)} steps where {num_steps} were asked for")
    return replace(pipe.prepare(settings), rule=ReuseRule(reuse, forecast))


class CountingCache(StepCache):
    """A cache that may begin with kept tensors, and reports every forward through the blocks."""

    def __init__(self, transformer, rule: ReuseRule, on_forward: Callable[[], None], kept: Iterable[torch.Tensor] = ()):
        super().__init__(transformer, rule)
        self.on_forward = on_forward
        self.kept.extend(kept)

    def compute(self, inputs, keep: bool) -> torch.Tensor:
        velocity = super().compute(inputs, keep)
        self.on_forward()
        return velocity


class Recorder(CountingCache):
    """Records what every computed step leaves, in CPU memory: at 720p the 50 residuals of a run take 42 GiB."""

    def __init__(self, transformer, rule: ReuseRule, on_forward: Callable[[], None]):
        super().__init__(transformer, rule, on_forward)
        self.recorded: list[torch.Tensor] = []

    def compute(self, inputs, keep: bool) -> torch.Tensor:
        velocity = super().compute(inputs, keep=True)
        self.recorded.append(self.kept[-1].cpu())
        return velocity


class Trajectory:
    """One uncached pass over N steps, in CPU memory, and its replays with the steps of one edge reused.

    A forecast that looks at several computed steps finds those right before the edge, as if all of them were computed:
    an edge knows nothing of the path that leads to it.

    latents: N + 1 tensors (B, 32, T, H, W), before each step and after the last.
    recorded: N tensors, what the rule keeps of each step: a residual is (B or 2B with CFG, L, hidden).
    """

    def __init__(self, pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, on_forward: Callable[[], None]):
        self.pipe, self.inputs, self.on_forward = pipe, inputs, on_forward
        self.num_steps = len(inputs.timesteps)
        self.latents = [inputs.noise.cpu()]
        recorder = Recorder(pipe.transformer, inputs.rule, on_forward)
        pipe.denoise(
            inputs,
            mask=(True,) * self.num_steps,
            cache=recorder,
            on_step=lambda _, latents: self.latents.append(latents.cpu()),
        )
        self.recorded = recorder.recorded

    def local_errors(self, i: int, max_gap: int) -> list[Edge]:
        """(i, j, mean |x_j' - x_j|) of every edge i -> j, where x_j' comes of reusing until j; runs no block."""
        end = min(i + max_gap, self.num_steps - 1)
        edges = []
        self._replay(
            i,
            end,
            stop=end,
            on_step=lambda step, latents: edges.append((i, step + 1, self._error(latents, step + 1))),
        )
        return edges

    def final_error(self, i: int, j: int) -> float:
        """mean |x0' - x0| with only the steps between i and j reused: LeMiCa's edge weight; N - j forwards."""
        return self._error(self._replay(i, j), self.num_steps)

    @property
    def sigmas(self) -> list[float]:
        """The N + 1 noise levels, from 1 to 0."""
        return self.inputs.scheduler.sigmas.double().tolist()

    def velocity_products(self) -> list[list[float]]:
        """mean(v_s v_t) of all pairs of steps, of the velocities by which the sampler went: N x N, in float64."""
        widths = (after - before for before, after in pairwise(self.sigmas))
        steps = (after.double() - before.double() for before, after in pairwise(self.latents))
        flat = torch.stack([step.flatten() / width for step, width in zip(steps, widths, strict=True)])
        products = flat @ flat.T / flat.shape[1]
        return ((products + products.T) / 2).tolist()

    def _replay(self, i: int, j: int, **options) -> torch.Tensor:
        device, rule = self.pipe.execution_device, self.inputs.rule
        kept = (tensor.to(device) for tensor in self.recorded[max(0, i + 1 - rule.history) : i + 1])
        return self.pipe.denoise(
            self.inputs,
            mask=tuple(not i < step < j for step in range(self.num_steps)),
            start=i + 1,
            latents=self.latents[i + 1].to(device),
            cache=CountingCache(self.pipe.transformer, rule, self.on_forward, kept),
            **options,
        )

    def _error(self, latents: torch.Tensor, step: int) -> float:
        """Mean absolute difference from the latents before `step`, summed in float64."""
        return (latents.double() - self.latents[step].to(latents.device).double()).abs().mean().item()


def measure(
    pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, work: Work, max_gap: int, on_forward: Callable[[], None]
) -> Errors:
    """Run the trajectory of one sample and the replays of `work`; `on_forward` is called after every forward."""
    with _staying_on_device(pipe):
        trajectory = Trajectory(pipe, inputs, on_forward)
        local = [edge for start in work.starts for edge in trajectory.local_errors(start, max_gap)]
        final = [(i, j, trajectory.final_error(i, j)) for i, j in work.edges]
        return Errors(local, final, trajectory.sigmas, trajectory.velocity_products())


def recorded_bytes(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs) -> int:
    """Size of what the rule keeps of one step, in bytes."""
    net = pipe.transformer
    tokens = inputs.noise[0, 0].numel() // math.prod(net.patch_size)
    is_velocity = inputs.rule.reuse == "velocity"
    width = net.unpatchify_channels * math.prod(net.patch_size) if is_velocity else net.hidden_size
    return len(inputs.condition) * tokens * width * torch.finfo(pipe.target_dtype).bits // 8


@contextmanager
def _staying_on_device(pipe: HunyuanVideo_1_5_Pipeline) -> Iterator[None]:
    """Keep an offloaded transformer on the device between replays: moving it takes longer than most of them."""
    with pipe.on_device(pipe.transformer):
        offloading, pipe.enable_offloading = pipe.enable_offloading, False
        try:
            yield
        finally:
            pipe.enable_offloading = offloading
