"""What scripts/benchmark.py makes of its measurements: medians over repeats, targets, a table, predicted whole runs."""

import math
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from benchmark_models import BLOCKS, NUM_STEPS, Preset
from hyvideo.commons import maybe_fallback_attn_mode
from hyvideo.commons.infer_state import StepMask, step_mask
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline

MIB, GIB = 1024**2, 1024**3
# Targets: of the released kit's reused step; of the speed-up N/B, at full depth.
MOST_OF_RELEASED = 0.3
LEAST_OF_IDEAL = 0.98
ATTENTION = {"torch": "flex_attention (upstream's, without flash-attn)"}


@dataclass(frozen=True)
class Job:
    """One loop of a repeat: which cache, at how many computed steps; "uncached" computes all of them."""

    way: str
    budget: int

    @property
    def mask(self) -> StepMask:
        return (True,) * NUM_STEPS if self.budget == NUM_STEPS else step_mask(self.budget, NUM_STEPS)


UNCACHED = Job("uncached", NUM_STEPS)


@dataclass(frozen=True)
class Loop:
    """What one loop took, in seconds: a step of each kind as medians, and all computed steps together.

    retries: how often CUDA's allocator had to give memory back first, which takes time that is not the cache's.
    """

    full_step: float
    computed: float
    reused_step: float | None
    loop: float
    retries: int = 0


Repeat = dict[Job, Loop]


@dataclass(frozen=True)
class Memory:
    """Bytes: the most that is held from one step to the next, what is left of that after the loop, and the most alive
    at once beside weights and inputs. Held are unique storages."""

    held: int
    after: int
    peak: int


def machine(pipe: HunyuanVideo_1_5_Pipeline) -> dict[str, Any]:
    """What the figures belong to."""
    on_gpu = pipe.execution_device.type == "cuda"
    mode = maybe_fallback_attn_mode(pipe.transformer.attn_mode) if on_gpu else "sdpa"
    return dict(
        machine=torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        attention=ATTENTION.get(mode, mode) if on_gpu else "PyTorch's fused kernel (scaled_dot_product_attention)",
        dtype=str(pipe.target_dtype).removeprefix("torch."),
        weight_bytes=sum(weight.nbytes for weight in pipe.transformer.parameters()),
    )


def residual_bytes(preset: Preset, dtype: torch.dtype) -> int:
    return preset.batch * preset.image_tokens * preset.hidden * dtype.itemsize


def summary(
    preset: Preset,
    pipe: HunyuanVideo_1_5_Pipeline,
    memory: dict[str, Memory],
    repeats: list[Repeat],
    other_seconds: float | None = None,
) -> dict[str, Any]:
    """All figures, as JSON takes them."""
    result = machine(pipe) | dict(
        preset=asdict(preset),
        image_tokens=preset.image_tokens,
        residual_bytes=residual_bytes(preset, pipe.target_dtype),
        memory={way: asdict(each) for way, each in memory.items()},
        rows=[asdict(job) | figures_of(job, repeats) for job in repeats[-1]],
        repeats=[[asdict(job) | asdict(loop) for job, loop in repeat.items()] for repeat in repeats],
    )
    if other_seconds is not None:
        result["whole_runs"] = whole_runs(result["rows"], other_seconds)
    return result | {"missed": missed_targets(preset, result)}


def median_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The median of `values` and its standard error, that of the mean times sqrt(pi / 2), as of normal numbers."""
    error = math.sqrt(math.pi / 2 / len(values)) * statistics.stdev(values) if len(values) > 1 else None
    return statistics.median(values), error


def figures_of(job: Job, repeats: list[Repeat]) -> dict[str, float | None]:
    """Medians over repeats of one loop's seconds and of its ratios to other loops of the same repeat."""

    def median(value) -> float:
        return statistics.median(value(repeat) for repeat in repeats)

    figures = {name: median(lambda repeat, name=name: getattr(repeat[job], name)) for name in ("full_step", "loop")}
    if job == UNCACHED:
        return figures
    of_ideal, error = median_and_error(
        [repeat[UNCACHED].loop / repeat[job].loop * job.budget / NUM_STEPS for repeat in repeats]
    )
    figures |= dict(
        reused_step=median(lambda repeat: repeat[job].reused_step),
        of_full=median(lambda repeat: repeat[job].reused_step / repeat[job].full_step),
        speedup=of_ideal * NUM_STEPS / job.budget,
        of_ideal=of_ideal,
        of_ideal_error=error,
        share=median(lambda repeat: repeat[job].computed / repeat[job].loop),
    )
    # The last repeat has no job that another lacks: what does not fit into memory is left out from then on.
    released = [other for other in repeats[-1] if other.way == "released"]
    if job.way == "kit" and released:
        same = next((other for other in released if other.budget == job.budget), released[0])
        figures["of_released"] = median(lambda repeat: repeat[job].reused_step / repeat[same].reused_step)
    return figures


