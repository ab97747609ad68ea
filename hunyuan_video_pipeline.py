"""HunyuanVideo-1.5 pipeline that skips the transformer blocks on the steps that a mask names, and reuses earlier steps.

Reads top to bottom as data flows: what is kept between steps (StepCache), what is measured (Stopwatch), then the
pipeline: prepare -> denoise -> decode, the parts that prepare, optimisations, loading.
A drop-in for upstream's file of the same name: same public names, signatures and behaviour.
"""

import copy
import hashlib
import inspect
import math
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from hyvideo.commons import (
    PIPELINE_CONFIGS,
    SR_PIPELINE_CONFIGS,
    TRANSFORMER_VERSION_TO_SR_VERSION,
    get_gpu_memory,
    get_rank,
    is_angelslim_available,
    parallel_states,
)
from hyvideo.commons.infer_state import (
    InferState,
    Mask,
    RunReport,
    Target,
    changed_model_name,
    config_digest,
    kept_steps,
    resolve_mask,
    transformer_version,
)
from hyvideo.commons.parallel_states import get_parallel_state
from hyvideo.models.autoencoders.hunyuanvideo_15_vae import AutoencoderKLConv3D
from hyvideo.models.text_encoders import PROMPT_TEMPLATE, TextEncoder
from hyvideo.models.text_encoders.byT5 import load_glyph_byT5_v2
from hyvideo.models.text_encoders.byT5.format_prompt import MultilingualPromptFormat
from hyvideo.models.transformers import hunyuanvideo_1_5_transformer
from hyvideo.models.transformers.hunyuanvideo_1_5_transformer import HunyuanVideo_1_5_DiffusionTransformer
from hyvideo.models.transformers.modules.upsample import SRTo720pUpsampler, SRTo1080pUpsampler
from hyvideo.models.vision_encoder import VisionEncoder
from hyvideo.schedulers.scheduling_flow_match_discrete import FlowMatchDiscreteScheduler
from hyvideo.utils.data_utils import generate_crop_size_list, get_closest_ratio, resize_and_center_crop
from loguru import logger
from PIL import Image, ImageOps
from torch import distributed as dist
from torch.utils._pytree import tree_map

from .pipeline_utils import rescale_noise_cfg, retrieve_timesteps

GIB = 1024**3
TEXT_TOKENS = 1000
BYT5_TOKENS = 256
BYT5_WIDTH = 1472
# Side in pixels of the square with a resolution's area. Upstream's four, and three for models that run on a CPU.
BUCKET_BASE_SIZES = {"64p": 64, "96p": 128, "144p": 192, "360p": 480, "480p": 640, "720p": 960, "1080p": 1440}
OFFLOAD_MOVES = "offload moves"
HUB_REPOSITORY = "tencent/HunyuanVideo-1.5"
UPSTREAM_CACHE_HELPERS = {
    "deepcache": "DeepCacheHelper",
    "teacache": "TeaCacheHelper",
    "taylorcache": "TaylorCacheHelper",
}


def default_device() -> torch.device:
    """Where models run on this machine: its GPU, else its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _CpuParallelDims(parallel_states.ParallelDims):
    """Upstream's parallel dimensions on a mesh of CPU ranks; upstream always asks for a CUDA mesh."""

    def build_mesh(self, device_type: str):
        return super().build_mesh("cpu")


def initialize_sequence_parallel(sp: int | None = None) -> None:
    """Set up upstream's parallel state, on GPU or CPU, with or without torchrun: `sp` ranks a video, by default all."""
    if default_device().type == "cpu":
        parallel_states.ParallelDims = _CpuParallelDims
        hunyuanvideo_1_5_transformer.all_gather = _gather_on_cpu
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    parallel = parallel_states.initialize_parallel_state(sp=sp or int(os.environ.get("WORLD_SIZE", "1")))
    if not parallel.sp_enabled:
        # Upstream gives ranks that work alone no group, by which its VAE would gather the tiles of all of them.
        parallel.sp_rank, parallel.sp_group = 0, parallel.sp_mesh.get_group()


def _split(tokens: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
    """The ranks' parts of `tokens`, split as upstream's transformer splits image tokens."""
    return torch.chunk(tokens, get_parallel_state().sp, dim=dim)


def _gather(tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """The ranks' parts (B, sizes[rank], C) joined along dim 1, in one collective; padded, as gloo takes equal parts."""
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, max(sizes) - tokens.shape[1])).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=get_parallel_state().sp_group)
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)


def _gather_on_cpu(tokens: torch.Tensor, dim: int, group) -> torch.Tensor:
    """What upstream's transformer does on GPUs with parts (B, L, C) of any length along `dim` 1."""
    sizes = [0] * dist.get_world_size(group)
    dist.all_gather_object(sizes, tokens.shape[dim], group=group)
    return _gather(tokens, sizes)


def _broadcast(value: Any) -> Any:
    """Rank 0's `value` on every rank of the sequence-parallel group."""
    parallel = get_parallel_state()
    if not (dist.is_initialized() and parallel.sp_enabled):
        return value
    values = [value]
    dist.broadcast_object_list(values, src=dist.get_global_rank(parallel.sp_group, 0), group=parallel.sp_group)
    return values[0]


@contextmanager
def _noting_residual(net: HunyuanVideo_1_5_DiffusionTransformer):
    """Yields a list that, after a forward inside, holds the block stack's residual, image tokens only."""
    starts: list[torch.Tensor] = []
    noted: list[torch.Tensor] = []

    def before_blocks(_module, _args, kwargs):
        starts.append(kwargs["img"])

    def after_blocks(_module, args):
        # The start is let go at once: the final layer need not find room beside it. Under autocast the blocks leave the
        # image tokens in the dtype that they came in, but the text in float32: joining both makes float32 of all.
        start = starts.pop()
        noted.append(args[0].to(start.dtype) - start)

    hooks = (
        net.double_blocks[0].register_forward_pre_hook(before_blocks, with_kwargs=True),
        net.final_layer.register_forward_pre_hook(after_blocks),
    )
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()


def _compute_residual(net: HunyuanVideo_1_5_DiffusionTransformer, inputs: dict[str, Any]):
    with _noting_residual(net) as noted:
        return net(**inputs)[0], *noted


def _compute_velocity(net: HunyuanVideo_1_5_DiffusionTransformer, inputs: dict[str, Any]):
    velocity = net(**inputs)[0]
    return velocity, velocity


