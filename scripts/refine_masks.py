"""A planner that measures whole paths: does it beat a planned mask? An experiment on the demo model.

    python scripts/refine_masks.py OUTPUT --budgets 20 15 --samples 8           # writes refined_b20.json, ...
    python scripts/refine_masks.py OUTPUT --budgets 15 --samples 16 --sure 2

PYTHONPATH must hold a HunyuanVideo-1.5 tree with the kit, and the kit itself. Graphs weigh stretches of reused steps
one by one; where stretches touch, errors add up or make up for each other. This begins with a planned mask of fitted
forecasts and moves its computed steps one by one, as long as that lowers the error of whole cached runs on training
prompts: the mean over samples of the mean squared error of the final latents, in dB. Every path has fitted weights of
its own. A move counts if it gains 0.01 dB, and --sure standard errors of the paired differences. A sweep over all steps
costs about B (B - 2) forwards a sample; what all really cost, the uncached runs included, is printed.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from demo_attention import fused_attention
from demo_data import prompt_of, spec_of
from hyvideo.pipelines.hunyuan_video_pipeline import (
    DenoiseInputs,
    HunyuanVideo_1_5_Pipeline,
    initialize_sequence_parallel,
)
from measure_quality import ASPECT_RATIOS, FRAMES

from lemica.graph import read_graph
from lemica.masks import Mask, read_mask, write_mask
from lemica.plan import fitted
from lemica.replay import CountingCache, Recorder, prepare

ASSETS = Path(__file__).resolve().parents[1] / "assets"
LEAST_GAIN = 0.01
Steps = tuple[int, ...]


@dataclass(frozen=True)
class CachedRun:
    """A run of one sample by a mask: N + 1 latents (B, 32, T, H, W) before each step and after the last, and by
    computed step what the rule keeps of it."""

    mask: Mask
    latents: list[torch.Tensor]
    recorded: dict[int, torch.Tensor]


class Runner:
    """One sample, uncached and by any masks."""

    def __init__(self, pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, on_forward: Callable[[], None]):
        self.pipe, self.inputs, self.on_forward = pipe, inputs, on_forward
        uncached = CountingCache(pipe.transformer, inputs.rule, on_forward)
        self.result = pipe.denoise(inputs, mask=(True,) * len(inputs.timesteps), cache=uncached)

    def run(self, mask: Mask, like: CachedRun | None = None) -> CachedRun:
        """The run by `mask`; up to the first step where it differs from `like`, that is taken instead of run anew."""
        start = first_difference(mask, like.mask) if like else 0
        known = {step: kept for step, kept in like.recorded.items() if step < start} if like else {}
        recorder = Recorder(self.pipe.transformer, mask.rule, self.on_forward)
        recorder.kept.extend(list(known.values())[-mask.rule.history :])
        latents = like.latents[: start + 1] if like else [self.inputs.noise]
        self.pipe.denoise(
            replace(self.inputs, rule=mask.rule),
            mask=mask.steps,
            start=start,
            latents=latents[start],
            cache=recorder,
            on_step=lambda _, after: latents.append(after),
        )
        computed = (step for step in mask.computed_steps if step >= start)
        return CachedRun(mask, latents, known | dict(zip(computed, recorder.recorded, strict=True)))

    def error(self, run: CachedRun) -> float:
        """Mean squared error of the final latents against the uncached run's, in dB; -inf where they are equal."""
        mean = (run.latents[-1].double() - self.result.double()).square().mean().item()
        return 10 * math.log10(mean) if mean > 0 else -math.inf


def first_difference(mask: Mask, other: Mask) -> int:
    """The first step that two masks do not treat alike; the number of steps if there is none."""
    pairs = zip(zip(mask.steps, mask.weights, strict=True), zip(other.steps, other.weights, strict=True), strict=True)
    return next((step for step, (one, another) in enumerate(pairs) if one != another), mask.num_steps)


@dataclass(frozen=True)
class Trial:
    """A path with its error on every sample, in dB."""

    path: Steps
    errors: list[float]
    runs: list[CachedRun]

    def gain_over(self, other: "Trial", sure: float) -> float:
        """Mean gain in dB, less `sure` of its standard errors."""
        gains = [before - after for before, after in zip(other.errors, self.errors, strict=True)]
        return statistics.fmean(gains) - (sure * statistics.stdev(gains) / len(gains) ** 0.5 if sure else 0.0)


