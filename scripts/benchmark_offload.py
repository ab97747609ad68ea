"""Count the bytes that cross PCIe in every denoising step under group offload. Needs a GPU.

    python scripts/benchmark_offload.py 480p --output offload.json           # one block a group, streams
    python scripts/benchmark_offload.py 480p --blocks-per-group 4 --no-stream

PYTHONPATH must hold a HunyuanVideo-1.5 tree with the kit. The transformer of a preset of scripts/benchmark.py, with
random weights, streams from the CPU as with generate.py --group_offloading true; copies are counted by PyTorch's
profiler. A computed step has to move the weights of all blocks, a reused one none.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from benchmark import whole
from benchmark_figures import GIB, MIB
from benchmark_models import PRESETS, benchmark_pipeline, random_inputs
from hyvideo.pipelines.hunyuan_video_pipeline import (
    DenoiseInputs,
    HunyuanVideo_1_5_Pipeline,
    initialize_sequence_parallel,
)
from torch.profiler import ProfilerActivity, profile

DIRECTIONS = {"HtoD": "to the device", "DtoH": "from the device"}
# The first computed step also warms up; the last one shows that nothing is amiss after reused ones.
MASK = (True, True, False, False, False, True)


def copied_bytes(trace: dict[str, Any]) -> Counter[str]:
    """Bytes of all copies in a profiler's trace (Chrome's format), by direction."""
    copied = Counter(dict.fromkeys(DIRECTIONS, 0))
    for event in trace["traceEvents"]:
        if event.get("cat") == "gpu_memcpy":
            direction = event["name"].split()[1]
            if direction in DIRECTIONS:
                copied[direction] += event["args"]["bytes"]
    return copied


class CopyCounter:
    """Within its block, what was copied from one call of `next_step` to the next."""

    def __init__(self):
        self.steps: list[Counter[str]] = []

    def __enter__(self):
        self._start()
        return self

    def __exit__(self, *_):
        self._stop()

    def _start(self) -> None:
        self._profiler = profile(activities=[ProfilerActivity.CUDA])
        self._profiler.start()

    def _stop(self) -> None:
        torch.cuda.synchronize()
        self._profiler.stop()

    def next_step(self, *_) -> None:
        self._stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            self.steps.append(copied_bytes(json.loads(path.read_text())))
        self._start()


def copied_by_step(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs) -> list[Counter[str]]:
    with CopyCounter() as counter:
        pipe.denoise(inputs, mask=whole(MASK), stop=len(MASK), on_step=counter.next_step)
    return counter.steps


def incomplete_steps(steps: list[Counter[str]], block_bytes: int) -> list[int]:
    """Computed steps whose trace shows less than the weights that they must have got: profilers do lose events."""
    pairs = enumerate(zip(MASK, steps, strict=True))
    return [number for number, (computed, copied) in pairs if computed and copied["HtoD"] < block_bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--blocks-per-group", type=int, default=1, help="(default: 1)")
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="overlap copies with computing"
    )
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")
    if not torch.cuda.is_available():
        parser.error("no GPU: on a CPU, tests/test_group_offload.py counts what would be moved")
    if args.stream and args.blocks_per_group != 1:
        parser.error("diffusers streams single blocks: add --no-stream, or leave --blocks-per-group out")
    torch.manual_seed(0)
    initialize_sequence_parallel()
    preset = PRESETS[args.preset]
    pipe = benchmark_pipeline(preset)
    inputs = random_inputs(pipe, preset)
    net = pipe.transformer.to("cpu")
    pipe.enable_offloading = True
    net.enable_group_offload(
        onload_device=pipe.execution_device, num_blocks_per_group=args.blocks_per_group, use_stream=args.stream
    )
    blocks = sum(weight.nbytes for weight in net.double_blocks.parameters())
    steps = copied_by_step(pipe, inputs)
    print(f"{torch.cuda.get_device_name()}, {args.preset}, blocks of {blocks / GIB:.2f} GiB, groups of "
          f"{args.blocks_per_group}, {'with' if args.stream else 'without'} streams")  # fmt: skip
    for number, (computed, copied) in enumerate(zip(MASK, steps, strict=True)):
        moved = ", ".join(f"{copied[way] / MIB:.2f} MiB {words}" for way, words in DIRECTIONS.items())
        print(f"step {number}, {'computed' if computed else 'reused'}: {moved}")
    if args.output:
        settings = dict(machine=torch.cuda.get_device_name(), preset=args.preset, block_bytes=blocks)
        settings |= dict(blocks_per_group=args.blocks_per_group, stream=args.stream, mask=MASK)
        args.output.write_text(json.dumps(settings | {"steps": steps}, indent=1) + "\n")
    if incomplete := incomplete_steps(steps, blocks):
        raise SystemExit(f"the profiler lost copies of computed steps {incomplete}: run it again")


if __name__ == "__main__":
    main()