def _from_residual(net: HunyuanVideo_1_5_DiffusionTransformer, inputs: dict[str, Any], residual: torch.Tensor):
    """Image embedding + residual, then the end of upstream's forward: final layer, gathering the parts, unpatchify."""
    tokens = net.img_in(inputs["hidden_states"])
    parallel = get_parallel_state()
    shard = _split(tokens, dim=1)[parallel.sp_rank] if parallel.sp_enabled else tokens
    # In this order the sum is laid out as the residual, token by token: the final layer's norm need not copy it.
    velocity = net.final_layer(residual + shard, _modulation(net, inputs))
    grid = [size // patch for size, patch in zip(inputs["hidden_states"].shape[2:], net.patch_size, strict=True)]
    if parallel.sp_enabled:
        velocity = _gather(velocity, [len(part) for part in _split(torch.arange(math.prod(grid)), dim=0)])
    return net.unpatchify(velocity, *grid)


def _modulation(net: HunyuanVideo_1_5_DiffusionTransformer, inputs: dict[str, Any]) -> torch.Tensor:
    """The vector (B, hidden) that modulates the final layer, from timestep, guidance and pooled text."""
    # Upstream's embedders make their frequencies on the default device. From the CPU they would have to be copied, and
    # that waits for all that the device has still to do.
    with inputs["timestep"].device:
        vector = net.time_in(inputs["timestep"])
        if inputs["text_states_2"] is not None:
            vector = vector + net.vector_in(inputs["text_states_2"])
        if net.guidance_embed:
            vector = vector + net.guidance_in(inputs["guidance"])
        if inputs["timestep_r"] is not None:
            vector = vector + net.time_r_in(inputs["timestep_r"])
    return vector


@dataclass(frozen=True)
class KeptKind:
    """One kind of tensor to keep.

    Args:
        compute: upstream's forward, unchanged, on its keyword arguments -> its output (B, C, T, H, W) and what to keep.
        reuse: the output (B, C, T, H, W) that follows from such a tensor with the current step's arguments.
        modules: names of the transformer's modules that `reuse` runs, those that the model has.
    """

    compute: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    reuse: Callable[..., torch.Tensor]
    modules: tuple[str, ...] = ()


# A residual is (B, L, hidden), in the dtype of the block stack, sharded like the image tokens. A velocity is whole on
# every rank, (B, C, T, H, W), so that reusing it needs no collective. B is the whole CFG batch.
KEPT_KINDS = {
    "residual": KeptKind(
        _compute_residual,
        _from_residual,
        ("img_in", "time_in", "vector_in", "guidance_in", "time_r_in", "final_layer"),
    ),
    "velocity": KeptKind(_compute_velocity, lambda _net, _inputs, velocity: velocity),
}


def weighted_sum(weights: Sequence[float], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """sum_k w_k F_k of the last kept tensors, oldest first, taken in float32; the newest alone as it is."""
    if tuple(weights) == (1.0,):
        return tensors[-1]
    last = tensors[-len(weights) :]
    total = torch.zeros_like(last[-1], dtype=torch.float32)
    for weight, tensor in zip(weights, last, strict=True):
        total.add_(tensor, alpha=weight)
    return total.to(last[-1].dtype)


class StepCache:
    """What computed steps leave for reused ones: the last few kept tensors, oldest first.

    Source of the idea of step-level reuse: LeMiCa, arXiv 2511.00090.
    """

    def __init__(self, transformer: HunyuanVideo_1_5_DiffusionTransformer, mask: Mask):
        self.transformer = transformer
        self.mask = mask
        self.kind = KEPT_KINDS[mask.kept]
        # Known before the first step: the loop need not wait for the device, and ranks cannot diverge.
        self.must_keep, self.history = kept_steps(mask), mask.history
        self.kept: list[torch.Tensor] = []

    def compute(self, step: int, inputs: dict[str, Any]) -> torch.Tensor:
        """Upstream's forward, unchanged, (B, C, T, H, W); what it leaves joins the kept tensors if it will be read.

        Where the mask gives this step weights, the forward's output pays back what the forecasts before it have missed.
        """
        weights = self.mask.weights[step]
        # Before the forward, what no later step reads is let go. Who reads an older tensor reads the newer ones, too.
        self._hold_at_most(max(self.history - 1 if self.must_keep[step] else 0, len(weights) - 1))
        velocity, tensor = self._forward(step, inputs)
        self.kept.append(tensor)
        total = weighted_sum(weights, self.kept) if weights else velocity
        self._hold_at_most(self.history if self.must_keep[step] else 0)
        return total

    def _forward(self, step: int, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity and what it leaves to keep; of a step that nobody will read, the velocity."""
        if self.must_keep[step]:
            return self.kind.compute(self.transformer, inputs)
        return _compute_velocity(self.transformer, inputs)

    def _hold_at_most(self, count: int) -> None:
        while len(self.kept) > count:
            self.kept.pop(0)

    def reuse(self, step: int, inputs: dict[str, Any]) -> torch.Tensor:
        """The transformer's output (B, C, T, H, W) by the kept tensors with their weights: no block, no text path."""
        return self.kind.reuse(self.transformer, inputs, weighted_sum(self.mask.weights[step], self.kept))

    def clear(self) -> None:
        self.kept.clear()

    def reuse_modules(self) -> list[torch.nn.Module]:
        """The modules that a reused step runs."""
        modules = (getattr(self.transformer, name) for name in self.kind.modules)
        return [module for module in modules if module is not None]


class Stopwatch:
    """Seconds by stage, and by denoising step; the device is waited for at both ends of a stage, never between.

    The time of a stage inside another is the inner one's alone, so that stages sum to the whole.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.stages: dict[str, float] = {}
        self._inner_seconds: list[float] = []
        self._marks: list[Any] = []

    @contextmanager
    def stage(self, name: str):
        # An inner stage must not pay for what the outer one has set going.
        self._wait()
        start = time.perf_counter()
        self.stages.setdefault(name, 0.0)
        self._inner_seconds.append(0.0)
        try:
            yield
        finally:
            self._wait()
            seconds = time.perf_counter() - start
            self.stages[name] += seconds - self._inner_seconds.pop()
            if self._inner_seconds:
                self._inner_seconds[-1] += seconds

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def mark(self) -> None:
        """Note the beginning of the first step, or the end of one, without waiting for the device."""
        if not self.on_gpu:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def step_seconds(self) -> list[float]:
        self._wait()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.on_gpu:
            return [start.elapsed_time(end) / 1000 for start, end in pairs]
        return [end - start for start, end in pairs]


@dataclass
class HunyuanVideoPipelineOutput(BaseOutput):
    """Videos (B, 3, F, H, W), float32 in [0, 1] on the CPU; with super-resolution also `sr_videos`, larger."""

    videos: torch.Tensor | np.ndarray
    sr_videos: torch.Tensor | np.ndarray | None = None
    report: RunReport | None = None


@dataclass(frozen=True)
class GenerationSettings:
    """What was asked for, with every default filled in: sizes in pixels and latents, sampler, seed, mask."""

    prompt: str | list[str]
    negative_prompt: str | list[str] | None
    image: Image.Image | None
    height: int
    width: int
    latent_size: tuple[int, int, int]
    guidance: float | None
    scheduler: FlowMatchDiscreteScheduler
    timesteps: torch.Tensor
    mask: Mask
    seed: int
    generator: torch.Generator | list[torch.Generator]

    @property
    def task(self) -> str:
        return "t2v" if self.image is None else "i2v"

    @property
    def batch_size(self) -> int:
        return len(self.prompt) if isinstance(self.prompt, list) else 1


@dataclass(frozen=True)
class DenoiseInputs:
    """All that the denoising loop reads.

    noise (B, 32, T, H, W) and condition (B or 2B with CFG, 33, T, H, W) are concatenated on the channels at every
    step; transformer_kwargs go to the transformer unchanged at every step, step_kwargs to the scheduler. The mask, with
    its weights, says which steps are computed and what the others are made of.
    """

    noise: torch.Tensor
    condition: torch.Tensor
    timesteps: torch.Tensor
    scheduler: FlowMatchDiscreteScheduler
    mask: Mask
    transformer_kwargs: dict[str, Any]
    step_kwargs: dict[str, Any]

    def __post_init__(self):
        if self.mask.weights is None or self.mask.num_steps < len(self.timesteps):
            raise ValueError(
                f"the mask must have weights (with_weights) for the {len(self.timesteps)} steps of the sampler"
            )


class HunyuanVideo_1_5_Pipeline(DiffusionPipeline):
    """Text- and image-to-video generation with HunyuanVideo-1.5; see ``__call__``."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->byt5_model->transformer->vae"
    _optional_components = ["text_encoder_2"]  # noqa: RUF012, read by diffusers

    ideal_resolution = property(attrgetter("transformer.config.ideal_resolution"))
    ideal_task = property(attrgetter("transformer.config.ideal_task"))
    use_meanflow = property(attrgetter("transformer.config.use_meanflow"))
    guidance_scale = property(attrgetter("_guidance_scale"))
    guidance_rescale = property(attrgetter("_guidance_rescale"))
    clip_skip = property(attrgetter("_clip_skip"))
    num_timesteps = property(attrgetter("_num_timesteps"))
    vae_spatial_compression_ratio = property(attrgetter("vae.config.ffactor_spatial"))
    vae_temporal_compression_ratio = property(attrgetter("vae.config.ffactor_temporal"))

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale is not None and self._guidance_scale > 1

    def __init__(
        self,
        vae: AutoencoderKLConv3D,
        text_encoder: TextEncoder,
        transformer: HunyuanVideo_1_5_DiffusionTransformer,
        scheduler: FlowMatchDiscreteScheduler,
        text_encoder_2: TextEncoder | None = None,
        flow_shift: float = 7.0,
        guidance_scale: float = 6.0,
        num_inference_steps: int = 50,
        embedded_guidance_scale: float | None = None,
        progress_bar_config: dict[str, Any] | None = None,
        vision_num_semantic_tokens: int = 729,
        vision_states_dim: int = 1152,
        glyph_byT5_v2: bool = True,
        byt5_model: torch.nn.Module | None = None,
        byt5_tokenizer=None,
        byt5_max_length: int = BYT5_TOKENS,
        prompt_format: MultilingualPromptFormat | None = None,
        execution_device: str | torch.device | None = None,
        vision_encoder: VisionEncoder | None = None,
        enable_offloading: bool = False,
    ):
        super().__init__()
        settings = dict(glyph_byT5_v2=glyph_byT5_v2, byt5_max_length=byt5_max_length, flow_shift=flow_shift)
        vision = dict(vision_num_semantic_tokens=vision_num_semantic_tokens, vision_states_dim=vision_states_dim)
        guidance = dict(guidance_scale=guidance_scale, embedded_guidance_scale=embedded_guidance_scale)
        self.register_to_config(num_inference_steps=num_inference_steps, **settings, **vision, **guidance)
        self._progress_bar_config = {"disable": get_rank() != 0} | (progress_bar_config or {})

        self.byt5_model = self.byt5_tokenizer = self.vision_encoder = None
        modules = dict(vae=vae, text_encoder=text_encoder, text_encoder_2=text_encoder_2, transformer=transformer)
        if glyph_byT5_v2:
            modules |= dict(byt5_model=byt5_model, byt5_tokenizer=byt5_tokenizer)
        if vision_encoder is not None:
            modules |= dict(vision_encoder=vision_encoder)
        self.register_modules(scheduler=scheduler, **modules)

        self.text_len = text_encoder.max_length
        self.byt5_max_length = byt5_max_length
        self.prompt_format = prompt_format
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.target_size_config = {
            resolution: dict(bucket_hw_base_size=base_size, bucket_hw_bucket_stride=16)
            for resolution, base_size in BUCKET_BASE_SIZES.items()
        }
        self._set_up_device(execution_device)
        self.enable_offloading = enable_offloading
        self.infer_state: InferState | None = None
        self.cache_helper = None
        # What apply_infer_optimization has done to the transformer.
        self._own_attn_mode = transformer.attn_mode
        self._quantised: tuple[str, list[str]] | None = None
        self._compiled = False
        self._blocks_per_group: int | None = None
        self._offloading: dict[str, bool] = {}
        # Models that on_device holds, and texts that were encoded ahead.
        self._placed: set[int] = set()
        self._encoded: dict[tuple[str, str | None, bool], dict[str, Any]] = {}
        self.model_name: str | None = None
        self.model_config: str | None = None

    def _set_up_device(self, execution_device: str | torch.device | None) -> None:
        """Upstream's dtypes and autocast on a GPU; float32 without autocast on a CPU, where numbers are exact."""
        self.execution_device = torch.device(execution_device or default_device())
        on_gpu = self.execution_device.type == "cuda"
        self.target_dtype = self.dtype_on(self.execution_device)
        self.vae_dtype = torch.float16 if on_gpu else torch.float32
        self.autocast_enabled, self.vae_autocast_enabled = self.target_dtype == torch.bfloat16, on_gpu
        self.noise_init_device = torch.device("cpu")

    @staticmethod
    def dtype_on(device: torch.device) -> torch.dtype:
        """The dtype in which the transformer runs on a device: bfloat16 (autocast) on a GPU, float32 on a CPU."""
        return torch.bfloat16 if device.type == "cuda" else torch.float32

    def target(self, scheduler: FlowMatchDiscreteScheduler) -> Target:
        """What a mask must belong to for a run with this scheduler, once its time steps are set."""
        return Target(
            model=self.model_name,
            config=self.model_config,
            sigmas=tuple(scheduler.sigmas.double().tolist()),
            dtype=str(self.target_dtype).removeprefix("torch."),
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        aspect_ratio: str,
        video_length: int,
        prompt_rewrite: bool = True,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        enable_sr: bool = True,
        sr_num_inference_steps: int | None = None,
        negative_prompt: str | list[str] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | None = None,
        flow_shift: float | None = None,
        embedded_guidance_scale: float | None = None,
        reference_image: Image.Image | str | None = None,
        output_type: str | None = "pt",
        return_dict: bool = True,
        return_pre_sr_video: bool = False,
        enable_vae_tile_parallelism: bool = True,
        **kwargs,
    ):
        """Generate one video per prompt.

        Arguments are upstream's. `aspect_ratio` is "W:H", for text-to-video; with `reference_image` (a PIL image or a
        path) the size follows the image. `video_length` is in frames, 4n + 1. `output_type` "latent" returns latents
        (B, 32, T, H, W). Of other keywords `guidance_rescale` and `clip_skip` are understood.

        Returns a HunyuanVideoPipelineOutput, or with `return_dict=False` the videos (and SR videos).
        Raises ValueError if task, size, step mask or image do not fit the loaded model.
        """
        if enable_sr and not hasattr(self, "sr_pipeline"):
            raise ValueError("no super-resolution model is loaded: pass create_sr_pipeline=True or enable_sr=False")
        clock = Stopwatch(self.execution_device)
        with clock.stage("settings"):
            settings = self.resolve_settings(
                prompt, negative_prompt, reference_image, aspect_ratio, video_length, prompt_rewrite,
                num_inference_steps, guidance_scale, embedded_guidance_scale, flow_shift, seed, generator, kwargs,
            )  # fmt: skip
            inputs = self.prepare(settings, clock)
        with clock.stage("denoising"):
            latents = self.denoise(inputs, clock)

        sr_videos = None
        if enable_sr:
            with clock.stage("super-resolution"):
                sr_videos = self._super_resolve(
                    latents, settings, video_length, sr_num_inference_steps, output_type, enable_vae_tile_parallelism
                )
        videos = latents if output_type == "latent" else sr_videos
        if output_type != "latent" and (return_pre_sr_video or not enable_sr):
            with clock.stage("VAE decoding"):
                videos = self.decode(latents, settings.generator, enable_vae_tile_parallelism, clock)
        self.maybe_free_model_hooks()

        if not return_dict:
            return (videos, sr_videos) if enable_sr else videos
        return HunyuanVideoPipelineOutput(videos, sr_videos, self._report(settings, clock))

    def _report(self, settings: GenerationSettings, clock: Stopwatch) -> RunReport:
        mask = settings.mask
        return RunReport(
            seed=settings.seed,
            prompt=settings.prompt,
            request=self._request(settings),
            num_steps=mask.num_steps,
            computed_steps=list(mask.computed_steps),
            mask_origin=mask.origin,
            reuse=None if all(mask.steps) else mask.kept,
            forecast=None if all(mask.steps) else mask.rule,
            step_seconds=clock.step_seconds(),
            stage_seconds=dict(clock.stages),
        )

    def _request(self, settings: GenerationSettings) -> dict[str, Any]:
        """All that decided the picture but the number of steps and which of them were computed."""
        target, image = self.target(settings.scheduler), settings.image
        return dict(
            prompt=settings.prompt,
            negative_prompt=settings.negative_prompt,
            seed=settings.seed,
            model=target.model,
            config=target.config,
            dtype=target.dtype,
            width=settings.width,
            height=settings.height,
            frames=(settings.latent_size[0] - 1) * self.vae_temporal_compression_ratio + 1,
            guidance_scale=self.guidance_scale,
            embedded_guidance_scale=settings.guidance,
            flow_shift=settings.scheduler.config.shift,
            image=None if image is None else hashlib.sha256(np.asarray(image).tobytes()).hexdigest(),
        )

    def prepare(self, settings: GenerationSettings, clock: Stopwatch | None = None) -> DenoiseInputs:
        """Encode text and image and draw the noise: everything that the denoising loop reads."""
        clock = clock or Stopwatch(self.execution_device)
        with clock.stage("text encoding"):
            text_kwargs = self._encode_text(settings, clock)
        noise = self.prepare_latents(
            settings.batch_size,
            self.transformer.config.in_channels,
            *settings.latent_size[1:],
            settings.latent_size[0],
            self.target_dtype,
            self.execution_device,
            settings.generator,
        )
        with clock.stage("image encoding"):
            condition, vision_states = self._encode_image(settings, noise, clock)

        copies = 2 if self.do_classifier_free_guidance else 1
        guidance = None
        if settings.guidance is not None:
            scales = torch.full((copies * len(noise),), settings.guidance, device=self.execution_device)
            guidance = scales.to(self.target_dtype) * 1000.0
        return DenoiseInputs(
            noise=noise,
            condition=condition.repeat(copies, 1, 1, 1, 1),
            timesteps=settings.timesteps,
            scheduler=settings.scheduler,
            mask=settings.mask,
            transformer_kwargs=dict(
                **text_kwargs,
                **self.rotary_tables(settings.latent_size),
                vision_states=vision_states,
                mask_type=settings.task,
                guidance=guidance,
                return_dict=False,
            ),
            step_kwargs=self.prepare_extra_func_kwargs(
                settings.scheduler.step, {"generator": settings.generator, "eta": 0.0}
            ),
        )

    def rotary_tables(self, latent_size: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        """Cosines and sines of the positions of all image tokens, two of (L, channels a head), float32.

        Upstream's transformer makes the same ones for itself, but on the CPU, and then every block of every step copies
        both to the device: 114 MB per block at 720p, divided by the sequence-parallel degree.
        """
        grid = tuple(size // patch for size, patch in zip(latent_size, self.transformer.patch_size, strict=True))
        cosines, sines = self.transformer.get_rotary_pos_embed(grid)
        return dict(freqs_cos=cosines.to(self.execution_device), freqs_sin=sines.to(self.execution_device))

    @torch.no_grad()
    def denoise(self, inputs: DenoiseInputs, clock: Stopwatch | None = None) -> torch.Tensor:
        """Run the sampler from noise to clean latents (B, 32, T, H, W), float32."""
        clock = clock or Stopwatch(self.execution_device)
        mask, latents = inputs.mask, inputs.noise
        cache = StepCache(self.transformer, mask)
        # A copy, because the scheduler counts its steps: every pass counts anew.
        scheduler = copy.copy(inputs.scheduler)
        self._num_timesteps = len(inputs.timesteps)
        if not all(mask.steps):
            self._exempt_from_group_offload(cache.reuse_modules())

        with (
            self.progress_bar(total=mask.num_steps) as bar,
            self.on_device(self.transformer, clock),
            self._clearing(cache),
        ):
            clock.mark()
            for step, t in enumerate(inputs.timesteps):
                arguments = self._transformer_inputs(step, latents, inputs)
                transformer = cache.compute if mask.steps[step] else cache.reuse
                with self._autocast(self.target_dtype, self.autocast_enabled):
                    velocity = transformer(step, arguments)
                velocity = self._guide(velocity)
                latents = scheduler.step(velocity, t, latents, **inputs.step_kwargs, return_dict=False)[0]
                clock.mark()
                self._show_progress(bar, mask.steps[: step + 1])
        return latents

    @staticmethod
    def _show_progress(bar, done: tuple[bool, ...]) -> None:
        bar.set_postfix(computed=sum(done), reused=len(done) - sum(done), refresh=False)
        bar.update()

    def decode(
        self, latents: torch.Tensor, generator=None, tile_parallelism: bool = True, clock: Stopwatch | None = None
    ) -> torch.Tensor:
        """Frames (B, 3, F, H, W), float32 in [0, 1] on the CPU, of latents (B, 32, T, H, W).

        With tile parallelism only rank 0 has the frames, the other ranks get an empty tensor.
        """
        if latents.ndim not in (4, 5):
            raise ValueError(f"latents must be (B, C, H, W) or (B, C, T, H, W), got {tuple(latents.shape)}")
        latents = latents.unsqueeze(2) if latents.ndim == 4 else latents
        latents = latents / self.vae.config.scaling_factor
        if getattr(self.vae.config, "shift_factor", None):
            latents = latents + self.vae.config.shift_factor
        if tile_parallelism and hasattr(self.vae, "enable_tile_parallelism"):
            self.vae.enable_tile_parallelism()
        with (
            self._autocast(self.vae_dtype, self.vae_autocast_enabled),
            self.on_device(self.vae, clock),
            self._sliced_and_tiled_vae(),
        ):
            frames = self.vae.decode(latents, return_dict=False, generator=generator)[0]
        return (frames / 2 + 0.5).clamp(0, 1).cpu().float()

    def _transformer_inputs(self, i: int, latents: torch.Tensor, inputs: DenoiseInputs) -> dict[str, Any]:
        """The transformer's keyword arguments at step `i`: the CFG batch is [negative, positive]."""
        if self.cache_helper is not None:
            self.cache_helper.cur_timestep = i
        t = inputs.timesteps[i]
        copies = len(inputs.condition) // len(latents)
        hidden_states = torch.cat([latents.repeat(copies, 1, 1, 1, 1), inputs.condition], dim=1)
        timestep_r = None
        if self.use_meanflow:
            next_t = inputs.timesteps[i + 1] if i + 1 < len(inputs.timesteps) else torch.zeros_like(t)
            timestep_r = next_t.repeat(len(hidden_states))
        return dict(
            inputs.transformer_kwargs,
            hidden_states=inputs.scheduler.scale_model_input(hidden_states, t),
            timestep=t.repeat(len(hidden_states)),
            timestep_r=timestep_r,
        )

    def _guide(self, velocity: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance (arXiv 2207.12598), with optional rescaling (arXiv 2305.08891)."""
        if not self.do_classifier_free_guidance:
            return velocity
        negative, positive = velocity.chunk(2)
        guided = negative + self.guidance_scale * (positive - negative)
        if self.guidance_rescale > 0.0:
            guided = rescale_noise_cfg(guided, positive, guidance_rescale=self.guidance_rescale)
        return guided

    def _super_resolve(
        self, latents, settings, video_length, num_inference_steps, output_type, tile_parallelism
    ) -> torch.Tensor:
        devices = [torch.cuda.current_device()] if self.execution_device.type == "cuda" else []
        # Upstream's SR pipeline draws noise from the global generator, so the seed alone would not fix its output.
        with torch.random.fork_rng(devices=devices), self._tidy_after_errors():
            torch.manual_seed(settings.seed)
            return self.sr_pipeline(
                prompt=settings.prompt,
                num_inference_steps=num_inference_steps,
                video_length=video_length,
                negative_prompt="",
                num_videos_per_prompt=1,
                seed=settings.seed,
                output_type=output_type,
                lq_latents=latents,
                reference_image=settings.image,
                enable_vae_tile_parallelism=tile_parallelism,
            ).videos

    @contextmanager
    def _tidy_after_errors(self):
        """Undo what upstream's SR pipeline leaves where it fails: its models on the device, and the VAE tiled."""
        tiling = self.vae.use_slicing, self.vae.use_spatial_tiling
        try:
            yield
        except Exception:
            self.vae.use_slicing, self.vae.use_spatial_tiling = tiling
            for model in (self.sr_pipeline.transformer, self.sr_pipeline.upsampler) if self.enable_offloading else ():
                model.to("cpu")
            raise

    def resolve_settings(
        self, prompt, negative_prompt, reference_image, aspect_ratio, video_length, prompt_rewrite,
        num_inference_steps, guidance_scale, embedded_guidance_scale, flow_shift, seed, generator, options,
    ) -> GenerationSettings:  # fmt: skip
        """Fill in every default and check what does not fit the model, before anything is encoded."""
        config = self.config
        self._guidance_scale = config.guidance_scale if guidance_scale is None else guidance_scale
        self._guidance_rescale = options.get("guidance_rescale", 0.0)
        self._clip_skip = options.get("clip_skip", None)
        guidance = config.embedded_guidance_scale if embedded_guidance_scale is None else embedded_guidance_scale
        self._check_embedded_guidance(guidance)

        image = None if reference_image is None else as_rgb(reference_image)
        task = "t2v" if image is None else "i2v"
        if self.ideal_task is not None and self.ideal_task != task:
            raise ValueError(f"this model does {self.ideal_task}: {'leave out' if image else 'pass'} reference_image")
        height, width = self._video_size(image, aspect_ratio)
        latent_size = self.get_latent_size(video_length, height, width)

        self.scheduler = self._create_scheduler(config.flow_shift if flow_shift is None else flow_shift)
        timesteps, _ = retrieve_timesteps(
            self.scheduler,
            config.num_inference_steps if num_inference_steps is None else num_inference_steps,
            self.execution_device,
            **self.prepare_extra_func_kwargs(self.scheduler.set_timesteps, {"n_tokens": int(np.prod(latent_size))}),
        )
        mask = resolve_mask(self.infer_state, self.target(self.scheduler))
        seed = _broadcast(random.randint(100000, 999999) if seed in (None, -1) else seed)
        settings = GenerationSettings(
            prompt=self._rewrite(prompt, image, task) if prompt_rewrite else prompt,
            negative_prompt=negative_prompt,
            image=image,
            height=height,
            width=width,
            latent_size=latent_size,
            guidance=guidance,
            scheduler=self.scheduler,
            timesteps=timesteps,
            mask=mask,
            seed=seed,
            generator=generator or torch.Generator(device=self.noise_init_device).manual_seed(seed),
        )
        self._log_settings(settings, video_length)
        return settings

    def _check_embedded_guidance(self, guidance: float | None) -> None:
        embeds = self.transformer.config.guidance_embed
        if guidance is None and embeds:
            raise ValueError("this model embeds its guidance: pass embedded_guidance_scale")
        if guidance is not None and (not embeds or self.do_classifier_free_guidance):
            raise ValueError("embedded_guidance_scale needs a model that embeds guidance, and guidance_scale 1")

    def _video_size(self, image: Image.Image | None, aspect_ratio: str) -> tuple[int, int]:
        """Height and width in pixels: the bucket closest to the image's shape, else to `aspect_ratio`."""
        if image is not None:
            return self.get_closest_resolution_given_reference_image(image, self.ideal_resolution)
        if self.ideal_resolution is None:
            raise ValueError("the model's config has no ideal_resolution: a video size cannot be chosen")
        match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", aspect_ratio)
        if match is None:
            raise ValueError(f"aspect_ratio must be two whole numbers like 16:9, got {aspect_ratio!r}")
        size = (int(match[1]), int(match[2]))
        return self.get_closest_resolution_given_original_size(size, self.ideal_resolution)

    @staticmethod
    def _rewrite(prompt, image: Image.Image | None, task: str):
        """The prompt as the rewriting service puts it, the same on every rank; a failure keeps the user's."""
        if not dist.is_initialized() or get_parallel_state().sp_rank == 0:
            try:
                from hyvideo.utils.rewrite.rewrite_utils import run_prompt_rewrite

                prompt = run_prompt_rewrite(prompt, image, task)
            except Exception as error:
                logger.warning(f"Failed to rewrite the prompt, using it as it is: {error}")
        return _broadcast(prompt)

    def _log_settings(self, settings: GenerationSettings, video_length: int) -> None:
        if get_rank() != 0:
            return
        mask = settings.mask
        logger.info(
            f"{settings.task} {settings.width}x{settings.height}, {video_length} frames, seed {settings.seed}, "
            f"guidance {self.guidance_scale}, shift {settings.scheduler.config.shift}, "
            f"attention {self.transformer.attn_mode}, {self.transformer.dtype}, prompt: {settings.prompt}"
        )
        reused = "" if all(mask.steps) else f", the others reuse: {mask.method}"
        logger.info(f"{mask.budget} of {mask.num_steps} steps computed ({mask.origin} mask){reused}")

    @torch.no_grad()
    def encode_ahead(self, texts: Sequence[tuple[str, str | None]]) -> None:
        """Encode (prompt, negative prompt) of calls to come, so that each encoder is moved once for all of them.

        The results wait on the CPU, 14 MB for each pair at the real model's size, for calls with the model's own
        guidance and without `clip_skip`.

        >>> pipe.encode_ahead([("a red circle", ""), ("a blue square", "")])
        """
        self._guidance_scale, self._clip_skip = self.config.guidance_scale, None
        clock, texts = Stopwatch(self.execution_device), list(dict.fromkeys(texts))
        with self.on_device(self.text_encoder, clock):
            states = [_moved(self._encode_prompts(*text, clock), "cpu") for text in texts]
        has_glyphs = any(self._extract_glyph_texts(prompt) for prompt, _ in texts)
        with self.on_device(self.byt5_model if has_glyphs else None, clock):
            glyphs = [_moved(self._encode_glyphs(prompt, clock), "cpu") for prompt, _ in texts]
        for text, encoded, glyph in zip(texts, states, glyphs, strict=True):
            self._encoded[self._text_key(*text)] = encoded | glyph

    def _text_key(self, prompt: str, negative_prompt: str | None) -> tuple[str, str | None, bool]:
        guided = self.do_classifier_free_guidance
        return prompt, negative_prompt if guided else None, guided

    def _encode_text(self, settings: GenerationSettings, clock: Stopwatch) -> dict[str, Any]:
        """The transformer's text arguments; with CFG the batch is [negative, positive]."""
        prompt, negative = settings.prompt, settings.negative_prompt
        if isinstance(prompt, str) and self.clip_skip is None and self._text_key(prompt, negative) in self._encoded:
            return _moved(self._encoded[self._text_key(prompt, negative)], self.execution_device)
        return self._encode_prompts(prompt, negative, clock) | self._encode_glyphs(prompt, clock)

    def _encode_prompts(
        self, prompt: str | list[str], negative_prompt: str | list[str] | None, clock: Stopwatch
    ) -> dict[str, Any]:
        embeds, mask = self._encode_with(self.text_encoder, prompt, negative_prompt, clock)
        embeds_2 = None
        if self.text_encoder_2 is not None:
            embeds_2, _ = self._encode_with(self.text_encoder_2, prompt, negative_prompt, clock)
        return dict(text_states=embeds, text_states_2=embeds_2, encoder_attention_mask=mask)

    def _encode_glyphs(self, prompt: str | list[str], clock: Stopwatch) -> dict[str, Any]:
        texts = [prompt] if isinstance(prompt, str) else prompt
        # The glyph encoder reads nothing but quoted texts: without any it need not be moved.
        has_glyphs = any(self._extract_glyph_texts(text) for text in texts)
        with self.on_device(self.byt5_model if has_glyphs else None, clock):
            return dict(extra_kwargs=self._prepare_byt5_embeddings(prompt, self.execution_device))

    def _encode_with(self, text_encoder: TextEncoder, prompt, negative_prompt, clock: Stopwatch):
        with self.on_device(text_encoder, clock):
            embeds, negative_embeds, mask, negative_mask = self.encode_prompt(
                prompt,
                self.execution_device,
                1,
                self.do_classifier_free_guidance,
                negative_prompt,
                clip_skip=self.clip_skip,
                text_encoder=text_encoder,
                data_type="video",
            )
        if not self.do_classifier_free_guidance:
            return embeds, mask
        return torch.cat([negative_embeds, embeds]), None if mask is None else torch.cat([negative_mask, mask])

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device,
        num_videos_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        clip_skip: int | None = None,
        text_encoder: TextEncoder | None = None,
        data_type: str | None = "image",
    ):
        """Hidden states of prompt and negative prompt, and their attention masks.

        Returns (embeds, negative_embeds, mask, negative_mask): embeds (B, tokens, width) in the encoder's dtype,
        masks (B, tokens) int64, negatives as given when `do_classifier_free_guidance` is false.
        Raises TypeError or ValueError if the negative prompt does not match the prompt in type or number.
        """
        encoder = text_encoder or self.text_encoder
        count = num_videos_per_prompt
        if prompt_embeds is None:
            prompt_embeds, attention_mask = self._hidden_states(encoder, prompt, device, data_type, clip_skip)
            attention_mask = _repeat_rows(attention_mask, count, device)
        if do_classifier_free_guidance:
            if negative_prompt_embeds is None:
                texts = _negative_texts(prompt, negative_prompt, len(prompt_embeds))
                negative_prompt_embeds, negative_attention_mask = self._hidden_states(encoder, texts, None, data_type)
                negative_attention_mask = _repeat_rows(negative_attention_mask, count, device)
            negative_prompt_embeds = _repeat_rows(negative_prompt_embeds.to(encoder.dtype), count, device)
        prompt_embeds = _repeat_rows(prompt_embeds.to(encoder.dtype), count, device)
        return prompt_embeds, negative_prompt_embeds, attention_mask, negative_attention_mask

    def _hidden_states(self, encoder: TextEncoder, texts, device, data_type: str, clip_skip: int | None = None):
        for text in [texts] if isinstance(texts, str) else texts:
            _warn_if_cut("the prompt", encoder.tokenizer, text, self.text_len)
        tokens = encoder.text2tokens(texts, data_type=data_type, max_length=self.text_len)
        if clip_skip is None:
            output = encoder.encode(tokens, data_type=data_type, device=device)
            return output.hidden_state, output.attention_mask
        output = encoder.encode(tokens, output_hidden_states=True, data_type=data_type, device=device)
        # Intermediate layers lack the encoder's final normalisation.
        hidden_states = encoder.model.final_layer_norm(output.hidden_states_list[-(clip_skip + 1)])
        return hidden_states, output.attention_mask

    def _extract_glyph_texts(self, prompt: str) -> list[str]:
        """The texts in straight or curly double quotes, which the video is to show, without repeats."""
        quoted = re.findall(r'"(.*?)"|“(.*?)”', prompt)
        return list(dict.fromkeys(straight or curly for straight, curly in quoted))

    def _process_single_byt5_prompt(self, prompt_text: str, device: torch.device):
        """Glyph embeddings (1, tokens, 1472) and mask (1, tokens) int64; zeros for a prompt without quotes."""
        glyph_texts = self._extract_glyph_texts(prompt_text)
        if not glyph_texts:
            embeddings = torch.zeros((1, self.byt5_max_length, BYT5_WIDTH), device=device)
            return embeddings, torch.zeros((1, self.byt5_max_length), device=device, dtype=torch.int64)
        plain = [{"color": None, "font-family": None} for _ in glyph_texts]
        text = self.prompt_format.format_prompt(glyph_texts, plain)
        _warn_if_cut("the quoted text", self.byt5_tokenizer, text, self.byt5_max_length)
        length = dict(padding="max_length", max_length=self.byt5_max_length, truncation=True)
        tokens = self.byt5_tokenizer(text, return_tensors="pt", **length).to(device)
        return self.byt5_model(tokens.input_ids, attention_mask=tokens.attention_mask.float())[0], tokens.attention_mask

    def _prepare_byt5_embeddings(self, prompts: str | list[str], device: torch.device) -> dict[str, torch.Tensor]:
        """The transformer's glyph arguments, [negative, positive] with CFG; empty if the model has no glyph path."""
        if not self.config.glyph_byT5_v2:
            return {}
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if self.do_classifier_free_guidance:
            texts = [""] * len(texts) + texts
        embeddings, masks = zip(*(self._process_single_byt5_prompt(text, device) for text in texts), strict=True)
        return {"byt5_text_states": torch.cat(embeddings), "byt5_text_mask": torch.cat(masks)}

    def _encode_image(self, settings: GenerationSettings, noise: torch.Tensor, clock: Stopwatch):
        """Condition latents (B, 33, T, H, W) and vision states; models are moved only if there is an image."""
        task_mask = self.get_task_mask(settings.task, settings.latent_size[0])
        size = (settings.height, settings.width)
        with self.on_device(self.vae if settings.image else None, clock):
            image_latents = self.get_image_condition_latents(settings.task, settings.image, *size)
        condition = self._prepare_cond_latents(settings.task, image_latents, noise, task_mask)
        with self.on_device(self.vision_encoder if settings.image else None, clock):
            vision_states = self._prepare_vision_states(
                None if settings.image is None else np.array(settings.image),
                self.ideal_resolution,
                noise,
                self.execution_device,
            )
        return condition, vision_states

    def _prepare_vision_states(self, reference_image, target_resolution: str, latents, device):
        """Vision states (B or 2B with CFG, tokens, width): zeros without an image, None without an encoder."""
        copies = 2 if self.do_classifier_free_guidance else 1
        if reference_image is None:
            tokens, width = self.config.vision_num_semantic_tokens, self.config.vision_states_dim
            return torch.zeros(copies * len(latents), tokens, width, device=latents.device)
        if self.vision_encoder is None:
            return None
        image = np.asarray(reference_image)
        image = image[0] if image.ndim == 4 else image
        height, width = self.get_closest_resolution_given_reference_image(image, target_resolution)
        cropped = resize_and_center_crop(image, target_width=width, target_height=height)
        states = self.vision_encoder.encode_images(cropped).last_hidden_state
        return states.to(device=device, dtype=self.target_dtype).repeat(copies, 1, 1)

    def _prepare_cond_latents(self, task_type: str, cond_latents, latents, multitask_mask) -> torch.Tensor:
        """Image latents on the frames that they condition, zeros elsewhere, and a mask channel: (B, 33, T, H, W)."""
        conditioning = torch.zeros(latents.shape, device=latents.device)
        if task_type == "i2v" and cond_latents is not None:
            conditioning[:, :, :1] = cond_latents
        mask = (multitask_mask != 0).to(device=latents.device, dtype=conditioning.dtype)
        mask = mask.view(1, 1, -1, 1, 1).expand(len(latents), 1, *latents.shape[2:])
        return torch.cat([conditioning, mask], dim=1)

    def get_task_mask(self, task_type: str, latent_target_length: int) -> torch.Tensor:
        """One float per latent frame: 1 where the frame is given by the reference image."""
        if task_type not in ("t2v", "i2v"):
            raise ValueError(f"task must be t2v or i2v, got {task_type!r}")
        mask = torch.zeros(latent_target_length)
        mask[:1] = float(task_type == "i2v")
        return mask

    def get_image_condition_latents(self, task_type: str, reference_image: Image.Image | None, height, width):
        """Scaled VAE latents (1, 32, 1, H, W) of the image resized and cropped to the video's size; None for t2v."""
        if task_type not in ("t2v", "i2v"):
            raise ValueError(f"task must be t2v or i2v, got {task_type!r}")
        if task_type == "t2v":
            return None
        cropped = resize_and_center_crop(np.array(reference_image), target_width=width, target_height=height)
        pixels = _to_pixels(cropped).to(self.execution_device)
        with self._autocast(torch.float16, self.vae_autocast_enabled):
            latents = self.vae.encode(pixels[None, :, None]).latent_dist.mode()
        return latents * self.vae.config.scaling_factor

    def get_closest_resolution_given_reference_image(self, reference_image, target_resolution: str):
        """(height, width) of the bucket closest in shape to a PIL image or an array (H, W, 3)."""
        is_array = isinstance(reference_image, np.ndarray)
        size = reference_image.shape[1::-1] if is_array else reference_image.size
        return self.get_closest_resolution_given_original_size(size, target_resolution)

    def get_closest_resolution_given_original_size(self, origin_size: tuple[int, int], target_size: str):
        """(height, width) in pixels of the bucket of resolution `target_size` closest to (width, height)."""
        bucket = self.target_size_config[target_size]
        sizes = generate_crop_size_list(bucket["bucket_hw_base_size"], bucket["bucket_hw_bucket_stride"])
        ratios = np.array([round(height / width, 5) for height, width in sizes])
        (height, width), _ = get_closest_ratio(origin_size[1], origin_size[0], ratios, sizes)
        return height, width

    def get_latent_size(self, video_length: int, height: int, width: int) -> tuple[int, int, int]:
        """(frames, height, width) of the latents of a video of `video_length` frames of height x width pixels."""
        spatial, temporal = self.vae_spatial_compression_ratio, self.vae_temporal_compression_ratio
        frames = (video_length - 1) // temporal + 1
        size = (frames, height // spatial, width // spatial)
        if min(size) < 1:
            raise ValueError(f"a video of {video_length} frames of {height} x {width} pixels is too small to encode")
        return size

    @classmethod
    def _create_scheduler(cls, flow_shift: float) -> FlowMatchDiscreteScheduler:
        return FlowMatchDiscreteScheduler(shift=flow_shift, reverse=True, solver="euler")

    def prepare_extra_func_kwargs(self, func, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Those of `kwargs` that `func` accepts: schedulers differ in their signatures."""
        accepted = inspect.signature(func).parameters
        return {name: value for name, value in kwargs.items() if name in accepted}

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        latent_height: int,
        latent_width: int,
        video_length: int,
        dtype: torch.dtype,
        device: torch.device,
        generator,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Initial noise (B, C, T, H, W), drawn on the CPU so that a seed means the same on every machine."""
        if latents is None:
            shape = (batch_size, num_channels_latents, video_length, latent_height, latent_width)
            # Takes one generator, or one for each video of the batch.
            latents = randn_tensor(shape, generator=generator, device=self.noise_init_device, dtype=dtype)
        return latents.to(device) * getattr(self.scheduler, "init_noise_sigma", 1)

    def apply_infer_optimization(
        self,
        infer_state: InferState | None = None,
        enable_offloading: bool = False,
        enable_group_offloading: bool = False,
        overlap_group_offloading: bool = True,
    ) -> None:
        """Prepare the loaded models for a run: quantisation, compilation, attention, block cache, offloading.

        In that order, so that each sees the final modules; offloading comes last and wraps all of them. LeMiCa needs
        nothing here but the state: a reused step does not enter the blocks, so it streams none of their weights.
        Called again, it gives what its arguments say. Raises ValueError for an unknown cache type and where something
        cannot be taken back (quantisation, group offloading), RuntimeError if a cache type's library is missing.
        """
        state = infer_state or InferState()
        # None until all is as the state says: after an error it is not taken for done.
        self.infer_state = None
        self._offloading = dict(
            enable_offloading=enable_offloading,
            enable_group_offloading=enable_group_offloading,
            overlap_group_offloading=overlap_group_offloading,
        )
        self._quantise((state.quant_type, state.include_patterns) if state.use_fp8_gemm else None)
        self._compile_blocks(state.enable_torch_compile)
        attn_mode = "sageattn" if state.enable_sageattn else self._own_attn_mode
        if self.transformer.attn_mode != attn_mode:
            self.transformer.set_attn_mode(attn_mode)
        self._set_block_cache(state)
        if enable_group_offloading and not enable_offloading:
            raise ValueError("group offloading needs offloading: pass enable_offloading=True")
        self.enable_offloading = enable_offloading
        self._offload_by_groups((1 if overlap_group_offloading else 4) if enable_group_offloading else None)
        self.infer_state = state

    def change_infer_state(self, infer_state: InferState) -> None:
        """Another state for the calls to come, with offloading as it is; errors are those of apply_infer_optimization.

        >>> pipe.change_infer_state(InferState(enable_cache=True, cache_type="lemica", lemica_step=20))
        """
        if infer_state != self.infer_state:
            self.apply_infer_optimization(infer_state, **self._offloading)

    def _quantise(self, wanted: tuple[str, list[str]] | None) -> None:
        if self._quantised == wanted:
            return
        if self._quantised:
            raise ValueError("the transformer's weights are quantised already: load the pipeline anew")
        from angelslim.compressor.diffusion import DynamicDiTQuantizer

        quant_type, patterns = wanted
        # PEFT casts its input to the dtype of LoRA weights, which fp8 inputs are not made for.
        patterns = dict(include_patterns=patterns, exclude_patterns=["embed", "lora_"])
        DynamicDiTQuantizer(quant_type=quant_type, **patterns).convert_linear(self.transformer)
        self._quantised = wanted

    def _compile_blocks(self, wanted: bool) -> None:
        if self._compiled == wanted:
            return
        if self._blocks_per_group:
            raise ValueError("the blocks are streamed already, as they are: load the pipeline anew")
        for block in self.transformer.double_blocks:
            if wanted:
                block.forward = torch.compile(block.forward)
            else:
                del block.forward
        self._compiled = wanted

    def _offload_by_groups(self, blocks_per_group: int | None) -> None:
        if self._blocks_per_group == blocks_per_group:
            return
        if self._blocks_per_group:
            raise ValueError("the blocks are streamed already, otherwise: load the pipeline anew")
        self.transformer.enable_group_offload(
            onload_device=self.execution_device,
            num_blocks_per_group=blocks_per_group,
            use_stream=blocks_per_group == 1,
        )
        self._blocks_per_group = blocks_per_group

    def _set_block_cache(self, state: InferState) -> None:
        """Install one of upstream's own caches, which angelslim implements; LeMiCa needs none."""
        if self.cache_helper is not None:
            self.cache_helper.disable()
            self.cache_helper = None
        if not state.enable_cache or state.uses_lemica:
            return
        if state.cache_type not in UPSTREAM_CACHE_HELPERS:
            known = ", ".join(["lemica", *UPSTREAM_CACHE_HELPERS])
            raise ValueError(f"unknown cache type {state.cache_type!r}: choose one of {known}")
        if not is_angelslim_available():
            raise RuntimeError(f"cache type {state.cache_type} needs angelslim: pip install angelslim==0.2.2")
        from angelslim.compressor import diffusion

        start, end = state.cache_start_step, state.cache_end_step
        computed = {*range(start), *range(start, end, state.cache_step_interval), *range(end, state.total_steps)}
        options = {"no_cache_steps": sorted(computed)}
        if state.cache_type == "deepcache":
            options["no_cache_block_id"] = {"double_blocks": state.no_cache_block_id}
        helper = getattr(diffusion, UPSTREAM_CACHE_HELPERS[state.cache_type])
        self.cache_helper = helper(double_blocks=self.transformer.double_blocks, **options)
        self.cache_helper.enable()

    def _exempt_from_group_offload(self, modules: list[torch.nn.Module]) -> None:
        """Keep `modules` on the execution device for good, so that a reused step moves no weights (27 MB in bf16)."""
        registry = getattr(self.transformer, "_diffusers_hook", None)
        hook = registry.get_hook("group_offloading") if isinstance(registry, HookRegistry) else None
        if hook is None:
            return
        hook.group.modules = [module for module in hook.group.modules if module not in modules]
        for module in modules:
            module.to(self.execution_device)

    @contextmanager
    def on_device(self, model: torch.nn.Module | None, clock: Stopwatch | None = None):
        """With offloading, `model` is on the execution device inside and on the CPU after, also after an error.

        Its weights do not change there: those on the CPU are kept and put back, nothing is copied from the device but
        buffers. Both moves are a stage of their own on `clock`, in whatever stage they happen. Within another block of
        the same model nothing moves.
        """
        stays = id(model) in self._placed
        if model is None or stays or not self.enable_offloading or _is_group_offload_enabled(model):
            yield
            return
        clock = clock or Stopwatch(self.execution_device)
        at_home = [(weight, weight.data) for weight in model.parameters()]
        self._placed.add(id(model))
        try:
            with clock.stage(OFFLOAD_MOVES):
                model.to(self.execution_device)
            yield
        finally:
            self._placed.discard(id(model))
            with clock.stage(OFFLOAD_MOVES):
                for weight, data in at_home:
                    weight.data = data
                model.to("cpu")

    @contextmanager
    def _clearing(self, cache: StepCache):
        """Leave nothing behind, neither in our cache nor in upstream's, however the block ends."""
        if self.cache_helper is not None:
            self.cache_helper.clear_states()
        try:
            yield
        finally:
            cache.clear()
            if self.cache_helper is not None:
                self.cache_helper.clear_states()

    @contextmanager
    def _sliced_and_tiled_vae(self):
        vae = self.vae
        before = vae.use_slicing, vae.use_spatial_tiling
        vae.enable_slicing()
        vae.enable_tiling()
        try:
            yield
        finally:
            vae.use_slicing, vae.use_spatial_tiling = before

    def _autocast(self, dtype: torch.dtype, enabled: bool):
        return torch.autocast(self.execution_device.type, dtype=dtype, enabled=enabled)

    get_transformer_version = staticmethod(transformer_version)

    @staticmethod
    def get_offloading_config(memory_limitation: float | None = None) -> dict[str, bool]:
        """Offloading that suits a GPU of `memory_limitation` bytes (default: this machine's); none without a GPU."""
        if memory_limitation is None:
            memory_limitation = get_gpu_memory()
        has_gpu = memory_limitation > 0
        small = memory_limitation < 60 * GIB
        return {"enable_offloading": has_gpu, "enable_group_offloading": has_gpu and small}

    @staticmethod
    def get_vae_inference_config(memory_limitation: float | None = None) -> dict[str, Any]:
        """VAE tile size in pixels, tile overlap and dtype that suit a GPU of `memory_limitation` bytes."""
        if memory_limitation is None:
            memory_limitation = get_gpu_memory()
        sample_size, overlap = (256, 0.125) if memory_limitation > 21 * GIB else (128, 0.25)
        return {"sample_size": sample_size, "tile_overlap_factor": overlap, "dtype": torch.float16}

    @classmethod
    def load(
        cls,
        model_path: str,
        transformer_version: str,
        infer_state: InferState | None = None,
        *,
        with_sr: bool = False,
        dtype: torch.dtype = torch.bfloat16,
        checkpoint_path: str | None = None,
        lora_path: str | None = None,
        offloading: bool = True,
        group_offloading: bool | None = None,
        overlap_group_offloading: bool = True,
    ) -> "HunyuanVideo_1_5_Pipeline":
        """The pipeline with all its weights, then with the optimisations, which must see the final weights.

        Args:
            model_path: folder of a checkpoint in upstream's layout, or a Hub repository owner/name.
            transformer_version: name of the model, as ``get_transformer_version`` gives it.
            infer_state: switches of the runs to come.
            with_sr: whether to load the super-resolution model, too.
            dtype: of the transformer's weights on a GPU.
            checkpoint_path: folder of a distributed checkpoint, as train.py saves it, for the transformer.
            lora_path: folder of a LoRA adapter for the transformer.
            offloading: keep models on the CPU while they are not used; there is nothing to offload without a GPU.
            group_offloading: stream the transformer block by block; None: where the GPU is small.
            overlap_group_offloading: overlap streaming with computing.
        """
        offloading = offloading and default_device().type == "cuda"
        if group_offloading is None:
            group_offloading = offloading and cls.get_offloading_config()["enable_group_offloading"]
        home = torch.device("cpu") if offloading else default_device()
        pipeline = cls.create_pipeline(
            model_path,
            transformer_version,
            create_sr_pipeline=with_sr,
            transformer_dtype=dtype,
            device=home,
            transformer_init_device=torch.device("cpu") if group_offloading else home,
        )
        pipeline.change_transformer(checkpoint_path, lora_path)
        offload = dict(
            enable_offloading=offloading,
            enable_group_offloading=group_offloading,
            overlap_group_offloading=overlap_group_offloading,
        )
        state = infer_state or InferState()
        pipeline.apply_infer_optimization(infer_state=state, **offload)
        if with_sr:
            # The SR model takes few steps: there is nothing to reuse.
            pipeline.sr_pipeline.apply_infer_optimization(replace(state, enable_cache=False), **offload)
        return pipeline

    def change_transformer(self, checkpoint_path: str | None = None, lora_path: str | None = None) -> None:
        """Load a distributed checkpoint and a LoRA adapter into the transformer, each if there is one."""
        if checkpoint_path:
            from torch.distributed import checkpoint
            from torch.distributed.checkpoint.state_dict import get_model_state_dict

            checkpoint.load({"model": get_model_state_dict(self.transformer)}, checkpoint_id=checkpoint_path)
        if lora_path:
            self.transformer.load_lora_adapter(lora_path, prefix=None, adapter_name="default", use_safetensors=True)
        self.model_name = changed_model_name(self.model_name, checkpoint_path, lora_path)

    @classmethod
    def create_pipeline(
        cls,
        pretrained_model_name_or_path: str,
        transformer_version: str,
        create_sr_pipeline: bool = False,
        transformer_dtype: torch.dtype = torch.bfloat16,
        device: torch.device | None = None,
        transformer_init_device: torch.device | None = None,
        **kwargs,
    ) -> "HunyuanVideo_1_5_Pipeline":
        """Load a checkpoint in upstream's layout; models are placed on `device`, run where the machine computes.

        On a machine without a GPU every model is loaded in float32. The VAE's dtype and tiles follow from the GPU's
        memory (``get_vae_inference_config``) unless keywords `vae_dtype`, `vae_sample_size` or
        `vae_tile_overlap_factor` say otherwise; other keywords go to the download of a Hub repository.
        """
        folder = cls._local_folder(pretrained_model_name_or_path, **kwargs)
        execution_device = default_device()
        on_gpu = execution_device.type == "cuda"
        device = device or execution_device
        transformer_dtype = transformer_dtype if on_gpu else torch.float32
        transformer = cls._load_transformer(folder, transformer_version, transformer_dtype)
        vae_config = cls.get_vae_inference_config()
        vae_dtype = kwargs.get("vae_dtype", vae_config["dtype"]) if on_gpu else torch.float32
        vae = AutoencoderKLConv3D.from_pretrained(os.path.join(folder, "vae"), torch_dtype=vae_dtype).to(device)
        vae.set_tile_sample_min_size(
            kwargs.get("vae_sample_size") or vae_config["sample_size"],
            kwargs.get("vae_tile_overlap_factor") or vae_config["tile_overlap_factor"],
        )
        text_encoder, text_encoder_2 = cls._load_text_encoders(folder, device)
        byt5, prompt_format = cls._load_byt5(folder, True, BYT5_TOKENS, device)
        vision_encoder = cls._load_vision_encoder(folder, device)
        pipeline = cls(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            transformer=transformer.to(transformer_init_device or device),
            scheduler=FlowMatchDiscreteScheduler.from_pretrained(os.path.join(folder, "scheduler")),
            **byt5,
            prompt_format=prompt_format,
            execution_device=execution_device,
            vision_encoder=vision_encoder,
            **_vision_sizes(vision_encoder),
            **PIPELINE_CONFIGS[transformer_version],
        )
        pipeline.model_name = transformer_version
        pipeline.model_config = config_digest(os.path.join(folder, "transformer", transformer_version))
        if create_sr_pipeline:
            sr_version = TRANSFORMER_VERSION_TO_SR_VERSION[transformer_version]
            pipeline.sr_pipeline = pipeline.create_sr_pipeline(folder, sr_version, transformer_dtype, device)
        return pipeline

    def create_sr_pipeline(self, cached_folder, sr_version, transformer_dtype=torch.bfloat16, device=None):
        """Upstream's super-resolution pipeline, sharing every model but transformer and upsampler with this one."""
        from .hunyuan_video_sr_pipeline import HunyuanVideo_1_5_SR_Pipeline

        transformer, upsampler = self.load_sr_transformer_upsampler(
            cached_folder, sr_version, transformer_dtype=transformer_dtype, device=device
        )
        parts = ("vae", "text_encoder", "text_encoder_2", "vision_encoder", "byt5_model", "byt5_tokenizer")
        others = ("scheduler", "byt5_max_length", "prompt_format", "execution_device", "enable_offloading")
        settings = ("glyph_byT5_v2", "vision_num_semantic_tokens", "vision_states_dim")
        return HunyuanVideo_1_5_SR_Pipeline(
            transformer=transformer,
            upsampler=upsampler,
            **{name: getattr(self, name) for name in (*parts, *others)},
            **{name: self.config[name] for name in settings},
            **SR_PIPELINE_CONFIGS[sr_version],
        )

    @classmethod
    def load_sr_transformer_upsampler(cls, cached_folder, sr_version, transformer_dtype=torch.bfloat16, device=None):
        """The transformer and the latent upsampler of an SR version."""
        transformer = cls._load_transformer(cached_folder, sr_version, transformer_dtype)
        upsampler_class = SRTo720pUpsampler if "720p" in sr_version else SRTo1080pUpsampler
        upsampler = upsampler_class.from_pretrained(os.path.join(cached_folder, "upsampler", sr_version))
        return transformer.to(device), upsampler.to(device)

    @classmethod
    def _local_folder(cls, name_or_path: str, **kwargs) -> str:
        if os.path.isdir(name_or_path):
            return name_or_path
        if name_or_path.count("/") > 1:
            raise ValueError(f"{name_or_path} is neither a folder nor the name of a Hub repository (owner/name)")
        return cls.download(name_or_path, **kwargs)

    @staticmethod
    def _load_transformer(folder: str, version: str, dtype: torch.dtype) -> HunyuanVideo_1_5_DiffusionTransformer:
        source = {"pretrained_model_name_or_path": os.path.join(folder, "transformer", version)}
        if not os.path.isdir(source["pretrained_model_name_or_path"]):
            logger.warning(f"{folder} has no transformer/{version}: trying {HUB_REPOSITORY} on the Hub")
            source = {"pretrained_model_name_or_path": HUB_REPOSITORY, "subfolder": f"transformer/{version}"}
        return HunyuanVideo_1_5_DiffusionTransformer.from_pretrained(
            **source, torch_dtype=dtype, low_cpu_mem_usage=True
        )

    @classmethod
    def _load_text_encoders(cls, pretrained_model_path: str, device: torch.device):
        """The language model that encodes prompts, and None for the second encoder that this model lacks."""
        path = _existing(os.path.join(pretrained_model_path, "text_encoder", "llm"))
        encoder = TextEncoder(
            text_encoder_type="llm",
            tokenizer_type="llm",
            text_encoder_path=path,
            max_length=TEXT_TOKENS,
            text_encoder_precision="fp16" if default_device().type == "cuda" else "fp32",
            prompt_template=PROMPT_TEMPLATE["li-dit-encode-image-json"],
            prompt_template_video=PROMPT_TEMPLATE["li-dit-encode-video-json"],
            hidden_state_skip_layer=2,
            logger=logger,
            device=device,
        )
        # A small model says in its tokenizer that it reads less than the real one's 1000 tokens.
        encoder.max_length = min(TEXT_TOKENS, encoder.tokenizer.model_max_length)
        return encoder, None

    @classmethod
    def _load_byt5(cls, cached_folder: str, glyph_byT5_v2: bool, byt5_max_length: int, device: torch.device):
        """Glyph encoder, tokenizer and length as keywords of the constructor, and the prompt format."""
        if not glyph_byT5_v2:
            return {}, None
        encoders = os.path.join(cached_folder, "text_encoder")
        glyph = _existing(os.path.join(encoders, "Glyph-SDXL-v2"))
        byt5 = os.path.join(encoders, "byt5-small")
        if not os.path.isdir(byt5):
            logger.warning(f"{byt5} is missing: trying google/byt5-small on the Hub")
            byt5 = "google/byt5-small"
        assets = os.path.join(glyph, "assets")
        paths = dict(
            byT5_google_path=byt5,
            byT5_ckpt_path=os.path.join(glyph, "checkpoints", "byt5_model.pt"),
            multilingual_prompt_format_color_path=os.path.join(assets, "color_idx.json"),
            multilingual_prompt_format_font_path=os.path.join(assets, "multilingual_10-lang_idx.json"),
        )
        loaded = load_glyph_byT5_v2(paths | dict(byt5_max_length=byt5_max_length), device=device)
        font_path, color_path = (paths[f"multilingual_prompt_format_{kind}_path"] for kind in ("font", "color"))
        return loaded, MultilingualPromptFormat(font_path=font_path, color_path=color_path)

    @classmethod
    def _load_vision_encoder(cls, pretrained_model_name_or_path: str, device: torch.device) -> VisionEncoder:
        path = _existing(os.path.join(pretrained_model_name_or_path, "vision_encoder", "siglip"))
        return VisionEncoder(
            vision_encoder_type="siglip",
            vision_encoder_precision="fp16" if default_device().type == "cuda" else "fp32",
            vision_encoder_path=path,
            logger=logger,
            device=device,
        )


def as_rgb(source: Image.Image | str) -> Image.Image:
    """A picture as it is meant to be seen: turned as its EXIF data say, transparent places white, 8 bits a channel.

    Args:
        source: a PIL image, or the path of an image file.

    Raises ValueError, in one line that names the cause, for a file that cannot be read or shown.
    """
    if not isinstance(source, (str, Image.Image)):
        raise ValueError("reference_image must be a PIL image or the path of an image file")
    try:
        image = Image.open(source) if isinstance(source, str) else source
        image = ImageOps.exif_transpose(image)
        image.load()
    except FileNotFoundError as error:
        raise ValueError(f"the image {source} does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image {source} cannot be read: {' '.join(str(error).split())}") from error
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(image, source)).convert("RGB")
    if image.has_transparency_data:
        if get_rank() == 0:
            logger.warning("the image has transparent places: they become white")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, source: Image.Image | str) -> np.ndarray:
    """Grey levels of 16 bits as 8 bits; wider ones and floats have no agreed white."""
    levels = np.asarray(image)
    if levels.dtype.kind not in "iu" or levels.min() < 0 or levels.max() >= 2**16:
        raise ValueError(f"the image {source} has grey levels that are not of 8 or 16 bits: save it as an 8-bit PNG")
    return (levels.astype(np.int64) * 255 // (2**16 - 1)).astype(np.uint8)


def _existing(path: str) -> str:
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} not found: download it as checkpoints-download.md of HunyuanVideo-1.5 says")
    return path


def _vision_sizes(vision_encoder: VisionEncoder) -> dict[str, int]:
    """How many vision tokens of what width the transformer gets: 729 x 1152 for the real encoder."""
    config = vision_encoder.model.config
    return {
        "vision_num_semantic_tokens": (config.image_size // config.patch_size) ** 2,
        "vision_states_dim": config.hidden_size,
    }


def _warn_if_cut(what: str, tokenizer, text: str, limit: int) -> None:
    """One line that quotes what an encoder of `limit` tokens does not read."""
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    if len(tokens) > limit and get_rank() == 0:
        logger.warning(f"{what} is cut after {limit} tokens, this is not read: {tokenizer.decode(tokens[limit:])!r}")


def _moved(values: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The same with all tensors on a device."""
    return tree_map(lambda value: value.to(device) if torch.is_tensor(value) else value, values)


def _repeat_rows(tensor: torch.Tensor | None, count: int, device: torch.device) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(device).repeat_interleave(count, dim=0)


def _negative_texts(prompt, negative_prompt, batch_size: int) -> list[str]:
    """One negative text per prompt; empty texts if none are given."""
    if negative_prompt is None:
        return [""] * batch_size
    if prompt is not None and type(prompt) is not type(negative_prompt):
        raise TypeError(f"negative_prompt must be a {type(prompt).__name__}, as prompt is")
    texts = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
    if len(texts) != batch_size:
        raise ValueError(f"got {len(texts)} negative prompts for {batch_size} prompts: pass one for each")
    return texts


def _to_pixels(image: np.ndarray) -> torch.Tensor:
    """(3, H, W) float32 in [-1, 1] of an image (H, W, 3) of uint8."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    return (pixels.float() / 255 - 0.5) / 0.5
