"""Time a reused step and count what the cache holds: this kit beside angelslim's TeaCacheHelper, in one process.

    python scripts/benchmark.py tiny                         # PYTHONPATH = a HunyuanVideo-1.5 tree with the kit
    python scripts/benchmark.py cpu --output cpu.json        # 54 blocks, 2,268 tokens: about 15 minutes on two cores
    python scripts/benchmark.py 720p --output 720p.json      # true geometry, random weights, on a GPU

Both caches run the same mask in the same denoising loop on the same transformer. A repeat runs every loop once, all 50
steps: uncached, and each cache at each budget; every other repeat runs them backwards. Speed-ups and other ratios are
taken within a repeat, so that a machine that slows down does not look like a cache that does; figures are medians over
repeats. Where loops of the same work still differ by more than what is to be shown, two figures tell: the share of a
cached loop's own time that its computed steps take, which is what the loop keeps of N/B if such steps take as long as
uncached ones; and how long they take beside uncached ones of the same loop. An interrupted run reports the repeats that
it has finished. A full step of the GPU presets takes up to a minute: there a repeat runs a computed and three reused
steps with each cache, and the loops are predicted, B full steps and N - B reused ones.

TeaCacheHelper is what the released LeMiCa kit
installs (pip install --no-deps angelslim==0.2.2); in the cpu preset it runs at the smallest budget only, where its
reused steps weigh most, and the other budgets are compared with its reused step there.

On a CPU attention goes through PyTorch's fused kernel (scripts/demo_attention.py), because upstream's flex_attention is
uncompiled there: a full step of the cpu preset takes ten times as long, and every overhead looks small beside it. The
output says which one ran.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from angelslim_caches import import_angelslim_caches
from demo_attention import fused_attention
from hyvideo.commons import maybe_fallback_attn_mode
from hyvideo.commons.infer_state import StepMask, step_mask
from hyvideo.models.transformers.hunyuanvideo_1_5_transformer import HunyuanVideo_1_5_DiffusionTransformer
from hyvideo.pipelines.hunyuan_video_pipeline import (
    DenoiseInputs,
    HunyuanVideo_1_5_Pipeline,
    StepCache,
    Stopwatch,
    initialize_sequence_parallel,
)
from make_tiny_checkpoint import TinyConfig, transformer_config, write_checkpoint

MIB = 1024**2
NUM_STEPS = 50
BLOCKS = 54
# Both caches fill up, are used, filled anew and used again: as much as they ever hold.
WARM_UP = (True, True, False, True, False, True)
# What is run where whole loops would take too long.
FEW_STEPS = (True, False, False, False)
# After a reused step, among computed ones, before a reused one, reused: computed steps of all kinds side by side.
ALL_KINDS = (True, True, True, False) * (NUM_STEPS // 4)
# Targets: of the released kit's reused step; computed steps' share of the loop, at full depth.
MOST_OF_RELEASED = 0.3
LEAST_COMPUTED = 0.98


@dataclass(frozen=True)
class Preset:
    """A transformer and its input: latent frames, height and width; text, glyph and vision tokens; CFG batch.

    most_of_full is the target for a reused step, as a share of a full one. Without whole_loops a repeat runs FEW_STEPS.
    """

    blocks: int
    hidden: int
    heads: int
    latents: tuple[int, int, int]
    text_tokens: int
    glyph_tokens: int
    vision_tokens: int
    batch: int
    text_width: int = 64
    vision_width: int = 32
    mlp_ratio: float = 4.0
    most_of_full: float | None = None
    released_once: bool = False
    whole_loops: bool = True

    @property
    def image_tokens(self) -> int:
        frames, height, width = self.latents
        return frames * height * width


PRESETS = {
    "tiny": Preset(4, 64, 4, (5, 6, 6), 64, 16, 16, batch=2),
    "cpu": Preset(BLOCKS, 64, 2, (7, 18, 18), 64, 16, 16, batch=1, most_of_full=0.002, released_once=True),
    "480p": Preset(
        BLOCKS, 2048, 16, (31, 30, 53), 1000, 256, 729, batch=2, text_width=3584, vision_width=1152, whole_loops=False
    ),
    "720p": Preset(
        BLOCKS,
        2048,
        16,
        (31, 45, 80),
        1000,
        256,
        729,
        batch=2,
        text_width=3584,
        vision_width=1152,
        most_of_full=0.001,
        whole_loops=False,
    ),
}


@dataclass(frozen=True)
class Job:
    """One loop of a repeat: which cache, at how many computed steps; "uncached" computes all of them."""

    way: str
    budget: int

    @property
    def mask(self) -> StepMask:
        return (True,) * NUM_STEPS if self.budget == NUM_STEPS else step_mask(self.budget, NUM_STEPS)


@dataclass(frozen=True)
class Loop:
    """What one loop took, in seconds: a step of each kind as medians, and all computed steps together; peak in bytes,
    None on a CPU."""

    full_step: float
    computed: float
    reused_step: float | None
    loop: float
    peak_bytes: int | None = None


Repeat = dict[Job, Loop]
UNCACHED = Job("uncached", NUM_STEPS)


@dataclass(frozen=True)
class Held:
    """Bytes of unique storages: the most that is held after a step, and what is left after the loop."""

    during: int
    after: int


class MeasuredCache(StepCache):
    """Notes the largest number of bytes that was held after a step."""

    held = 0

    def note(self) -> None:
        self.held = max(self.held, unique_bytes(self.kept))


def unique_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the storages behind `tensors`, each counted once."""
    storages = {tensor.untyped_storage() for tensor in tensors if tensor is not None}
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def tensors_of_helper(helper) -> list[torch.Tensor | None]:
    """Everything that a TeaCacheHelper keeps."""
    outputs = [tensor for output in helper.cached_output.values() for tensor in output]
    return [*outputs, helper.cached_input, helper.previous_residual]


