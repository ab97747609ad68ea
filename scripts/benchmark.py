"""Time a reused step and count what the cache holds: this kit beside angelslim's TeaCacheHelper, in one process.

    python scripts/benchmark.py tiny                         # PYTHONPATH = a HunyuanVideo-1.5 tree with the kit
    python scripts/benchmark.py 720p --output 720p.json      # true geometry, random weights, on a GPU

Both caches run the same mask in the same denoising loop on the same transformer, in turn; figures are medians.
TeaCacheHelper is what the released LeMiCa kit installs (pip install --no-deps angelslim==0.2.2).
"""

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from angelslim_caches import import_angelslim_caches
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


@dataclass(frozen=True)
class Preset:
    """A transformer and its input: latent frames, height and width; text, glyph and vision tokens; CFG batch."""

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

    @property
    def image_tokens(self) -> int:
        frames, height, width = self.latents
        return frames * height * width


PRESETS = {
    "tiny": Preset(4, 64, 4, (5, 6, 6), 64, 16, 16, batch=2),
    "cpu": Preset(54, 64, 2, (7, 18, 18), 64, 16, 16, batch=1),
    "480p": Preset(54, 2048, 16, (31, 30, 53), 1000, 256, 729, batch=2, text_width=3584, vision_width=1152),
    "720p": Preset(54, 2048, 16, (31, 45, 80), 1000, 256, 729, batch=2, text_width=3584, vision_width=1152),
}


@dataclass
class Figures:
    """Medians over repeats; seconds, and bytes of unique storages and of the device's peak (None on a CPU)."""

    full_step: float
    reused_step: float
    loop: float
    bytes_held: int
    bytes_after: int
    peak_bytes: int | None


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


def run_kit(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, mask: StepMask) -> dict:
    cache, clock = MeasuredCache(pipe.transformer), Stopwatch(pipe.execution_device)
    with clock.stage("loop"):
        pipe.denoise(inputs, clock, mask=mask, cache=cache, on_step=lambda *_: cache.note())
    return measured(clock, mask, cache.held, unique_bytes(cache.kept))


def run_released(pipe: HunyuanVideo_1_5_Pipeline, inputs: DenoiseInputs, mask: StepMask) -> dict:
    held = 0
    clock = Stopwatch(pipe.execution_device)
    with teacache(pipe, mask) as helper:

        def note(*_) -> None:
            nonlocal held
            held = max(held, unique_bytes(tensors_of_helper(helper)))

        with clock.stage("loop"):
            pipe.denoise(inputs, clock, mask=(True,) * NUM_STEPS, on_step=note)
        # The kit clears what it can reach; count what the helper itself still holds.
        return measured(clock, mask, held, unique_bytes(tensors_of_helper(helper)))


def measured(clock: Stopwatch, mask: StepMask, held: int, after: int) -> dict:
    seconds = clock.step_seconds()
    # The first step pays for warming up.
    full = [second for second, runs in list(zip(seconds, mask, strict=True))[1:] if runs]
    reused = [second for second, runs in zip(seconds, mask, strict=True) if not runs]
    return dict(
        full_step=statistics.median(full),
        reused_step=statistics.median(reused) if reused else float("nan"),
        loop=clock.stages["loop"],
        bytes_held=held,
        bytes_after=after,
        peak_bytes=torch.cuda.max_memory_allocated() if clock.on_gpu else None,
    )


def medians(runs: list[dict]) -> Figures:
    def median(values: list):
        return None if values[0] is None else statistics.median(values)

    return Figures(**{name: median([run[name] for run in runs]) for name in runs[0]})


def compare(pipe, inputs, mask: StepMask, repeats: int) -> dict[str, Figures]:
    """Both caches in turn, `repeats` times each after a warm-up of both."""
    ways = {"kit": run_kit, "released": run_released}
    results: dict[str, list[dict]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, run in ways.items():
            if pipe.execution_device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            result = run(pipe, inputs, mask)
            if repeat:
                results[name].append(result)
    return {name: medians(runs) for name, runs in results.items()}


def summary(preset: Preset, budgets: list[int], pipe, inputs, repeats: int) -> dict:
    residual = preset.batch * preset.image_tokens * preset.hidden * torch.finfo(pipe.target_dtype).bits // 8
    every_step = (True,) * NUM_STEPS
    run_kit(pipe, inputs, every_step)  # compiles attention on machines without flash-attention
    uncached = medians([run_kit(pipe, inputs, every_step) for _ in range(repeats)])
    figures = {budget: compare(pipe, inputs, step_mask(budget, NUM_STEPS), repeats) for budget in budgets}
    on_gpu = pipe.execution_device.type == "cuda"
    return dict(
        machine=torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        preset=asdict(preset),
        image_tokens=preset.image_tokens,
        residual_bytes=residual,
        uncached_loop=uncached.loop,
        budgets={budget: {way: asdict(each) for way, each in ways.items()} for budget, ways in figures.items()},
    )


def print_table(result: dict) -> None:
    print(f"{result['machine']}, {result['image_tokens']} tokens, residual {result['residual_bytes'] / MIB:.1f} MiB")
    print("  B  cache     full step  reused step  of full   loop speed-up (N/B)   held   after")
    for budget, ways in result["budgets"].items():
        for way, figures in ways.items():
            share = figures["reused_step"] / figures["full_step"]
            speedup = result["uncached_loop"] / figures["loop"]
            held, after = (figures[name] / result["residual_bytes"] for name in ("bytes_held", "bytes_after"))
            print(
                f"{budget:>3}  {way:<8} {figures['full_step'] * 1e3:9.1f} ms {figures['reused_step'] * 1e3:9.3f} ms "
                f"{share:8.2%} {speedup:9.2f}x ({NUM_STEPS / int(budget):.2f}x) {held:9.2f}x {after:6.2f}x"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--budgets", type=int, nargs="+", default=[25, 20, 15, 10], help="computed steps of 50")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each cache and budget (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    initialize_sequence_parallel()

    preset = PRESETS[args.preset]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pipe = pipeline_around(random_transformer(preset, device, dtype))
    result = summary(preset, args.budgets, pipe, random_inputs(pipe, preset), args.repeats)
    print_table(result)
    if args.output:
        args.output.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
