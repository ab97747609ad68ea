"""Measure what caching costs on the demo model: PSNR and SSIM of cached videos against the uncached one, many pairs.

    python -m demo.quality run demo/methods_t2v.json --pairs 0:32 --output assets/measurements/quality_t2v.json
    python -m demo.quality table assets/measurements/quality_t2v.json --against "fewer steps"

A pair is a prompt that training never saw, and a seed; pairs from 0 up are for reports, those from 100 up for choosing
among methods, and calibration uses training prompts. demo/methods.py says what a list of methods holds.

Every run is the pipeline's own denoising loop on the same noise; frames are compared as they leave the decoder, before
any compression. What OUTPUT holds already is not run again, so an interrupted run goes on, and a new method is added.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hyvideo.commons.infer_state import InferState
from hyvideo.pipelines.hunyuan_video_pipeline import (
    DenoiseInputs,
    HunyuanVideo_1_5_Pipeline,
    initialize_sequence_parallel,
)
from tqdm import tqdm

from demo.angelslim_caches import import_angelslim_caches
from demo.arithmetic import DTYPES, arithmetic
from demo.attention import fused_attention
from demo.calibrations import CHECKPOINT
from demo.data import first_frame, prompt_of, spec_of
from demo.methods import Method, read_methods
from demo.results import budget_table, full_table, merged, read_results, rows_of, write_results
from lemica.quality.metrics import Quality, means_of, psnr, ssim

FIRST_SEED = 1000
FRAMES = 9
ASPECT_RATIOS = ("1:1", "16:9", "9:16")
# Where (height, width) of an image-to-video's first frame is drawn.
IMAGE_SIZES = ((64, 64), (48, 80), (80, 48))


class Pair:
    """A held-out prompt with a seed; its inputs and reference videos are made once for all methods."""

    def __init__(self, pipe: HunyuanVideo_1_5_Pipeline, index: int):
        self.pipe, self.index = pipe, index
        self.spec = spec_of(index, held_out=True)
        self.image = None
        if pipe.ideal_task == "i2v":
            self.image = first_frame(self.spec, IMAGE_SIZES[index % len(IMAGE_SIZES)], FRAMES)
        self._inputs: dict[int, DenoiseInputs] = {}
        self._references: dict[int, np.ndarray] = {}

    def inputs(self, num_steps: int) -> DenoiseInputs:
        """What the uncached run with so many steps denoises."""
        if num_steps not in self._inputs:
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
                flow_shift=None,
                seed=FIRST_SEED + self.index,
                generator=None,
                options={},
            )
            self._inputs[num_steps] = self.pipe.prepare(settings)
        return self._inputs[num_steps]

    def reference(self, num_steps: int) -> np.ndarray:
        """Frames (F, H, W, 3) in [0, 1] with every step computed."""
        if num_steps not in self._references:
            self._references[num_steps] = self._frames(self.inputs(num_steps))
        return self._references[num_steps]

    def video(self, method: Method) -> np.ndarray:
        """Frames as a method makes them."""
        if method.sampler:
            return self.reference(method.mask.budget)
        if method.cache_type:
            return self._with_upstreams_cache(method)
        inputs = self.inputs(method.mask.num_steps)
        return self._frames(replace(inputs, mask=method.mask.with_weights(inputs.scheduler.sigmas.tolist())))

    def _with_upstreams_cache(self, method: Method) -> np.ndarray:
        num_steps, last_block = method.mask.num_steps, len(self.pipe.transformer.double_blocks) - 1
        state = InferState(
            enable_cache=True, cache_type=method.cache_type, total_steps=num_steps, no_cache_block_id=[last_block]
        )
        self.pipe.apply_infer_optimization(state)
        try:
            return self._frames(self.inputs(num_steps))
        finally:
            self.pipe.apply_infer_optimization()

    def _frames(self, inputs: DenoiseInputs) -> np.ndarray:
        video = self.pipe.decode(self.pipe.denoise(inputs))[0]
        return video.permute(1, 2, 3, 0).numpy()


def quality(reference: np.ndarray, video: np.ndarray) -> dict[str, float]:
    """PSNR in dB and SSIM, means over frames; a video that equals its reference has an infinite PSNR."""
    pairs = list(zip(reference, video, strict=True))
    means = means_of(Quality(*(tuple(metric(*pair) for pair in pairs) for metric in (psnr, ssim))))
    return {"psnr": means.psnr, "ssim": means.ssim}


def measure(options: argparse.Namespace) -> None:
    """Run every method on every pair, and write after each pair."""
    methods = read_methods(options.methods)
    torch.set_num_threads(1)
    initialize_sequence_parallel()
    import_angelslim_caches()
    with arithmetic(options.dtype):
        pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(options.checkpoint), options.version)
    pipe.set_progress_bar_config(disable=True)
    results = read_results(options.output) if options.output.exists() else {}
    first, last = map(int, options.pairs.split(":"))
    with fused_attention(), torch.no_grad(), tqdm(total=(last - first) * len(methods), unit="video") as bar:
        for index in range(first, last):
            pair = Pair(pipe, index)
            name = f"{options.version} {index}"
            rows = results.get(name, {})
            for method in methods:
                if method.key not in rows:
                    rows[method.key] = quality(pair.reference(method.mask.num_steps), pair.video(method))
                bar.update()
            # In the order of the list, whenever they were measured.
            results[name] = {method.key: rows[method.key] for method in methods} | rows
            write_results(results, options.output)


def show(options: argparse.Namespace) -> None:
    """Print a Markdown table of all result files together."""
    rows = list(rows_of(merged(options.results), options.against))
    print("\n".join(budget_table(rows) if options.by_budget else full_table(rows)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure methods on pairs")
    run.add_argument("methods", type=Path)
    run.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    run.add_argument("--version", default="480p_t2v", choices=["480p_t2v", "480p_i2v"])
    run.add_argument("--dtype", default="fp32", choices=list(DTYPES), help="arithmetic of the runs (default: fp32)")
    run.add_argument("--pairs", default="0:32", metavar="FIRST:LAST", help="(default: 0:32)")
    run.add_argument("--output", type=Path, required=True)
    run.set_defaults(run=measure)
    table = commands.add_parser("table", help="print what was measured")
    table.add_argument("results", type=Path, nargs="+")
    table.add_argument("--against", help="method to which paired differences at the same budget are taken")
    table.add_argument("--by-budget", action="store_true", help="a line per method and a column per budget, PSNR only")
    table.set_defaults(run=show)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