def random_transformer(preset: Preset, device: torch.device, dtype: torch.dtype):
    """Upstream's transformer at the preset's size; weights drawn where it runs, small enough to stay finite."""
    sizes = TinyConfig(
        preset.hidden, preset.heads, preset.blocks, preset.mlp_ratio, text_width=preset.text_width,
        vision_width=preset.vision_width,
    )  # fmt: skip
    attention = {"attn_mode": "flash"} if device.type == "cuda" else {}
    config = transformer_config("480p_t2v", sizes) | attention
    with torch.device("meta"):
        net = HunyuanVideo_1_5_DiffusionTransformer(**config)
    net = net.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    for parameter in net.parameters():
        parameter.normal_(0, 0.02)
    return net


def pipeline_around(net) -> HunyuanVideo_1_5_Pipeline:
    """The kit's pipeline with `net` in it; every other part is tiny, because the denoising loop needs none."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), ["480p_t2v"], TinyConfig(blocks=1))
        pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(folder, "480p_t2v")
    pipe.register_modules(transformer=net)
    pipe.set_progress_bar_config(disable=True)
    pipe._guidance_rescale = 0.0
    return pipe


def random_inputs(pipe: HunyuanVideo_1_5_Pipeline, preset: Preset) -> DenoiseInputs:
    """Inputs of the denoising loop with random numbers in them, text lengths as the preset says."""
    pipe._guidance_scale = 6.0 if preset.batch == 2 else 1.0
    device, dtype, batch = pipe.execution_device, pipe.target_dtype, preset.batch
    scheduler = pipe._create_scheduler(9.0)
    scheduler.set_timesteps(NUM_STEPS, device=device)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    def mask(tokens: int) -> torch.Tensor:
        return torch.ones(batch, tokens, device=device, dtype=torch.int64)

    glyph = dict(byt5_text_states=draw(batch, preset.glyph_tokens, 1472), byt5_text_mask=mask(preset.glyph_tokens))
    return DenoiseInputs(
        noise=draw(1, 32, *preset.latents),
        condition=draw(batch, 33, *preset.latents).float(),
        timesteps=scheduler.timesteps,
        scheduler=scheduler,
        mask=(True,) * NUM_STEPS,
        transformer_kwargs=dict(
            **pipe.rotary_tables(preset.latents),
            text_states=draw(batch, preset.text_tokens, preset.text_width),
            text_states_2=None,
            encoder_attention_mask=mask(preset.text_tokens),
            vision_states=draw(batch, preset.vision_tokens, preset.vision_width),
            mask_type="i2v",
            guidance=None,
            return_dict=False,
            extra_kwargs=glyph,
        ),
        step_kwargs={},
    )


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


def held_by_kit(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, mask: StepMask) -> Held:
    cache = MeasuredCache(pipe.transformer)
    pipe.denoise(inputs, mask=whole(mask), stop=len(mask), cache=cache, on_step=lambda *_: cache.note())
    return Held(cache.held, unique_bytes(cache.kept))


def held_by_released(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, mask: StepMask) -> Held:
    held = 0
    with teacache(pipe, mask) as helper:

        def note(*_) -> None:
            nonlocal held
            held = max(held, unique_bytes(tensors_of_helper(helper)))

        pipe.denoise(inputs, mask=whole(()), stop=len(mask), on_step=note)
        # The kit clears what it can reach; count what the helper itself still holds.
        return Held(held, unique_bytes(tensors_of_helper(helper)))


def timed(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, way: str, mask: StepMask) -> Loop:
    """One loop. Nothing but the clock runs beside it: what is held was counted in the warm-up."""
    clock = Stopwatch(pipe.execution_device)
    released = way == "released"
    if clock.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    # The helper decides by itself what to skip: for the kit every one of its steps is a computed one.
    with teacache(pipe, mask) if released else nullcontext(), clock.stage("loop"):
        pipe.denoise(inputs, clock, mask=whole(() if released else mask), stop=len(mask))
    seconds = list(zip(clock.step_seconds(), mask, strict=True))
    reused = [second for second, computed in seconds if not computed]
    computed = [second for second, computed in seconds if computed]
    return Loop(
        # The first step pays for warming up, if there are others.
        full_step=statistics.median(computed[1:] or computed),
        computed=sum(computed),
        reused_step=statistics.median(reused) if reused else None,
        loop=clock.stages["loop"],
        peak_bytes=torch.cuda.max_memory_allocated() if clock.on_gpu else None,
    )


def predicted(few: Loop, budget: int) -> Loop:
    """The whole loop at a budget, from the steps of a short one."""
    computed = budget * few.full_step
    return replace(few, computed=computed, loop=computed + (NUM_STEPS - budget) * few.reused_step)


def beside_reused(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, loops: int = 2) -> list[float]:
    """Computed steps next to a reused one against one among computed ones: a ratio for each such group of steps."""
    ratios = []
    for _ in range(loops):
        clock = Stopwatch(pipe.execution_device)
        pipe.denoise(inputs, clock, mask=whole(ALL_KINDS), stop=len(ALL_KINDS))
        seconds = clock.step_seconds()
        # The first step pays for warming up: a group ends with the step after the reused one.
        for first in range(1, len(seconds) - 3, 4):
            among, before, _, after = seconds[first : first + 4]
            ratios.append((before + after) / 2 / among)
    return ratios


def jobs_of_repeat(budgets: list[int], released_once: bool) -> list[Job]:
    """Every loop of a repeat; the released kit's at the smallest budget only, if that is asked for."""
    jobs = [UNCACHED]
    for budget in budgets:
        jobs.append(Job("kit", budget))
        if not released_once or budget == min(budgets):
            jobs.append(Job("released", budget))
    return jobs


