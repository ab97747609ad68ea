"""Time a reused step and count what the cache holds: this kit beside angelslim's TeaCacheHelper, in one process.

    python scripts/benchmark.py tiny                         # PYTHONPATH = a HunyuanVideo-1.5 tree with the kit
    python scripts/benchmark.py cpu --output cpu.json        # 54 blocks, 2,268 tokens: about 15 minutes on two cores
    python scripts/benchmark.py 720p --output 720p.json      # true geometry, random weights, on a GPU

Both caches run the same mask in the same denoising loop on the same transformer. A repeat runs every loop once, all 50
steps: uncached, and each cache at each budget. Loops take turns, a tenth of their computed steps at a time, and ratios
are taken within a repeat: a machine that slows down for a minute slows all loops down. Figures are medians over
repeats; that of N/B comes with its standard error. An interrupted run reports the repeats that it has finished.

A full step of the GPU presets takes up to a minute: there a repeat runs an uncached step, and a computed and three
reused ones with each cache, and the loops are predicted, B full steps and N - B reused ones. At some 45 s a step, which
is an estimate, ten minutes of one H100 are enough for --repeats 2 of the 720p preset.

TeaCacheHelper is what the released LeMiCa kit installs (pip install --no-deps angelslim==0.2.2); in the cpu preset it
runs at the smallest budget only, where its reused steps weigh most, and the other budgets are compared with its reused
step there.

On a CPU attention goes through PyTorch's fused kernel (scripts/demo_attention.py), because upstream's flex_attention is
uncompiled there: a full step of the cpu preset takes ten times as long, and every overhead looks small beside it. The
output says which one ran.
"""

import argparse
import gc
import json
import math
import os
import signal
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from angelslim_caches import import_angelslim_caches
from benchmark_figures import UNCACHED, Job, Loop, Memory, Repeat, print_table, printed_steps, summary
from benchmark_models import NUM_STEPS, PRESETS, benchmark_pipeline, random_inputs
from demo_attention import fused_attention
from hyvideo.commons.infer_state import StepMask
from hyvideo.pipelines.hunyuan_video_pipeline import (
    DenoiseInputs,
    HunyuanVideo_1_5_Pipeline,
    StepCache,
    Stopwatch,
    initialize_sequence_parallel,
)
from peak_memory import peak_memory

# Both caches fill up, are used, filled anew and used again: as much as they ever hold.
WARM_UP = (True, True, False, True, False, True)
# What is run where whole loops would take too long; and the fewest steps in which the released kit's cache, too, fills
# while it is full.
FEW_STEPS = (True, False, False, False)
REFILLED = (True, False, True, False)
# Loops take turns after each of so many parts.
PARTS = 10

T = TypeVar("T")


class MeasuredCache(StepCache):
    """Notes the largest number of bytes that was held after a step."""

    held = 0

    def note(self) -> None:
        self.held = max(self.held, unique_bytes(self.kept))


def unique_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the storages behind `tensors`, each counted once."""
    storages = {tensor.untyped_storage() for tensor in tensors if tensor is not None}
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def tensors_of_helper(helper) -> list[torch.Tensor | None]:
    """Everything that a TeaCacheHelper keeps."""
    outputs = [tensor for output in helper.cached_output.values() for tensor in output]
    return [*outputs, helper.cached_input, helper.previous_residual]


@contextmanager
def teacache(pipe: HunyuanVideo_1_5_Pipeline, mask: StepMask) -> Iterator:
    """The released kit's way: wrappers around every block, told which steps to compute."""
    computed = {step for step, runs in enumerate(mask) if runs}
    helper = import_angelslim_caches().TeaCacheHelper(
        double_blocks=pipe.transformer.double_blocks, no_cache_steps=computed
    )
    helper.enable()
    pipe.cache_helper = helper
    try:
        yield helper
    finally:
        pipe.cache_helper = None
        helper.disable()


def whole(mask: StepMask) -> StepMask:
    """`mask` for all steps: what would come after it is computed."""
    return mask + (True,) * (NUM_STEPS - len(mask))


def memory_of_kit(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, mask: StepMask) -> Memory:
    cache = MeasuredCache(pipe.transformer)
    with peak_memory(pipe.execution_device) as memory:
        pipe.denoise(inputs, mask=whole(mask), stop=len(mask), cache=cache, on_step=lambda *_: cache.note())
    return Memory(cache.held, unique_bytes(cache.kept), memory.peak)


