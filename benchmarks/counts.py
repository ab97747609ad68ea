"""Count, without a GPU, what steps cost on one: products, bytes and memory at the true geometry.

    python -m benchmarks.counts 720p --output assets/measurements/counts.json     # from the repository's root

Upstream's transformer runs in the kit's denoising loop on the meta device, where tensors have shape and dtype but no
numbers: a step that made the host wait for a number would fail. Counted are the floating-point operations of matrix
products, convolutions and attention (all text tokens valid), and the bytes that every operator reads and writes, as if
none stayed in the GPU's caches from one operator to the next. Attention itself does not run, nor is what it needs for
itself in the peak, and CUDA's autocast is imitated. Launches of kernels and waits of the host are not counted.

These are counts, not measurements. The table divides them by a GPU's peak rates, for the share that a reused step
would have of a full one.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from hyvideo.models.transformers import hunyuanvideo_1_5_transformer
from hyvideo.models.transformers.modules import token_refiner
from hyvideo.pipelines.hunyuan_video_pipeline import (
    DenoiseInputs,
    HunyuanVideo_1_5_Pipeline,
    initialize_sequence_parallel,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loops import RELEASED, UNCACHED, Onlooker, caching, part_of
from benchmarks.memory import PeakMemory, unique_bytes
from benchmarks.models import PRESETS, Preset, meta_transformer, pipeline_around, random_inputs
from benchmarks.steps import provenance, record

GIB = 1024**3
WAYS = (UNCACHED, "residual + hold", "velocity + hold", RELEASED)
# Computed step 3 finds the cache full, and fills it again.
STEPS = (True, True, False, True, False)
FULL, REUSED = 3, 2
# NVIDIA's data sheet of the H100 SXM: dense bfloat16 operations and bytes of memory per second.
H100_OPERATIONS, H100_BYTES = 989e12, 3.35e12


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of a step, and bytes that its operators read and write."""

    operations: int
    traffic: int

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.operations - other.operations, self.traffic - other.traffic)

    @property
    def seconds(self) -> float:
        """At an H100's peak rates."""
        return max(self.operations / H100_OPERATIONS, self.traffic / H100_BYTES)


@dataclass(frozen=True)
class CountedRun:
    """A computed step with a full cache and a reused one; bytes kept between steps, and the most alive at once."""

    full: Cost
    reused: Cost | None
    held: int
    peak: int


class Traffic(TorchDispatchMode):
    """Sums up the bytes that operators read and write; views and empty tensors touch none."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not (func.is_view or func is torch.ops.aten._unsafe_view.default or "empty" in func.__name__):
            tensors = (leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor))
            self.total += sum(map(distinct_bytes, tensors))
        return result


def distinct_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements of `tensor`, those of expanded dimensions once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
    return math.prod(sizes) * tensor.itemsize


class CountedAttention:
    """In the place of upstream's attention: counts the products, and makes an output without the scores."""

    operations = 0

    def joint(self, query, key, value, *_, **__) -> torch.Tensor:
        """That of the blocks, on pairs (image, text)."""
        return self.alone(*(torch.cat(pair, dim=1) for pair in (query, key, value)))

    def alone(self, query, key, value, **_) -> torch.Tensor:
        """That of the text refiner, on tensors (B, L, heads, channels a head)."""
        batch, queries, heads, width = query.shape
        self.operations += 4 * batch * heads * queries * key.shape[1] * width
        return (query + value).flatten(2)


class CudaAutocast(TorchFunctionMode):
    """What CUDA's autocast to bfloat16 does to the layers that the transformer has; the real one needs CUDA tensors."""

    casts = {F.linear: torch.bfloat16, torch.conv3d: torch.bfloat16, F.layer_norm: torch.float32}  # noqa: RUF012

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if dtype := self.casts.get(func):
            args, kwargs = tree_map(partial(cast, dtype=dtype), (args, kwargs))
        if func is F.layer_norm:
            # CUDA's kernel copies an input that is not.
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **kwargs)


def cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