def run_repeat(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, jobs: list[Job]) -> Repeat:
    """Every job's whole loop, in the order given."""
    loops = {}
    for job in jobs:
        loops[job] = timed(pipe, inputs, job.way, job.mask)
        announce(f"{job.way} B={job.budget}", loops[job])
    return loops


def predict_repeat(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, jobs: list[Job]) -> Repeat:
    """Every job's loop as predicted from FEW_STEPS with its cache; uncached ones from the kit's full step."""
    few = {}
    for way in dict.fromkeys(job.way for job in jobs if job != UNCACHED):
        few[way] = timed(pipe, inputs, way, FEW_STEPS)
        announce(f"{way}, {len(FEW_STEPS)} steps", few[way])
    # Without a cache no peak was measured: it is that of a loop that caches.
    loops = {job: predicted(few[job.way], job.budget) for job in jobs if job != UNCACHED}
    return {UNCACHED: replace(predicted(few["kit"], NUM_STEPS), reused_step=None, peak_bytes=None)} | loops


def announce(name: str, loop: Loop) -> None:
    reused = "" if loop.reused_step is None else f", reused step {loop.reused_step * 1e3:.3f} ms"
    print(f"  {name}: {loop.loop:.2f} s, full step {loop.full_step * 1e3:.1f} ms{reused}", flush=True)