def sweep(best: Trial, attempt: Callable[[Steps, Trial], Trial], sure: float = 0.0) -> Trial:
    """The best trial after moving every computed step but the first and the last, to the left or else to the right."""
    for index in range(1, len(best.path) - 1):
        to_the_left = move_on(best, index, -1, attempt, sure)
        best = to_the_left if to_the_left is not best else move_on(best, index, 1, attempt, sure)
    return best


def move_on(best: Trial, index: int, direction: int, attempt: Callable[[Steps, Trial], Trial], sure: float) -> Trial:
    """The best trial after moving one step in one direction, as far as every single move helps."""
    while (path := moved(best.path, index, direction)) is not None:
        trial = attempt(path, best)
        if not trial.gain_over(best, sure) > LEAST_GAIN:
            break
        best = trial
    return best


def moved(path: Steps, index: int, direction: int) -> Steps | None:
    """`path` with one step moved by `direction`; None if another computed step is there."""
    step = path[index] + direction
    return None if step in path else (*path[:index], step, *path[index + 1 :])


def refine(pipe: HunyuanVideo_1_5_Pipeline, budget: int, options: argparse.Namespace) -> None:
    """Refine one planned mask, print what each sweep gained and cost, and write the mask after each."""
    planned = read_mask(ASSETS / "demo_masks" / f"minimax_fitted2_t2v_50_b{budget}.json")
    moments = read_graph(ASSETS / "demo_masks" / "velocity_t2v_50.json").moments
    history = max(map(len, planned.weights))
    forwards = [0]

    def count() -> None:
        forwards[0] += 1

    runners = [Runner(pipe, inputs_of(pipe, index, planned.num_steps), count) for index in range(options.samples)]

    def attempt(path: Steps, best: Trial | None = None) -> Trial:
        mask = fitted(replace(planned, computed_steps=path, weights=()), moments, history)
        known = best.runs if best else [None] * len(runners)
        runs = [runner.run(mask, like) for runner, like in zip(runners, known, strict=True)]
        return Trial(path, [runner.error(run) for runner, run in zip(runners, runs, strict=True)], runs)

    best = first = attempt(planned.computed_steps)
    for number in range(options.sweeps):
        before, best = best, sweep(best, attempt, options.sure)
        cost = forwards[0] / len(runners) / planned.num_steps
        print(f"B = {budget}, sweep {number + 1}: {best.gain_over(first, 0):+.2f} dB on its own samples, "
              f"{cost:.1f} full runs a sample, steps {' '.join(map(str, best.path))}", flush=True)  # fmt: skip
        mask = fitted(replace(planned, computed_steps=best.path, weights=()), moments, history)
        write_mask(replace(mask, origin=f"{planned.origin}; refined"), options.output / f"refined_b{budget}.json")
        if best is before:
            break


def inputs_of(pipe: HunyuanVideo_1_5_Pipeline, index: int, num_steps: int) -> DenoiseInputs:
    """A training prompt's; the three formats in turn, as in the pairs that measure_quality.py reports."""
    shape = dict(aspect_ratio=ASPECT_RATIOS[index % len(ASPECT_RATIOS)], video_length=FRAMES)
    return prepare(pipe, prompt=prompt_of(spec_of(index)), seed=0, num_steps=num_steps, **shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the masks")
    parser.add_argument("--budgets", type=int, nargs="+", default=[25, 20, 15, 10])
    parser.add_argument("--samples", type=int, default=8, help="(default: 8)")
    parser.add_argument("--sweeps", type=int, default=2, help="at most so many (default: 2)")
    parser.add_argument("--sure", type=float, default=0.0, help="standard errors that a move must gain (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    initialize_sequence_parallel()
    options.output.mkdir(parents=True, exist_ok=True)
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(ASSETS / "demo_checkpoint"), "480p_t2v")
    pipe.set_progress_bar_config(disable=True)
    with fused_attention(), torch.no_grad():
        for budget in options.budgets:
            refine(pipe, budget, options)


if __name__ == "__main__":
    main()
