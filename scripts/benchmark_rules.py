"""Time a reused step and count what is kept, by reuse rule: beside the released kit's reused step, in one process.

    python scripts/benchmark_rules.py cpu --output rules.json     # PYTHONPATH = a HunyuanVideo-1.5 tree with the kit

A repeat runs every rule's reused steps in turn, and the released kit's; figures are medians over repeats, ratios within
a repeat. What rules keep is made by one computed step for each kind, waits on the CPU, and is copied as often as a rule
keeps it, so that the GPU presets of scripts/benchmark.py take few full steps, too. Rules that keep as many tensors of
the same kind cost the same: "fitted" with its default history costs what "damped-sigma" does. The figures are written
after every repeat; where the released kit's cache does not fit into the device's memory, the rules are timed alone.
"""

import argparse
import json
import os
import signal
import statistics
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmark import FEW_STEPS, attempt, timed, unique_bytes
from benchmark_figures import Loop, machine, residual_bytes
from benchmark_models import NUM_STEPS, PRESETS, benchmark_pipeline, random_inputs
from demo_attention import fused_attention
from hyvideo.commons.infer_state import MOST_KEPT, ReuseRule
from hyvideo.pipelines.hunyuan_video_pipeline import (
    DenoiseInputs,
    HunyuanVideo_1_5_Pipeline,
    StepCache,
    Stopwatch,
    initialize_sequence_parallel,
)

# One rule for each number of tensors that a rule may keep.
FORECASTS = ("hold", "damped-sigma", "quadratic-sigma")
RULES = tuple(ReuseRule(kind, name) for kind in ("residual", "output", "velocity") for name in FORECASTS)
RULES += (ReuseRule("velocity", "parabola-fit-sigma"),)
FIRST_REUSED, LAST_REUSED = 10, 16
MASK = tuple(not FIRST_REUSED <= step < LAST_REUSED for step in range(NUM_STEPS))
# Latent channels of HunyuanVideo-1.5, and the width of its transformer: how large a velocity is beside a residual.
CHANNELS, WIDTH = 32, 2048
# Target: of the released kit's reused step.
MOST_OF_RELEASED = 0.5


class Step(NamedTuple):
    """A reused step: seconds, and bytes kept meanwhile."""

    seconds: float
    held: int


def kept_of_one_step(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, kind: str) -> torch.Tensor:
    """What one computed step leaves of this kind, in CPU memory."""
    rule = ReuseRule(kind)
    cache, made = StepCache(pipe.transformer, rule), []
    last = FIRST_REUSED - 1
    pipe.denoise(
        replace(inputs, rule=rule), mask=MASK, start=last, stop=last + 1, cache=cache,
        on_step=lambda *_: made.extend(kept.cpu() for kept in cache.kept),
    )  # fmt: skip
    return made[0]


def reused_step(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, rule: ReuseRule, kept: torch.Tensor) -> Step:
    """A few reused steps with as much kept as the rule may keep."""
    clock = Stopwatch(pipe.execution_device)
    cache = StepCache(pipe.transformer, rule)
    cache.kept = [kept.to(pipe.execution_device, copy=True) for _ in range(rule.history)]
    held = unique_bytes(cache.kept)
    pipe.denoise(
        replace(inputs, rule=rule), clock, mask=MASK, start=FIRST_REUSED, stop=LAST_REUSED, latents=inputs.noise,
        cache=cache,
    )  # fmt: skip
    return Step(statistics.median(clock.step_seconds()), held)


def kept_of_residual(rule: ReuseRule) -> float:
    """How many times the residual's bytes a rule keeps of HunyuanVideo-1.5 on one GPU."""
    return rule.history * (CHANNELS / WIDTH if rule.reuse == "velocity" else 1)


def measured(name: str, repeats: int) -> Iterator[dict[str, Any]]:
    """The figures after each repeat."""
    preset = PRESETS[name]
    pipe = benchmark_pipeline(preset)
    inputs = random_inputs(pipe, preset)
    kept = {kind: kept_of_one_step(pipe, inputs, kind) for kind in MOST_KEPT}
    steps: dict[ReuseRule, list[Step]] = {rule: [] for rule in RULES}
    released: list[Loop] | None = []
    for _ in range(repeats):
        if released is not None:
            loop = attempt(lambda: timed(pipe, inputs, "released", FEW_STEPS))
            released = None if loop is None else [*released, loop]
        for rule in RULES:
            steps[rule].append(reused_step(pipe, inputs, rule, kept[rule.reuse]))
        yield {
            "preset": name,
            **machine(pipe),
            "repeats": len(steps[RULES[0]]),
            "residual_bytes": residual_bytes(preset, pipe.target_dtype),
            "full_step": statistics.median(loop.full_step for loop in released) if released else None,
            "released": statistics.median(loop.reused_step for loop in released) if released else None,
            "rows": [row_of(rule, steps[rule], released) for rule in RULES],
        }


def row_of(rule: ReuseRule, steps: list[Step], released: list[Loop] | None) -> dict[str, Any]:
    """A rule's figures: medians over repeats, the ratio within each."""
    ratios = [step.seconds / loop.reused_step for step, loop in zip(steps, released or (), strict=False)]
    return {
        "rule": str(rule),
        "tensors": rule.history,
        "held_bytes": steps[0].held,
        "of_residual": kept_of_residual(rule),
        "reused_step": statistics.median(step.seconds for step in steps),
        "of_released": statistics.median(ratios) if ratios else None,
    }


def table(result: dict) -> list[str]:
    """The figures as a Markdown table."""
    lines = ["| rule | tensors kept | x residual, real model | reused step | x released kit's |"]
    lines.append("|---|---|---|---|---|")
    for row in result["rows"]:
        of_released = "" if row["of_released"] is None else f"{row['of_released']:.2f}"
        lines.append(
            f"| {row['rule']} | {row['tensors']} | {row['of_residual']:.2g} | {row['reused_step'] * 1e3:.2f} ms "
            f"| {of_released} |"
        )
    if result["released"] is not None:
        lines.append(f"| released kit |  |  | {result['released'] * 1e3:.2f} ms | 1 |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--repeats", type=int, default=5, help="(default: 5)")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")
    torch.manual_seed(0)
    # As generate.py does: at 720p little room is left beside the released kit's cache.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    initialize_sequence_parallel()
    # What a time limit sends: it ends as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = None
    try:
        with nullcontext() if torch.cuda.is_available() else fused_attention():
            for result in measured(args.preset, args.repeats):
                if args.output:
                    args.output.write_text(json.dumps(result, indent=1) + "\n")
    except KeyboardInterrupt:
        print(f"interrupted after {result['repeats'] if result else 0} repeats")
    if result is None:
        return
    print(*table(result), sep="\n")
    slow = [row["rule"] for row in result["rows"] if (row["of_released"] or 0) > MOST_OF_RELEASED]
    print(f"more than {MOST_OF_RELEASED} x the released kit's: {', '.join(slow) or 'none'}")


if __name__ == "__main__":
    main()
