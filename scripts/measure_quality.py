"""Measure what caching costs on the demo model: PSNR and SSIM of cached videos against the uncached one, many pairs.

    python scripts/measure_quality.py run METHODS.json --output pairs.json --pairs 0:16
    python scripts/measure_quality.py table pairs*.json --against "fewer steps"

PYTHONPATH must hold a HunyuanVideo-1.5 tree with the kit, and the kit itself. A pair is a prompt that training never
saw, and a seed; pairs from 0 up are for reports, those from 100 up for choosing among methods, and calibration uses
training prompts. METHODS.json lists what to compare, one object a method:

    {"name": "minimax, exact", "steps": 50, "budgets": [25, 20], "mask": "../demo_masks/exact_b{budget}.json"}
    {"name": "released", "steps": 50, "budgets": [25, 20]}                             the kit's own masks
    {"name": "uniform", "steps": 50, "budgets": [25, 20], "uniform": true}             evenly spread steps
    {"name": "static", "steps": 50, "static": true}                                    upstream's default
    {"name": "fewer steps", "steps": 50, "budgets": [25, 20], "sampler": true}         B steps, all computed, no cache
    {"name": "deepcache", "steps": 50, "static": true, "cache_type": "deepcache"}      one of upstream's caches

"reuse" and "forecast" choose the rule; without them the mask's, else residual + hold. Every run is the pipeline's own
denoising loop on the same noise; frames are compared as they leave the decoder, before any compression. Pairs that
OUTPUT holds already are not run again, so an interrupted run goes on, and processes can share the pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from angelslim_caches import import_angelslim_caches
from demo_attention import fused_attention
from demo_data import prompt_of, render_one, spec_of
from hyvideo.commons.infer_state import InferState, ReuseRule, StepMask, step_mask
from hyvideo.pipelines.hunyuan_video_pipeline import (
    DenoiseInputs,
    HunyuanVideo_1_5_Pipeline,
    initialize_sequence_parallel,
)
from PIL import Image
from tqdm import tqdm

from lemica.files import write_text
from lemica.masks import read_mask, static_mask, uniform_mask
from lemica.metrics import psnr, ssim

FIRST_SEED = 1000
FRAMES = 9
ASPECT_RATIOS = ("1:1", "16:9", "9:16")
# Where (height, width) of an image-to-video's first frame is drawn.
IMAGE_SIZES = ((64, 64), (48, 80), (80, 48))


@dataclass(frozen=True)
class Method:
    """One way to generate: which of the reference's steps are computed, and how the others are made up."""

    name: str
    num_steps: int
    mask: StepMask
    rule: ReuseRule
    sampler: bool = False
    cache_type: str | None = None

    @property
    def key(self) -> str:
        """The method in words, unique in a list of methods."""
        rule = "" if self.sampler or self.cache_type else f", {self.rule.reuse} + {self.rule.forecast}"
        return f"{self.num_steps} steps, B = {sum(self.mask)}, {self.name}{rule}"


def method_of(entry: dict, budget: int | None, folder: Path) -> Method:
    """A method from its line in the file, for one of its budgets; mask files are found from `folder`."""
    num_steps = entry["steps"]
    rule = ReuseRule()
    if "mask" in entry:
        mask = read_mask(folder / entry["mask"].format(budget=budget))
        steps, rule = mask.steps, mask.rule
    elif entry.get("static"):
        steps = static_mask(num_steps)
    elif entry.get("uniform"):
        steps = uniform_mask(budget, num_steps)
    else:
        steps = step_mask(budget, num_steps)
    asked = {name: entry[name] for name in ("reuse", "forecast") if name in entry}
    rule = replace(rule, weights=(), **asked) if asked else rule
    options = {name: entry[name] for name in ("sampler", "cache_type") if name in entry}
    return Method(entry["name"], num_steps, steps, rule, **options)