def memory_of_released(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, mask: StepMask) -> Memory:
    held = 0
    with teacache(pipe, mask) as helper:

        def note(*_) -> None:
            nonlocal held
            held = max(held, unique_bytes(tensors_of_helper(helper)))

        with peak_memory(pipe.execution_device) as memory:
            pipe.denoise(inputs, mask=whole(()), stop=len(mask), on_step=note)
        # The kit clears what it can reach; count what the helper itself still holds.
        return Memory(held, unique_bytes(tensors_of_helper(helper)), memory.peak)


def memory_by_way(
    pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, masks: dict[str, StepMask]
) -> dict[str, Memory]:
    """What every way needs, "released" missing where the device has too little for it. It warms the machine up, too."""
    memory = {way: memory_of_kit(pipe, inputs, masks[way]) for way in ("uncached", "kit")}
    if released := attempt(lambda: memory_of_released(pipe, inputs, masks["released"])):
        memory["released"] = released
    return memory


def attempt(action: Callable[[], T]) -> T | None:
    """What `action` returns; None where the device's memory is too small, and then all that it held is free again."""
    try:
        return action()
    except RuntimeError as error:
        # OutOfMemoryError is one. Libraries that allocate past PyTorch's allocator say it in words of their own.
        if not any(words in str(error) for words in ("out of memory", "ALLOC_FAILED")):
            raise
        print("the released kit's cache does not fit into the device's memory: on without it")
    # Not in the handler: there the error still holds the tensors of every frame that it came through.
    gc.collect()
    torch.cuda.empty_cache()
    return None