def figures_of(job: Job, repeats: list[Repeat]) -> dict:
    """Medians over repeats of one loop's seconds and of its ratios to other loops of the same repeat."""

    def median(value) -> float:
        return statistics.median(value(repeat) for repeat in repeats)

    figures = {name: median(lambda repeat, name=name: getattr(repeat[job], name)) for name in ("full_step", "loop")}
    figures["peak_bytes"] = max(repeat[job].peak_bytes or 0 for repeat in repeats) or None
    if job == UNCACHED:
        return figures
    speedup = median(lambda repeat: repeat[UNCACHED].loop / repeat[job].loop)
    figures |= dict(
        reused_step=median(lambda repeat: repeat[job].reused_step),
        of_full=median(lambda repeat: repeat[job].reused_step / repeat[job].full_step),
        speedup=speedup,
        of_ideal=speedup * job.budget / NUM_STEPS,
        share=median(lambda repeat: repeat[job].computed / repeat[job].loop),
    )
    released = [other for other in repeats[0] if other.way == "released"]
    if job.way == "kit" and released:
        same = next((other for other in released if other.budget == job.budget), released[0])
        figures["of_released"] = median(lambda repeat: repeat[job].reused_step / repeat[same].reused_step)
    return figures


def missed_targets(preset: Preset, result: dict) -> list[str]:
    """The targets that the kit's figures miss, in words; those that no figure was measured for are left out."""
    missed = []
    # Steps that seem faster next to reused ones are noise.
    beside = max(1.0, result["beside_reused"]["median"] if result["beside_reused"] else 1.0)
    for row in result["rows"]:
        if row["way"] != "kit":
            continue
        if row.get("of_released", 0) > MOST_OF_RELEASED:
            missed.append(f"B={row['budget']}: reused step {row['of_released']:.2f}x the released kit's")
        if preset.most_of_full is not None and row["of_full"] > preset.most_of_full:
            missed.append(f"B={row['budget']}: reused step {row['of_full']:.2%} of a full step")
        if preset.blocks == BLOCKS and row["share"] / beside < LEAST_COMPUTED:
            missed.append(f"B={row['budget']}: loop speed-up {row['share'] / beside:.1%} of N/B")
    held = result["held"]["kit"]
    if held["during"] > result["residual_bytes"] or held["after"]:
        missed.append(
            f"{held['during'] / result['residual_bytes']:.2f}x the residual held, {held['after']} bytes after"
        )
    return missed


def summary(
    preset: Preset, pipe: HunyuanVideo_1_5_Pipeline, held: dict[str, Held], beside: list[float], repeats: list[Repeat]
) -> dict:
    on_gpu = pipe.execution_device.type == "cuda"
    fused = "PyTorch's fused kernel (scaled_dot_product_attention)"
    result = dict(
        machine=torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        attention=maybe_fallback_attn_mode(pipe.transformer.attn_mode) if on_gpu else fused,
        preset=asdict(preset),
        image_tokens=preset.image_tokens,
        residual_bytes=preset.batch * preset.image_tokens * preset.hidden * torch.finfo(pipe.target_dtype).bits // 8,
        held={way: asdict(each) for way, each in held.items()},
        beside_reused=dict(median=statistics.median(beside), ratios=beside) if beside else None,
        rows=[asdict(job) | figures_of(job, repeats) for job in repeats[0]],
        repeats=[[asdict(job) | asdict(loop) for job, loop in repeat.items()] for repeat in repeats],
    )
    return result | {"missed": missed_targets(preset, result)}