def whole_runs(rows: list[dict[str, Any]], other_seconds: float) -> list[dict[str, Any]]:
    """T(B) = what depends on no budget + B full steps + N - B reused ones, and the speed-up that this is."""
    full = rows[0]["full_step"]
    uncached = other_seconds + NUM_STEPS * full
    runs = []
    for row in rows:
        reused = (NUM_STEPS - row["budget"]) * row.get("reused_step", 0)
        seconds = other_seconds + row["budget"] * full + reused
        runs.append(dict(way=row["way"], budget=row["budget"], seconds=seconds, speedup=uncached / seconds))
    return runs


def missed_targets(preset: Preset, result: dict[str, Any]) -> list[str]:
    """The targets that the kit's figures miss, in words; those that no figure was measured for are left out."""
    missed = []
    for row in result["rows"]:
        if row["way"] != "kit":
            continue
        if row.get("of_released", 0) > MOST_OF_RELEASED:
            missed.append(f"B={row['budget']}: reused step {row['of_released']:.2f}x the released kit's")
        if preset.most_of_full is not None and row["of_full"] > preset.most_of_full:
            missed.append(f"B={row['budget']}: reused step {row['of_full']:.2%} of a full step")
        if preset.blocks == BLOCKS and row["of_ideal"] < LEAST_OF_IDEAL:
            missed.append(f"B={row['budget']}: loop speed-up {row['of_ideal']:.1%} of N/B")
    kit, residual = result["memory"]["kit"], result["residual_bytes"]
    if kit["held"] > residual or kit["after"]:
        missed.append(f"{kit['held'] / residual:.2f}x the residual held, {kit['after']} bytes after")
    # The residual, and one working tensor while the next one is made.
    more = kit["peak"] - result["memory"]["uncached"]["peak"]
    if more > 2 * residual:
        missed.append(f"peak {more / residual:.2f}x the residual above that of an uncached run")
    return missed


def print_table(preset: Preset, result: dict[str, Any]) -> None:
    """Everything but the repeats."""
    residual = result["residual_bytes"]
    print(
        f"{result['machine']}, {result['threads']} threads, torch {result['torch']}, {result['dtype']}, "
        f"attention: {result['attention']}"
    )
    loops = "" if preset.whole_loops else "; loops, N/B and computed share predicted from single steps"
    print(
        f"{result['image_tokens']} tokens, weights {result['weight_bytes'] / GIB:.1f} GiB, "
        f"residual {residual / MIB:.1f} MiB, {len(result['repeats'])} repeats{loops}"
    )
    print("  B  cache      full step   reused step  of full  of released    loop speed-up        of N/B computed")
    for row in result["rows"]:
        print(_line(row))
    most = "" if preset.most_of_full is None else f"{preset.most_of_full:.3%}"
    least = f"{LEAST_OF_IDEAL:.1%}" if preset.blocks == BLOCKS else ""
    print(f"     target{'':28}{most:>8} {MOST_OF_RELEASED:>11.2f}x {'':17}{least:>14}")
    print("memory, x residual    held  after   peak")
    for way, memory in result["memory"].items():
        print(f"  {way:<18}{memory['held'] / residual:6.2f} {memory['after'] / residual:6.2f} "
              f"{memory['peak'] / residual:6.2f}")  # fmt: skip
    for run in result.get("whole_runs", ()):
        print(f"whole run {run['budget']:>3}  {run['way']:<8} {run['seconds']:8.0f} s {run['speedup']:.2f}x")
    print("missed: " + ("; ".join(result["missed"]) or "none"))


def _line(row: dict[str, Any]) -> str:
    line = f"{row['budget']:>3}  {row['way']:<8} {row['full_step'] * 1e3:8.1f} ms "
    if row["way"] == UNCACHED.way:
        return f"{line}{'':38}{row['loop']:8.2f} s"
    of_released = f"{row['of_released']:.2f}x" if "of_released" in row else ""
    error = "" if row["of_ideal_error"] is None else f" ± {row['of_ideal_error']:.1%}"
    of_ideal = f"{row['of_ideal']:.1%}{error}"
    return (
        f"{line}{row['reused_step'] * 1e3:10.3f} ms {row['of_full']:8.3%} {of_released:>12} "
        f"{row['loop']:8.2f} s {row['speedup']:.2f}x {of_ideal:>14} {row['share']:8.1%}"
    )


def printed_steps(name: str, loop: Loop) -> Iterator[str]:
    """A loop in a line, while the benchmark runs."""
    reused = "" if loop.reused_step is None else f", reused step {loop.reused_step * 1e3:.3f} ms"
    yield f"  {name}: {loop.loop:.2f} s, full step {loop.full_step * 1e3:.1f} ms{reused}"
    if loop.retries:
        yield f"  memory was short: the allocator tried again {loop.retries} times, so these seconds are too many"