def pipeline_without_numbers(preset: Preset) -> tuple[HunyuanVideo_1_5_Pipeline, DenoiseInputs]:
    """The kit's pipeline with a transformer of the preset's size, and its loop's inputs, all on the meta device."""
    net = meta_transformer(preset, torch.bfloat16)
    # By default text tokens are sorted by a mask, and how many there are is a number to wait for. Here all are valid.
    net.reorder_txt_token = partial(net.reorder_txt_token, is_reorder=False)
    pipe = pipeline_around(net)
    pipe.execution_device, pipe.target_dtype = torch.device("meta"), torch.bfloat16
    inputs = random_inputs(pipe, preset)
    # The sampler looks for its place among the time steps once, before its first step.
    inputs.scheduler._step_index = 0
    return pipe, inputs


def counted(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, way: str) -> CountedRun:
    attention = CountedAttention()
    costs: list[Cost] = []
    held = 0

    def note() -> None:
        nonlocal held
        held = max(held, unique_bytes(kept()))
        costs.append(Cost(products.get_total_flops() + attention.operations, traffic.total))

    with (
        caching(pipe, way, STEPS) as kept,
        patch.object(hunyuanvideo_1_5_transformer, "parallel_attention", attention.joint),
        patch.object(token_refiner, "attention", attention.alone),
        patch.object(pipe, "_autocast", lambda *_: CudaAutocast()),
        PeakMemory() as memory,
        FlopCounterMode(display=False) as products,
        Traffic() as traffic,
    ):
        pipe.denoise(part_of(inputs, way, STEPS), Onlooker(pipe.execution_device, note))
    # The first note was made before the first step.
    full, reused = (costs[step + 1] - costs[step] for step in (FULL, REUSED))
    return CountedRun(full, reused, held, memory.peak)


def count(preset: Preset) -> dict[str, CountedRun]:
    """What steps cost without a cache, with the kit's for each kind of tensor, and with the released kit's."""
    pipe, inputs = pipeline_without_numbers(preset)
    runs = {way: counted(pipe, inputs, way) for way in WAYS}
    return runs | {UNCACHED: replace(runs[UNCACHED], reused=None)}


def summary(preset: Preset, runs: dict[str, CountedRun]) -> dict[str, Any]:
    return provenance() | dict(
        image_tokens=preset.image_tokens,
        batch=preset.batch,
        residual_bytes=preset.residual_bytes(torch.bfloat16),
        runs={way: asdict(run) for way, run in runs.items()},
    )


def table(result: dict[str, Any]) -> Iterator[str]:
    """The counts as a Markdown table."""
    work = ("GFLOP", "GB read and written", "x released kit's", "of a full step, H100")
    columns = (*work, "kept, x residual", "peak above uncached")
    yield f"| a reused step | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    runs, residual = result["runs"], result["residual_bytes"]
    full = Cost(**runs[UNCACHED]["full"])
    released = Cost(**runs[RELEASED]["reused"])
    for way in WAYS[1:]:
        run, reused = runs[way], Cost(**runs[way]["reused"])
        yield (
            f"| {way} | {reused.operations / 1e9:.1f} | {reused.traffic / 1e9:.2f} "
            f"| {reused.traffic / released.traffic:.2f} | {reused.seconds / full.seconds:.3%} "
            f"| {run['held'] / residual:.2f} | {(run['peak'] - runs[UNCACHED]['peak']) / residual:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--output", type=Path, help="also write the counts into this JSON, under the preset's name")
    args = parser.parse_args()
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")
    initialize_sequence_parallel()
    result = summary(PRESETS[args.preset], count(PRESETS[args.preset]))
    if args.output:
        record(args.output, args.preset, result)
    full = Cost(**result["runs"][UNCACHED]["full"])
    print(f"{args.preset}: {result['image_tokens']} tokens, CFG batch {result['batch']}, bfloat16; a full step is "
          f"{full.operations / 1e15:.2f} PFLOP, at an H100's peak rates {full.seconds:.1f} s; "
          f"a residual is {result['residual_bytes'] / GIB:.2f} GiB")  # fmt: skip
    print(*table(result), sep="\n")


if __name__ == "__main__":
    main()