def print_table(preset: Preset, result: dict) -> None:
    residual = result["residual_bytes"]
    print(
        f"{result['machine']}, {result['threads']} threads, torch {result['torch']}, attention: {result['attention']}"
    )
    loops = "" if preset.whole_loops else ", loops predicted from single steps"
    repeats = f"{len(result['repeats'])} repeats{loops}"
    print(f"{result['image_tokens']} tokens, residual {residual / MIB:.1f} MiB, {repeats}")
    print(
        "  B  cache      full step   reused step  of full  of released    loop speed-up  of N/B computed   held  after"
    )
    for row in result["rows"]:
        line = f"{row['budget']:>3}  {row['way']:<8} {row['full_step'] * 1e3:8.1f} ms "
        if row["way"] == "uncached":
            print(f"{line}{'':38}{row['loop']:8.2f} s")
            continue
        of_released = f"{row['of_released']:.2f}x" if "of_released" in row else ""
        peak = f"  peak {row['peak_bytes'] / MIB / 1024:.1f} GiB" if row["peak_bytes"] else ""
        held = [result["held"][row["way"]][name] / residual for name in ("during", "after")]
        print(
            f"{line}{row['reused_step'] * 1e3:10.3f} ms {row['of_full']:8.3%} {of_released:>12} "
            f"{row['loop']:8.2f} s {row['speedup']:.2f}x {row['of_ideal']:7.1%} {row['share']:8.1%} "
            f"{held[0]:5.2f}x {held[1]:5.2f}x{peak}"
        )
    most, least = ("" if preset.most_of_full is None else f"{preset.most_of_full:.3%}"), ""
    if preset.blocks == BLOCKS:
        least = f"{LEAST_COMPUTED:.1%}"
    print(f"     target{'':28}{most:>8} {MOST_OF_RELEASED:>11.2f}x {'':24} {least:>8} {1:5.2f}x {0:5.2f}x")
    if result["beside_reused"]:
        print(f"a computed step next to a reused one: {result['beside_reused']['median']:.3f}x one among computed ones")
    print("missed: " + ("; ".join(result["missed"]) or "none"))


def whole_runs(result: dict, other_seconds: float) -> Iterator[str]:
    """T(B) = what depends on no budget + B full steps + N - B reused ones, and the speed-up that this is."""
    full = result["rows"][0]["full_step"]
    uncached = other_seconds + NUM_STEPS * full
    yield f"whole runs predicted with {other_seconds:g} s beside denoising: uncached {uncached:.0f} s"
    for row in result["rows"][1:]:
        seconds = other_seconds + row["budget"] * full + (NUM_STEPS - row["budget"]) * row["reused_step"]
        yield f"{row['budget']:>3}  {row['way']:<8} {seconds:8.0f} s {uncached / seconds:.2f}x"


def run(args: argparse.Namespace) -> None:
    preset = PRESETS[args.preset]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pipe = pipeline_around(random_transformer(preset, device, dtype))
    inputs = random_inputs(pipe, preset)
    jobs = jobs_of_repeat(args.budgets, preset.released_once)
    warm_up, one_repeat = (WARM_UP, run_repeat) if preset.whole_loops else (FEW_STEPS, predict_repeat)
    held = {"kit": held_by_kit(pipe, inputs, warm_up)}
    try:
        held["released"] = held_by_released(pipe, inputs, warm_up)
    except torch.cuda.OutOfMemoryError:
        print("the released kit's cache does not fit into the device's memory: measured without it")
        torch.cuda.empty_cache()
        jobs = [job for job in jobs if job.way != "released"]
    beside = beside_reused(pipe, inputs) if preset.whole_loops else []
    repeats: list[Repeat] = []
    try:
        for number in range(args.repeats):
            print(f"repeat {number + 1} of {args.repeats}", flush=True)
            repeats.append(one_repeat(pipe, inputs, jobs[::-1] if number % 2 else jobs))
            if args.output:
                args.output.write_text(json.dumps(summary(preset, pipe, held, beside, repeats), indent=2))
    except KeyboardInterrupt:
        print(f"interrupted after {len(repeats)} whole repeats")
    if repeats:
        result = summary(preset, pipe, held, beside, repeats)
        print_table(preset, result)
        if args.other_seconds is not None:
            print(*whole_runs(result, args.other_seconds), sep="\n")


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
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # As generate.py does: at 720p little room is left beside the released kit's cache.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    initialize_sequence_parallel()
    with nullcontext() if torch.cuda.is_available() else fused_attention():
        run(args)


if __name__ == "__main__":
    main()