def cut(mask: StepMask, parts: int) -> list[range]:
    """The steps of `mask` in so many runs, each from a computed step on, with as many of these, give or take one."""
    computed = [step for step, runs in enumerate(mask) if runs]
    starts = [computed[part * len(computed) // parts] for part in range(parts)]
    return [range(*ends) for ends in pairwise([*starts, len(mask)])]


class TimedLoop:
    """One loop, run a part at a time. Nothing but the clock runs beside it: memory was counted in the warm-up."""

    def __init__(self, pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, way: str, mask: StepMask):
        self.pipe, self.inputs, self.mask = pipe, inputs, mask
        self.released = way == "released"
        self.latents = inputs.noise
        self.loop_seconds = 0.0
        self.step_seconds: list[float] = []
        self.retries = 0

    def run(self, steps: range) -> None:
        """The next steps, of which the first is computed."""
        clock = Stopwatch(self.pipe.execution_device)
        retries = allocator_retries(self.pipe.execution_device)
        caching = teacache(self.pipe, self.mask[steps.start : steps.stop]) if self.released else nullcontext()
        # The helper decides by itself what to skip: for the kit every one of its steps is a computed one.
        mask = whole(() if self.released else self.mask)
        with caching, clock.stage("loop"):
            self.latents = self.pipe.denoise(
                self.inputs, clock, mask=mask, start=steps.start, stop=steps.stop, latents=self.latents
            )
        self.loop_seconds += clock.stages["loop"]
        self.step_seconds += clock.step_seconds()
        self.retries += allocator_retries(self.pipe.execution_device) - retries

    def figures(self) -> Loop:
        seconds = list(zip(self.step_seconds, self.mask, strict=True))
        reused = [second for second, computed in seconds if not computed]
        computed = [second for second, computed in seconds if computed]
        return Loop(
            # The first step pays for warming up, if there are others.
            full_step=statistics.median(computed[1:] or computed),
            computed=sum(computed),
            reused_step=statistics.median(reused) if reused else None,
            loop=self.loop_seconds,
            retries=self.retries,
        )


def timed(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, way: str, mask: StepMask) -> Loop:
    """A loop of as many steps as `mask` has, without a break."""
    loop = TimedLoop(pipe, inputs, way, mask)
    loop.run(range(len(mask)))
    return loop.figures()


def allocator_retries(device: torch.device) -> int:
    return torch.cuda.memory_stats()["num_alloc_retries"] if device.type == "cuda" else 0


def predicted(few: Loop, budget: int) -> Loop:
    """The whole loop at a budget, from the steps of a short one."""
    computed = budget * few.full_step
    reused = (NUM_STEPS - budget) * few.reused_step if budget < NUM_STEPS else 0.0
    return replace(few, computed=computed, loop=computed + reused)


def jobs_of_repeat(budgets: list[int], released_once: bool) -> list[Job]:
    """Every loop of a repeat; the released kit's at the smallest budget only, if that is asked for."""
    jobs = [UNCACHED]
    for budget in budgets:
        jobs.append(Job("kit", budget))
        if not released_once or budget == min(budgets):
            jobs.append(Job("released", budget))
    return jobs


def run_repeat(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, jobs: list[Job]) -> Repeat:
    """Every job's whole loop, all of them in turn."""
    loops = {job: TimedLoop(pipe, inputs, job.way, job.mask) for job in jobs}
    parts = {job: cut(job.mask, PARTS) for job in jobs}
    for number in range(PARTS):
        # There and back, so that none is always the first.
        for job in jobs[::-1] if number % 2 else jobs:
            loops[job].run(parts[job][number])
    figures = {job: loop.figures() for job, loop in loops.items()}
    for job, loop in figures.items():
        print(*printed_steps(f"{job.way} B={job.budget}", loop), flush=True)
    return figures


def predict_repeat(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, jobs: list[Job]) -> Repeat:
    """Every job's loop as predicted from FEW_STEPS with its cache; uncached ones from a single step."""
    few = {}
    for way in dict.fromkeys(job.way for job in jobs):
        mask = FEW_STEPS[:1] if way == UNCACHED.way else FEW_STEPS
        few[way] = timed(pipe, inputs, way, mask)
        print(*printed_steps(f"{way}, {len(mask)} steps", few[way]), flush=True)
    return {job: predicted(few[job.way], job.budget) for job in jobs}


def run(args: argparse.Namespace) -> None:
    """Measure, write the figures after every repeat, and print them."""
    # Before anything takes time: it is missing if angelslim is not installed.
    import_angelslim_caches()
    preset = PRESETS[args.preset]
    pipe = benchmark_pipeline(preset)
    inputs = random_inputs(pipe, preset)
    jobs = jobs_of_repeat(args.budgets, preset.released_once)
    repeats: list[Repeat] = []
    if preset.whole_loops:
        one_repeat = run_repeat
        warm_up = dict(uncached=(True,) * len(WARM_UP), kit=WARM_UP, released=WARM_UP)
    else:
        one_repeat = predict_repeat
        warm_up = dict(uncached=(True,), kit=FEW_STEPS, released=REFILLED)
    memory: dict[str, Memory] = {}

    def figures() -> dict:
        return summary(preset, pipe, memory, repeats, args.other_seconds)

    try:
        memory |= memory_by_way(pipe, inputs, warm_up)
        print(*(f"memory, {way}: {each}" for way, each in memory.items()), sep="\n", flush=True)
        for number in range(args.repeats):
            print(f"repeat {number + 1} of {args.repeats}", flush=True)
            jobs = [job for job in jobs if job.way in memory]
            action = partial(one_repeat, pipe, inputs, jobs[::-1] if number % 2 else jobs)
            repeat = attempt(action) if "released" in memory else action()
            if repeat is None:
                del memory["released"]
                continue
            repeats.append({job: repeat[job] for job in jobs})
            if args.output:
                args.output.write_text(json.dumps(figures(), indent=2))
    except KeyboardInterrupt:
        print(f"interrupted after {len(repeats)} whole repeats")
    if repeats:
        print_table(preset, figures())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--budgets", type=int, nargs="+", default=[25, 20, 15, 10], help="computed steps of 50")
    parser.add_argument("--repeats", type=int, default=5, help="runs of every loop (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument(
        "--other-seconds",
        type=float,
        help="also predict whole runs, of which so much depends on no budget on this machine",
    )
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    if args.repeats < 1 or not all(1 < budget < NUM_STEPS for budget in args.budgets):
        parser.error(f"--repeats must be at least 1 and --budgets from 2 to {NUM_STEPS - 1}")
    if len(set(args.budgets)) < len(args.budgets):
        parser.error("--budgets must differ from each other")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads must be at least 1")
    if args.other_seconds is not None and not 0 <= args.other_seconds < math.inf:
        parser.error("--other-seconds must be a number from 0 on")
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # As generate.py does: at 720p little room is left beside the released kit's cache.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # What a time limit sends: it ends as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    initialize_sequence_parallel()
    with nullcontext() if torch.cuda.is_available() else fused_attention():
        run(args)


if __name__ == "__main__":
    main()