def read_methods(path: Path) -> list[Method]:
    """All methods of a file; raises ValueError if two could not be told apart."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    methods = [method_of(entry, budget, path.parent) for entry in entries for budget in entry.get("budgets", [None])]
    keys = [method.key for method in methods]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{path}: two methods are called {max(keys, key=keys.count)!r}; give them other names")
    return methods


# ---- one pair


class Pair:
    """A held-out prompt with a seed; its inputs and reference videos are made once for all methods."""

    def __init__(self, pipe: HunyuanVideo_1_5_Pipeline, index: int) -> None:
        self.pipe, self.index = pipe, index
        self.spec = spec_of(index, held_out=True)
        self.image = None
        if pipe.ideal_task == "i2v":
            first = render_one(self.spec, IMAGE_SIZES[index % len(IMAGE_SIZES)], FRAMES)[:, 0]
            self.image = Image.fromarray(((first + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
        self._inputs: dict[int, DenoiseInputs] = {}
        self._references: dict[int, np.ndarray] = {}

    def inputs(self, num_steps: int) -> DenoiseInputs:
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
            self._references[num_steps] = self._frames(self.inputs(num_steps), (True,) * num_steps)
        return self._references[num_steps]

    def video(self, method: Method) -> np.ndarray:
        if method.sampler:
            budget = sum(method.mask)
            return self._frames(self.inputs(budget), (True,) * budget)
        inputs = replace(self.inputs(method.num_steps), rule=method.rule)
        if method.cache_type is None:
            return self._frames(inputs, method.mask)
        return self._with_upstreams_cache(inputs, method)

    def _with_upstreams_cache(self, inputs: DenoiseInputs, method: Method) -> np.ndarray:
        last_block = len(self.pipe.transformer.double_blocks) - 1
        state = InferState(
            enable_cache=True,
            cache_type=method.cache_type,
            total_steps=method.num_steps,
            no_cache_block_id=[last_block],
        )
        self.pipe.apply_infer_optimization(state)
        try:
            return self._frames(inputs, (True,) * method.num_steps)
        finally:
            self.pipe.apply_infer_optimization()

    def _frames(self, inputs: DenoiseInputs, mask: StepMask) -> np.ndarray:
        video = self.pipe.decode(self.pipe.denoise(inputs, mask=mask))[0]
        return video.permute(1, 2, 3, 0).numpy()


def quality(reference: np.ndarray, video: np.ndarray) -> dict[str, float]:
    """PSNR in dB and SSIM, means over frames; a video that equals its reference has an infinite PSNR."""
    pairs = list(zip(reference, video, strict=True))
    return {
        "psnr": statistics.fmean(psnr(*pair) for pair in pairs),
        "ssim": statistics.fmean(ssim(*pair) for pair in pairs),
    }


# ---- runs


def measure(options: argparse.Namespace) -> None:
    """Run every method on every pair, and write after each pair."""
    methods = read_methods(options.methods)
    torch.set_num_threads(1)
    initialize_sequence_parallel()
    import_angelslim_caches()
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(options.checkpoint), options.version)
    pipe.set_progress_bar_config(disable=True)
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    first, last = map(int, options.pairs.split(":"))
    with fused_attention(), torch.no_grad(), tqdm(total=(last - first) * len(methods), unit="video") as bar:
        for index in range(first, last):
            pair = Pair(pipe, index)
            rows = results.setdefault(f"{options.version} {index}", {})
            for method in methods:
                if method.key not in rows:
                    rows[method.key] = quality(pair.reference(method.num_steps), pair.video(method))
                bar.update()
            write_text(options.output, json.dumps(results, indent=1) + "\n")


# ---- table


@dataclass(frozen=True)
class Row:
    """A method's figures over pairs: means, worst, standard error, and the paired difference to another method."""

    key: str
    pairs: int
    psnr: float
    error: float
    worst: float
    ssim: float
    ssim_error: float
    worst_ssim: float
    gain: float
    gain_error: float


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _rival(key: str, against: str | None) -> str | None:
    """The method `against` with the same number of steps and the same budget as the method `key`."""
    return against and ", ".join([*key.split(", ", 2)[:2], against])


def rows_of(results: dict[str, dict], against: str | None) -> Iterator[Row]:
    """A row a method, in the order in which they were measured; paired differences to `against` at its budget."""
    for key in dict.fromkeys(key for rows in results.values() for key in rows):
        measured, rival = [rows for rows in results.values() if key in rows], _rival(key, against)
        psnrs, ssims = ([rows[key][name] for rows in measured] for name in ("psnr", "ssim"))
        gains = [rows[key]["psnr"] - rows[rival]["psnr"] for rows in measured if rival in rows]
        yield Row(
            key,
            len(measured),
            statistics.fmean(psnrs),
            _error(psnrs),
            min(psnrs),
            statistics.fmean(ssims),
            _error(ssims),
            min(ssims),
            statistics.fmean(gains) if gains else math.nan,
            _error(gains),
        )


def merged(paths: Sequence[Path]) -> dict[str, dict]:
    """The results of several files as those of one."""
    results: dict[str, dict] = {}
    for path in paths:
        for pair, rows in json.loads(path.read_text()).items():
            results.setdefault(pair, {}).update(rows)
    return results


def full_table(rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table with a line a method."""
    yield "| method | pairs | PSNR, dB | worst | SSIM | worst | paired difference, dB |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        gain = "" if math.isnan(row.gain) else f"{row.gain:+.2f} ± {row.gain_error:.2f}"
        yield (
            f"| {row.key} | {row.pairs} | {row.psnr:.2f} ± {row.error:.2f} | {row.worst:.2f} "
            f"| {row.ssim:.4f} ± {row.ssim_error:.4f} | {row.worst_ssim:.4f} | {gain} |"
        )


def budget_table(rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table with a line a way and a column a budget, for each number of steps: mean PSNR and the worst."""
    cells = {tuple(row.key.split(", ", 2)): f"{row.psnr:.1f} (worst {row.worst:.1f})" for row in rows}
    for steps in dict.fromkeys(steps for steps, _, _ in cells):
        budgets = sorted({budget for each, budget, _ in cells if each == steps}, key=lambda b: -int(b.split()[-1]))
        yield f"| {steps}, PSNR in dB | {' | '.join(budgets)} |"
        yield "|---" * (len(budgets) + 1) + "|"
        for way in dict.fromkeys(way for each, _, way in cells if each == steps):
            yield f"| {way} | {' | '.join(cells.get((steps, budget, way), '') for budget in budgets)} |"
        yield ""


def table(options: argparse.Namespace) -> None:
    """Print a Markdown table of all result files together."""
    rows = list(rows_of(merged(options.results), options.against))
    print("\n".join(budget_table(rows) if options.by_budget else full_table(rows)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure methods on pairs")
    run.add_argument("methods", type=Path)
    run.add_argument("--checkpoint", type=Path, default=Path(__file__).parents[1] / "assets" / "demo_checkpoint")
    run.add_argument("--version", default="480p_t2v", choices=["480p_t2v", "480p_i2v"])
    run.add_argument("--pairs", default="0:32", metavar="FIRST:LAST", help="(default: 0:32)")
    run.add_argument("--output", type=Path, required=True)
    run.set_defaults(run=measure)
    show = commands.add_parser("table", help="print what was measured")
    show.add_argument("results", type=Path, nargs="+")
    show.add_argument("--against", help="method to which paired differences at the same budget are taken")
    show.add_argument("--by-budget", action="store_true", help="a line a way and a column a budget, PSNR only")
    show.set_defaults(run=table)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
