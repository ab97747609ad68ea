"""Time full and reused steps and whole loops, and count what is kept: the kit beside the released kit, in one process.

    python -m benchmarks.steps tiny                                            # from the repository's root
    python -m benchmarks.steps cpu --output assets/measurements/steps.json     # about 20 minutes on two cores
    python -m benchmarks.steps 720p                                            # true geometry, random weights, on a GPU

Steps: every repeat runs a short loop with each way to reuse (benchmarks/loops.py): two full steps, the second of which
finds the cache full, and a few reused ones. Loops: every repeat runs whole loops of 50 steps, uncached, with the kit's
default way at each budget, and with the released kit's at the smallest one, where its reused steps weigh most. Loops
take turns, a tenth of their computed steps at a time, and ratios are taken within a repeat: a machine that slows down
for a minute slows all of them down. Figures are medians over repeats; that of N/B comes with its standard error.

A full step of the GPU presets takes up to a minute: there loops are not run, but predicted as B full steps and N - B
reused ones. At 720p the released kit's cache does not fit into 80 GB: leave it out with --ways.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median, stdev
from typing import Any, NamedTuple

import torch
from hyvideo.commons.infer_state import StepMask, computed_steps, step_mask
from hyvideo.pipelines.hunyuan_video_pipeline import (
    DenoiseInputs,
    HunyuanVideo_1_5_Pipeline,
    Stopwatch,
    initialize_sequence_parallel,
)

from benchmarks.loops import RELEASED, UNCACHED, WAYS, caching, memory_of, part_of
from benchmarks.models import NUM_STEPS, PRESETS, Preset, benchmark_pipeline, fast_attention, random_inputs
from lemica.files import write_text

DEFAULT_WAY = "residual + hold"
SHORT = (True, True, False, False, False, False)
# Loops take turns after each of so many parts.
PARTS = 10


class Job(NamedTuple):
    """One loop of a repeat: a way, at so many computed steps."""

    way: str
    budget: int

    @property
    def steps(self) -> StepMask:
        return step_mask(self.budget, NUM_STEPS)


class Loop(NamedTuple):
    """Seconds: of a full and of a reused step, of all computed steps, and of the loop."""

    full_step: float
    reused_step: float | None
    computed: float
    total: float


class TimedLoop:
    """A loop that is run a part at a time. Nothing but the clock runs beside it."""

    def __init__(self, pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, way: str, steps: StepMask):
        self.pipe, self.inputs, self.way, self.steps = pipe, inputs, way, steps
        self.latents = inputs.noise
        self.seconds = 0.0
        self.step_seconds: list[float] = []

    def run(self, part: range) -> None:
        """The next steps, of which the first is computed."""
        clock = Stopwatch(self.pipe.execution_device)
        steps = self.steps[part.start : part.stop]
        inputs = part_of(self.inputs, self.way, steps, part.start, self.latents)
        with caching(self.pipe, self.way, steps), clock.stage("loop"):
            self.latents = self.pipe.denoise(inputs, clock)
        self.seconds += clock.stages["loop"]
        self.step_seconds += clock.step_seconds()

    def result(self) -> Loop:
        seconds = list(zip(self.step_seconds, self.steps, strict=True))
        computed = [second for second, runs in seconds if runs]
        reused = [second for second, runs in seconds if not runs]
        # The first step pays for warming up.
        return Loop(median(computed[1:]), median(reused) if reused else None, sum(computed), self.seconds)


def cut(steps: StepMask, parts: int) -> list[range]:
    """So many parts of a loop, each from a computed step on, with as many of these, give or take one."""
    computed = computed_steps(steps)
    starts = [computed[part * len(computed) // parts] for part in range(parts)]
    return [range(*ends) for ends in pairwise([*starts, len(steps)])]


def short_loops(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, ways: Sequence[str]) -> dict[str, Loop]:
    """One repeat of the steps."""
    loops = {way: TimedLoop(pipe, inputs, way, SHORT[:2] if way == UNCACHED else SHORT) for way in ways}
    for loop in loops.values():
        loop.run(range(len(loop.steps)))
    return {way: loop.result() for way, loop in loops.items()}


def loops_in_turn(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, jobs: Sequence[Job]) -> dict[Job, Loop]:
    """One repeat of the loops."""
    loops = {job: TimedLoop(pipe, inputs, job.way, job.steps) for job in jobs}
    parts = {job: cut(job.steps, PARTS) for job in jobs}
    for number in range(PARTS):
        # There and back, so that none is always the first.
        for job in jobs[::-1] if number % 2 else jobs:
            loops[job].run(parts[job][number])
    return {job: loop.result() for job, loop in loops.items()}


def step_rows(repeats: Sequence[dict[str, Loop]]) -> dict[str, dict[str, float]]:
    """The figures of every way's steps: medians over repeats, ratios within each."""
    rows = {}
    for way in repeats[0]:
        loops = [repeat[way] for repeat in repeats]
        rows[way] = {"full_step": median(loop.full_step for loop in loops)}
        if way != UNCACHED:
            rows[way]["reused_step"] = median(loop.reused_step for loop in loops)
            rows[way]["of_full"] = median(loop.reused_step / loop.full_step for loop in loops)
        if way != UNCACHED and RELEASED in repeats[0]:
            pairs = [
                (loop.reused_step, repeat[RELEASED].reused_step) for loop, repeat in zip(loops, repeats, strict=True)
            ]
            rows[way]["of_released"] = median(ours / theirs for ours, theirs in pairs)
    return rows


