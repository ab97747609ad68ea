"""HunyuanVideo-1.5 with the kit, to evaluate: each result is a video of the kit's own pipeline, as it is decoded.

This runs in the folder of a HunyuanVideo-1.5 tree with the kit in it.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from lemica.calibration.hunyuan import HunyuanVideo
from lemica.calibration.locks import Exchange
from lemica.calibration.samples import Sample, samples_digest
from lemica.errors import Refused
from lemica.masks import Mask, Target, hold, mask_of
from lemica.quality.evaluation import Request
from lemica.quality.models import Made, Method, Tried
from lemica.quality.noise import moved
from lemica.quality.wanted import Wanted, masks_of

# Options that make the transformer faster or smaller, each with a rounding of its own.
_SWITCHES = ("cfg_distilled", "sparse_attn", "use_sageattn", "enable_torch_compile", "use_fp8_gemm")


@dataclass(frozen=True)
class Prepared:
    """A sample whose texts and image are encoded, once for all its methods.

    Args:
        sample: which one.
        inputs: the kit's ``DenoiseInputs`` of the uncached run.
        seconds: that encoding took.
    """

    sample: Sample
    inputs: Any
    seconds: float


class KitVideos:
    """Runs of the kit's pipeline, part by part (``lemica.quality.models.Model``).

    Args:
        options: what ``lemica.calibration.hunyuan.add_model_arguments`` parsed.
        settings: those of the options that decide the numbers.
        num_inference_steps: denoising steps of the uncached run.
        with_image: whether samples have a first frame, which decides the model.
        group_size: how many ranks make a video together.

    Raises Refused, before anything is loaded, where there is no kit or no such model.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        settings: Mapping[str, Any],
        num_inference_steps: int,
        with_image: bool,
        group_size: int = 1,
    ):
        self.num_inference_steps, self.group_size = num_inference_steps, group_size
        self._model = HunyuanVideo(options, num_inference_steps, with_image, command="evaluate")
        self._options, self._settings = options, settings
        self._prepared: Prepared | None = None
        self._wanted: Mapping[str, Wanted] = {}

    def ranks_together(self) -> AbstractContextManager[tuple[int, int, Exchange]]:
        """This rank, the number of ranks, and how they exchange values; from then on groups work alone."""
        return self._model.ranks_together(self.group_size)

    def share(self, value: Any) -> Any:
        """The value of the first rank of this rank's group, on every rank of it."""
        parallel = self._model.kit.get_parallel_state()
        if not parallel.sp_enabled:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=dist.get_global_rank(parallel.sp_group, 0), group=parallel.sp_group)
        return values[0]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Around all runs. Ranks that were connected for them part when they are done."""
        yield
        if self.group_size > 1:
            dist.destroy_process_group()

    def settings(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """What decides the numbers, seconds among them."""
        return {
            **self._settings,
            "config": self._model.target.config,
            "prompts": f"(and images) of digest {samples_digest(list(samples))}",
            "sp_size": self.group_size,
            "device": self._device_name,
        }

    def about(self) -> dict[str, Any]:
        """What the figures are of."""
        target, options = self._model.target, self._options
        switches = [name for name in _SWITCHES if getattr(options, name)]
        return {
            "model": target.model,
            "config": target.config,
            "num_inference_steps": self.num_inference_steps,
            "video": f"{options.video_length} frames {options.resolution} {options.aspect_ratio}",
            "dtype": target.dtype,
            **({"with": " ".join(switches)} if switches else {}),
            "device": f"{self.group_size} x {self._device_name}" if self.group_size > 1 else self._device_name,
        }

    def request(self, sample: Sample) -> Request:
        """The prompt and the seed of a video."""
        return Request(sample.prompt, sample.seed)

    def refuse(self, samples: Sequence[Sample], wanted: Mapping[str, Wanted], fewer_steps: bool) -> None:
        """Raises Refused for masks, budgets and groups of ranks that do not fit the model, before weights load."""
        self._masks(wanted, self._model.target)
        config = Path(self._options.model_path, "transformer", self._model.version, "config.json")
        # Of a Hub repository it is not here yet.
        heads = json.loads(config.read_text(encoding="utf-8"))["heads_num"] if config.is_file() else self.group_size
        if heads % self.group_size:
            raise Refused(
                f"--sp_size {self.group_size} ranks cannot share the model's {heads} heads: give a number that "
                "divides them"
            )

    def try_out(self, sample: Sample, wanted: Mapping[str, Wanted]) -> Tried:
        """The masks that are wanted, by the kit's own rules; nothing is loaded for them."""
        self._wanted, target = wanted, self._model.target
        masks, notes = self._masks(wanted, target)
        differences = {name: mask.target.difference(target) for name, mask in masks.items()}
        notes += [f"{name}: belongs to {what}, used all the same" for name, what in differences.items() if what]
        return Tried(self.num_inference_steps, masks, can_move_noise=True, notes=tuple(notes))

    @staticmethod
    def _masks(wanted: Mapping[str, Wanted], target: Target) -> tuple[dict[str, Mask], list[str]]:
        from hyvideo.commons.infer_state import InferState, resolve_mask

        def choose(name: str) -> Mask:
            state = InferState(enable_cache=True, cache_type="lemica", **wanted[name].for_kit)
            return wanted[name].carried_on(resolve_mask(state, target), target.sigmas, is_euler=True)

        return masks_of(wanted, choose)

    def warm_up(self, sample: Sample) -> None:
        """Load the model, and make the sample once with two computed steps: a first run is slow.

        Raises Refused for masks that do not fit what was loaded: of a Hub repository the config is known only now.
        """
        inputs = self._inputs(sample, self.num_inference_steps)
        self._masks(self._wanted, self._model.pipeline.target(inputs.scheduler))
        ends = mask_of((0, self.num_inference_steps - 1), self.num_inference_steps)
        mask = Mask(ends, kept="velocity", weights=hold(ends))
        self.make(sample, Method("two steps", self.num_inference_steps, 2, mask))
        # Encoding was slow as well: the sample is encoded again when it is made.
        self._prepared = None

    def make(self, sample: Sample, method: Method) -> Made:
        """The frames of one video. Its seconds are those of a run of its own, with the encoding of its texts."""
        pipeline, inputs = self._model.pipeline, self._inputs(sample, method.num_inference_steps)
        if method.moves_noise:
            # In float32, in which latents are from the first step on: in bfloat16 1e-5 moves nothing.
            inputs = replace(inputs, noise=moved(inputs.noise.float()))
        inputs = replace(inputs, mask=method.mask or inputs.mask)
        clock = self._model.kit.Stopwatch(pipeline.execution_device)
        with clock.stage("denoising"):
            latents = pipeline.denoise(inputs, clock)
        with torch.no_grad(), clock.stage("VAE decoding"):
            video = self._decoded(latents, clock)
        seconds = self._prepared.seconds + sum(clock.stages.values())
        return Made(_frames(video), seconds, inputs.mask.budget, dit_seconds=sum(clock.step_seconds()))

    def _decoded(self, latents: torch.Tensor, clock: Any) -> torch.Tensor:
        pipeline = self._model.pipeline
        if self.group_size == 1:
            # There is nobody to share tiles with: the ranks beside this one make other videos, and have parted.
            pipeline.vae.disable_tile_parallelism()
        return pipeline.decode(latents, tile_parallelism=self.group_size > 1, clock=clock)

    def _inputs(self, sample: Sample, num_steps: int) -> Any:
        """What a run with so many steps and no cache denoises."""
        if self._prepared is None or self._prepared.sample != sample:
            self._prepared = self._prepare(sample)
        inputs = self._prepared.inputs
        if num_steps == self.num_inference_steps:
            return inputs
        settings = self._model.settings_of(sample, num_steps)
        return replace(inputs, scheduler=settings.scheduler, timesteps=settings.timesteps, mask=settings.mask)

    def _prepare(self, sample: Sample) -> Prepared:
        pipeline = self._model.pipeline
        clock = self._model.kit.Stopwatch(pipeline.execution_device)
        with torch.no_grad(), clock.stage("settings"):
            inputs = pipeline.prepare(self._model.settings_of(sample, self.num_inference_steps), clock)
        return Prepared(sample, inputs, sum(clock.stages.values()))

    @property
    def _device_name(self) -> str:
        device = self._model.kit.default_device()
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _frames(video: torch.Tensor) -> np.ndarray:
    """(F, H, W, 3) of a video (1, 3, F, H, W); none on a rank whose group's first one has them."""
    return video[0].permute(1, 2, 3, 0).numpy() if video.ndim == 5 else np.empty((0, 0, 0, 3), np.float32)
