"""The pairs of prompt and seed that the measurements run on, alone or several of one format as a batch.

Pairs from 0 up are for reports, those from 100 up for choosing among methods; calibration uses training prompts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from hyvideo.pipelines.hunyuan_video_pipeline import DenoiseInputs, HunyuanVideo_1_5_Pipeline

from demo.data import first_frame, prompt_of, spec_of
from demo.methods import Method

FIRST_SEED = 1000
FRAMES = 9
ASPECT_RATIOS = ("1:1", "16:9", "9:16")
# Where (height, width) of an image-to-video's first frame is drawn.
IMAGE_SIZES = ((64, 64), (48, 80), (80, 48))


class Pair:
    """A prompt that training never saw, with a seed; `shift` is the sampler's, by default the model's."""

    def __init__(self, pipe: HunyuanVideo_1_5_Pipeline, index: int, shift: float | None = None):
        self.pipe, self.index, self.shift = pipe, index, shift
        self.spec = spec_of(index, held_out=True)
        self.image = None
        if pipe.ideal_task == "i2v":
            self.image = first_frame(self.spec, IMAGE_SIZES[index % len(IMAGE_SIZES)], FRAMES)

    def inputs(self, num_steps: int) -> DenoiseInputs:
        """What the uncached run with so many steps denoises."""
        settings = self.pipe.resolve_settings(
            prompt=prompt_of(self.spec),
            negative_prompt="",
            reference_image=self.image,
            aspect_ratio=ASPECT_RATIOS[self.index % len(ASPECT_RATIOS)],
            video_length=FRAMES,
            prompt_rewrite=False,
            num_inference_steps=num_steps,
            guidance_scale=None,
            embedded_guidance_scale=None,
            flow_shift=self.shift,
            seed=FIRST_SEED + self.index,
            generator=None,
            options={},
        )
        return self.pipe.prepare(settings)


class Batch:
    """Pairs of one format that are denoised together, which a CPU does in less time; frames are a list, by pair.

    What one of them gets does not depend on the others, but for rounding.
    """

    def __init__(self, pairs: Sequence[Pair]):
        self.pairs, self.pipe = pairs, pairs[0].pipe
        # Made once for all methods.
        self.inputs = cache(self._inputs)
        self.reference = cache(self._reference)

    def _inputs(self, num_steps: int) -> DenoiseInputs:
        return stacked([pair.inputs(num_steps) for pair in self.pairs])

    def _reference(self, num_steps: int) -> list[np.ndarray]:
        """Frames (F, H, W, 3) in [0, 1] with every step computed."""
        return self._frames(self.inputs(num_steps))

    def videos(self, method: Method) -> list[np.ndarray]:
        """Frames as a method makes them."""
        if method.sampler:
            return self.reference(method.mask.budget)
        inputs = self.inputs(method.mask.num_steps)
        return self._frames(
            replace(inputs, mask=method.mask.with_weights(inputs.scheduler.sigmas.tolist(), is_euler=True))
        )

    def _frames(self, inputs: DenoiseInputs) -> list[np.ndarray]:
        videos = self.pipe.decode(self.pipe.denoise(inputs))
        return list(videos.permute(0, 2, 3, 4, 1).numpy())


def stacked(inputs: Sequence[DenoiseInputs]) -> DenoiseInputs:
    """Of samples of one format one batch: with guidance all negative prompts, then all positive ones."""
    first = inputs[0]
    copies = len(first.condition)

    def joined(tensors: Sequence[Any]) -> Any:
        return torch.cat([tensor[row : row + 1] for row in range(copies) for tensor in tensors])

    def all_joined(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: all_joined([value[name] for value in values]) for name in values[0]}
        # Rotary tables, (tokens, channels), are those of the format.
        per_sample = isinstance(values[0], torch.Tensor) and len(values[0]) == copies
        return joined(values) if per_sample else values[0]

    return replace(
        first,
        noise=torch.cat([each.noise for each in inputs]),
        condition=joined([each.condition for each in inputs]),
        transformer_kwargs=all_joined([each.transformer_kwargs for each in inputs]),
    )


def batches(
    pipe: HunyuanVideo_1_5_Pipeline, indices: Sequence[int], size: int, shift: float | None = None
) -> Iterator[Batch]:
    """The pairs in batches of one format and at most `size`."""
    for kind in range(len(ASPECT_RATIOS)):
        alike = [index for index in indices if index % len(ASPECT_RATIOS) == kind]
        for start in range(0, len(alike), size):
            yield Batch([Pair(pipe, index, shift) for index in alike[start : start + size]])