def loop_rows(repeats: Sequence[dict[Job, Loop]]) -> Iterator[dict[str, Any]]:
    """The figures of every loop beside the uncached one of the same repeat."""
    uncached = [repeat[Job(UNCACHED, NUM_STEPS)].total for repeat in repeats]
    for job in repeats[0]:
        loops = [repeat[job] for repeat in repeats]
        row = dict(job._asdict(), loop=median(loop.total for loop in loops))
        if job.way != UNCACHED:
            speedups = [full / loop.total for full, loop in zip(uncached, loops, strict=True)]
            row["of_ideal"], row["error"] = median_and_error([each * job.budget / NUM_STEPS for each in speedups])
            row["computed"] = median(loop.computed / loop.total for loop in loops)
        yield row


def predicted_rows(full: float, reused: float, budgets: Sequence[int]) -> Iterator[dict[str, Any]]:
    """As loop_rows, for the default way, from the seconds of its steps."""
    yield dict(way=UNCACHED, budget=NUM_STEPS, loop=NUM_STEPS * full)
    for budget in budgets:
        loop = budget * full + (NUM_STEPS - budget) * reused
        share = budget * full / loop
        yield dict(way=DEFAULT_WAY, budget=budget, loop=loop, of_ideal=share, error=None, computed=share)


def median_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The median of `values` and its standard error, that of the mean times sqrt(pi / 2), as of normal numbers."""
    return median(values), math.sqrt(math.pi / 2 / len(values)) * stdev(values) if len(values) > 1 else None


def measure(preset: Preset, ways: Sequence[str], budgets: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    """All figures after each repeat."""
    pipe = benchmark_pipeline(preset)
    inputs = random_inputs(pipe, preset)
    jobs = [Job(UNCACHED, NUM_STEPS), *(Job(DEFAULT_WAY, budget) for budget in budgets)]
    jobs += [Job(RELEASED, min(budgets))] if RELEASED in ways else []
    result = machine_facts(pipe.execution_device, pipe.target_dtype) | dict(
        blocks=preset.blocks, image_tokens=preset.image_tokens
    )
    with fast_attention() as attention:
        # It warms the machine up, too.
        memory = {way: asdict(memory_of(pipe, inputs, way, SHORT)) for way in ways}
        result |= dict(attention=attention, residual_bytes=preset.residual_bytes(pipe.target_dtype), memory=memory)
        steps, loops = [], []
        for number in range(1, repeats + 1):
            direction = 1 if number % 2 else -1
            steps.append(short_loops(pipe, inputs, ways[::direction]))
            rows = step_rows(steps)
            if preset.whole_loops:
                loops.append(loops_in_turn(pipe, inputs, jobs[::direction]))
                of_loops = loop_rows(loops)
            else:
                of_loops = predicted_rows(rows[DEFAULT_WAY]["full_step"], rows[DEFAULT_WAY]["reused_step"], budgets)
            yield result | dict(repeats=number, steps=rows, loops=list(of_loops))


def machine_facts(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the figures belong to."""
    return provenance() | dict(
        machine=torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        dtype=str(dtype).removeprefix("torch."),
    )


