"""What tests/gpu measures on a GPU. Every function takes its sizes, so that the tests can run it on a CPU, too."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hyvideo.commons.infer_state import InferState
from hyvideo.pipelines.hunyuan_video_pipeline import DenoiseInputs, HunyuanVideo_1_5_Pipeline
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from benchmarks.loops import UNCACHED, Onlooker, caching, part_of
from benchmarks.memory import peak_memory, unique_bytes
from benchmarks.models import Preset, benchmark_pipeline, random_inputs

# The first computed step also warms up; the last one shows that nothing is amiss after reused ones.
STEPS = (True, True, False, False, False, True)


def step_costs(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, way: str) -> dict[str, float]:
    """Seconds of a full and of a reused step; bytes kept between steps, kept after the loop, and alive at once."""
    steps = STEPS[:-1]
    held = []
    with caching(pipe, way, steps) as kept, peak_memory(pipe.execution_device) as memory:
        clock = Onlooker(pipe.execution_device, lambda: held.append(unique_bytes(kept())))
        pipe.denoise(part_of(inputs, way, steps), clock)
        after = unique_bytes(kept())
    seconds = clock.step_seconds()
    return dict(full_step=seconds[1], reused_step=median(seconds[2:]), held=max(held), after=after, peak=memory.peak)


class CopyCounter:
    """Within its block, what was copied between host and device from one call of `next_step` to the next."""

    def __init__(self, device: torch.device):
        self.activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
        self.device = device
        self.steps: list[Counter[str]] = []

    def __enter__(self):
        self._start()
        return self

    def __exit__(self, *_):
        self._stop()

    def _start(self) -> None:
        self._profiler = profile(activities=[self.activity])
        self._profiler.start()

    def _stop(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self._profiler.stop()

    def next_step(self) -> None:
        self._stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            self.steps.append(copied_bytes(json.loads(path.read_text())))
        self._start()


def copied_bytes(trace: dict[str, Any]) -> Counter[str]:
    """Bytes of all copies in a profiler's trace (Chrome's format), by direction: "HtoD" is to the device."""
    copied = Counter(HtoD=0, DtoH=0)
    for event in trace["traceEvents"]:
        if event.get("cat") == "gpu_memcpy":
            copied[event["name"].split()[1]] += event["args"]["bytes"]
    return Counter({direction: copied[direction] for direction in ("HtoD", "DtoH")})


def group_offload_copies(preset: Preset, way: str) -> dict[str, Any]:
    """Bytes that cross PCIe in each of STEPS, with weights streamed as by generate.py --group_offloading true."""
    pipe = benchmark_pipeline(preset)
    inputs = random_inputs(pipe, preset)
    net, on_gpu = pipe.transformer.to("cpu"), pipe.execution_device.type == "cuda"
    pipe.enable_offloading = True
    net.enable_group_offload(onload_device=pipe.execution_device, num_blocks_per_group=1, use_stream=on_gpu)
    # Profilers lose events now and then, so what is moved before the loop is not asked for.
    with CopyCounter(pipe.execution_device) as counter:
        pipe.denoise(part_of(inputs, way, STEPS), Onlooker(pipe.execution_device, counter.next_step))
    block_bytes = sum(weight.nbytes for weight in net.double_blocks.parameters())
    return dict(block_bytes=block_bytes, computed=STEPS, steps=[dict(step) for step in counter.steps[1:]])


def compiled_graphs(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, way: str) -> dict[str, Any]:
    """What compiling the blocks does to a cached loop: graphs compiled after each step, and how far latents move."""
    part = part_of(inputs, way, STEPS)
    eager = pipe.denoise(part)
    pipe.apply_infer_optimization(InferState(enable_torch_compile=True))
    counters.clear()
    graphs: list[int] = []
    compiled = pipe.denoise(
        part, Onlooker(pipe.execution_device, lambda: graphs.append(counters["stats"]["unique_graphs"]))
    )
    return dict(graphs_after_steps=graphs[1:], computed=STEPS, difference_db=ratio_db(eager, compiled))


def noise_floor(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, difference: float = 1e-5) -> float:
    """How far apart two uncached runs end whose noise differs by `difference`, in dB below the latents."""
    noise = inputs.noise.float()
    other = noise + difference * torch.randn_like(noise)
    # With a bfloat16 start the difference would be rounded away.
    steps = (True,) * len(inputs.timesteps)
    first, second = (pipe.denoise(part_of(inputs, UNCACHED, steps, latents=start)) for start in (noise, other))
    return ratio_db(first, second)


def ratio_db(signal: torch.Tensor, other: torch.Tensor) -> float | None:
    """Root mean square of `signal` over that of the difference, in dB; None where there is no difference."""
    error = (signal - other).double().square().mean()
    return (10 * (signal.double().square().mean() / error).log10()).item() if error > 0 else None


def table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The measured steps in assets/measurements/gpu.json, as a Markdown table."""
    yield "| | tokens | full step | reused step | of a full one | kept, MB | peak, GB |"
    yield "|---" * 7 + "|"
    for size, result in results.items():
        for way, cost in result.get("ways", {}).items():
            yield (
                f"| {size}, {way} | {result['image_tokens']:,} | {cost['full_step']:.2f} s "
                f"| {cost['reused_step'] * 1e3:.2f} ms | {cost['reused_step'] / cost['full_step']:.4%} "
                f"| {cost['held'] / 1e6:.0f} | {cost['peak'] / 1e9:.1f} |"
            )