def provenance() -> dict[str, str]:
    """What made the figures: the commit and the command."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    return dict(commit=commit, command=" ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]))


def record(path: Path, name: str, result: dict[str, Any]) -> None:
    """Write `result` under its name into a JSON file, beside what the file already holds."""
    results = json.loads(path.read_text()) if path.exists() else {}
    write_text(path, json.dumps(results | {name: result}, indent=1) + "\n")


def step_table(result: dict[str, Any]) -> Iterator[str]:
    """What every way's steps take and keep, as a Markdown table."""
    columns = ("full step", "reused step", "of a full one", "x released kit's")
    yield f"| | {' | '.join(columns)} | kept, x residual | after the loop | peak above uncached |"
    yield "|---" * 8 + "|"
    for way, row in result["steps"].items():
        memory, residual = result["memory"][way], result["residual_bytes"]
        above = memory["peak"] - result["memory"][UNCACHED]["peak"]
        cells = [f"{row['full_step'] * 1e3:.1f} ms", "", "", ""]
        if way != UNCACHED:
            of_released = f"{row['of_released']:.2f}" if "of_released" in row else ""
            cells[1:] = f"{row['reused_step'] * 1e3:.2f} ms", f"{row['of_full']:.3%}", of_released
        cells += [f"{size / residual:.2f}" for size in (memory["held"], memory["after"], above)]
        yield f"| {way} | {' | '.join(cells)} |"


def loop_table(result: dict[str, Any]) -> Iterator[str]:
    """Whole loops beside the uncached one, as a Markdown table."""
    yield "| | B | loop | speed-up | of N/B | computed steps |"
    yield "|---" * 6 + "|"
    for row in result["loops"]:
        cells = [row["way"], str(row["budget"]), f"{row['loop']:.2f} s", "", "", ""]
        if "of_ideal" in row:
            error = "" if row["error"] is None else f" ± {row['error']:.1%}"
            speedup = row["of_ideal"] * NUM_STEPS / row["budget"]
            cells[3:] = f"{speedup:.2f}x", f"{row['of_ideal']:.1%}{error}", f"{row['computed']:.1%}"
        yield f"| {' | '.join(cells)} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="what to compare (default: all)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[25, 20, 15, 10], help="computed steps of 50")
    parser.add_argument("--repeats", type=int, default=5, help="(default: 5)")
    parser.add_argument("--output", type=Path, help="also write the figures into this JSON, under the preset's name")
    args = parser.parse_args()
    if args.repeats < 1 or not all(1 < budget < NUM_STEPS for budget in args.budgets):
        parser.error(f"--repeats must be at least 1 and --budgets from 2 to {NUM_STEPS - 1}")
    if not {UNCACHED, DEFAULT_WAY} <= set(args.ways):
        parser.error(f'--ways must name "{UNCACHED}" and "{DEFAULT_WAY}"')
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")
    return args


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(0)
    # As generate.py does: at 720p little room is left.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    initialize_sequence_parallel()
    for result in measure(PRESETS[args.preset], args.ways, args.budgets, args.repeats):
        print(f"repeat {result['repeats']} of {args.repeats}", flush=True)
        if args.output:
            record(args.output, args.preset, result)
    facts = ("machine", "threads", "torch", "dtype", "attention", "blocks", "image_tokens", "residual_bytes")
    print(", ".join(f"{name} {result[name]}" for name in facts))
    print(*step_table(result), "", *loop_table(result), sep="\n")


if __name__ == "__main__":
    main()
