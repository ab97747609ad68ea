"""What LeMiCa costs on pipelines of diffusers: steps beside cache-dit's, memory, the hook itself, enabling.

    PYTHONPATH=.venv/diffusers python -m benchmarks.pipelines --output assets/measurements/pipelines.json

It takes a few minutes and the packages of requirements-diffusers.txt. All in one process, on one thread of a CPU,
in float32 with random weights. Times are CPU seconds of that thread, which leave out what else the machine does. Things
to compare take turns, there and back; differences and ratios are taken within a repeat, and figures are medians.

- Steps: WanPipeline and HunyuanVideo15Pipeline with small transformers, not enabled, with LeMiCa, and with cache-dit as
  ``lemica export --to cache-dit`` has it, the same steps computed. cache-dit runs the first block on a reused step, so
  that its costs grow with the blocks' width while LeMiCa's do not: small blocks speak for cache-dit. It also runs what
  comes before and after the blocks. HunyuanVideo15's text path is as wide as its class has it, and most of that; so
  Wan's ratio is the one that says more.
- Memory: a denoiser that only returns a tensor of the real size of a model's output; that is kept, counted, and summed.
- Overhead: every step computed, by a transformer of the model's real number of modules that returns the same tensor
  always, and a scheduler that leaves the latents as they are, so that what the hook adds is most of a call. What a run
  adds once, above all a look at all modules for other caches, is divided by its 50 steps.
- Enabling: on the small transformers, and on ones of the real size on the meta device. Importing is not in it.
"""

import argparse
import functools
import json
import logging
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any, NamedTuple

import diffusers
import torch

from benchmarks.memory import PeakMemory
from benchmarks.steps import provenance
from lemica.export import to_cache_dit
from lemica.files import write_text
from lemica.masks import Mask, step_mask
from lemica.reuse.identity import target_of
from lemica.reuse.loops import reusing
from lemica.reuse.pipelines import disable, enable

NOT_ENABLED, HOLD, TWO, CACHE_DIT = "not enabled", "LeMiCa", "LeMiCa, weights of two", "cache-dit"
# Short runs, so that the ways take turns often; the share of computed steps is a usual one.
NUM_STEPS, BUDGET = 12, 5
# A run of the overhead's is a usual one.
USUAL_STEPS = 50
# What the overhead is a share of, in seconds.
SHORT_STEP = 0.020
TEXT, TOKENS = 16, 8


@dataclass(frozen=True)
class Setting:
    """How much is measured.

    Args:
        blocks: of the small transformers, by model; with the usual ones a step takes about 20 ms.
        deep: blocks of the transformers with as many modules as the real ones; None for the real number.
        shrink: the outputs whose memory is measured have so many times fewer numbers.
        repeats: of steps, of sums of kept outputs, of runs with an idle transformer, and of enabling.
    """

    blocks: dict[str, int] = field(default_factory=lambda: {"wan": 12, "hunyuan_video15": 5})
    deep: int | None = None
    shrink: int = 1
    repeats: tuple[int, int, int, int] = (40, 12, 30, 100)


USUAL = Setting()
SMALLEST = Setting(blocks={"wan": 2, "hunyuan_video15": 2}, deep=2, shrink=1000, repeats=(2, 2, 2, 3))


# ---- pipelines


class Model(NamedTuple):
    """A pipeline with two denoiser calls per step.

    Args:
        pipeline: a new one around a transformer.
        transformer: the name of its class.
        small: the config of small ones, but for the number of blocks.
        call: how the pipeline is called.
    """

    pipeline: Callable[[torch.nn.Module], diffusers.DiffusionPipeline]
    transformer: str
    small: dict[str, Any]
    call: dict[str, Any]

    def small_transformer(self, blocks: int | None) -> torch.nn.Module:
        return self._transformer(blocks, **self.small)

    def real_transformer(self, blocks: int | None) -> torch.nn.Module:
        """Of the config that the class has by default, the largest model's, without numbers."""
        with torch.device("meta"):
            return self._transformer(blocks)

    def made(self, transformer: torch.nn.Module) -> diffusers.DiffusionPipeline:
        """A pipeline of a class of its own: cache-dit writes into the class."""
        pipe = self.pipeline(transformer)
        pipe.__class__ = type(type(pipe).__name__, (type(pipe),), {})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _transformer(self, blocks: int | None, **config) -> torch.nn.Module:
        depth = {} if blocks is None else {"num_layers": blocks}
        return getattr(diffusers, self.transformer)(**config, **depth).eval().requires_grad_(False)


def wan_pipeline(transformer: torch.nn.Module) -> diffusers.DiffusionPipeline:
    sampler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=sampler
    )


def hunyuan_pipeline(transformer: torch.nn.Module) -> diffusers.DiffusionPipeline:
    # The pipeline's constructor asks the VAE for its latent channels.
    vae = diffusers.AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1)
    pipe = diffusers.HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
    )
    # The image tokens that text-to-video masks out: 729 would be most of the step.
    pipe.vision_num_semantic_tokens = 4
    return pipe


def prompts(*names: str) -> dict[str, torch.Tensor]:
    """Embeddings of a prompt and of a negative one, and masks where that is the name."""
    embeddings, mask = torch.randn(1, TOKENS, TEXT, generator=torch.Generator().manual_seed(1)), torch.ones(1, TOKENS)
    return {negative + name: mask if "mask" in name else embeddings for name in names for negative in ("", "negative_")}


SIZE = {"height": 32, "width": 48, "num_frames": 5, "output_type": "latent"}
MODELS = {
    "wan": Model(
        wan_pipeline,
        "WanTransformer3DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=TEXT,
            freq_dim=32,
            ffn_dim=64,
            rope_max_seq_len=32,
        ),
        {**SIZE, "guidance_scale": 5.0, **prompts("prompt_embeds")},
    ),
    "hunyuan_video15": Model(
        hunyuan_pipeline,
        "HunyuanVideo15Transformer3DModel",
        dict(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            text_embed_dim=TEXT,
            text_embed_2_dim=TEXT,
            image_embed_dim=16,
            rope_axes_dim=(4, 6, 6),
            target_size=32,
            task_type="t2v",
        ),
        {**SIZE, **prompts("prompt_embeds", "prompt_embeds_2", "prompt_embeds_mask", "prompt_embeds_mask_2")},
    ),
}


# ---- clocks


def override(changed: Any, name: str, method: Callable) -> None:
    """Give one object another method of that name, in a class of its own."""
    kind = type(changed)
    # Pipelines look at the signature of the scheduler's methods.
    changed.__class__ = type(kind.__name__, (kind,), {name: functools.wraps(getattr(kind, name))(method)})


class Calls:
    """Begin and end, in CPU seconds, of all calls of an object's method from now on, whatever else is hooked to it."""

    def __init__(self, watched: Any, name: str):
        self.marks: list[tuple[float, float]] = []
        method = getattr(type(watched), name)

        def timed(*args, **kwargs) -> Any:
            begin = thread_time()
            result = method(*args, **kwargs)
            self.marks.append((begin, thread_time()))
            return result

        override(watched, name, timed)

    @property
    def seconds(self) -> list[float]:
        return [end - begin for begin, end in self.marks]


@dataclass(frozen=True)
class Step:
    """CPU seconds of one step of a pipeline: of its denoiser calls, and of all that the pipeline does in it."""

    calls: float
    whole: float


class TimedPipeline:
    """A pipeline with clocks on its denoiser and its scheduler, around what is enabled on it."""

    def __init__(self, pipe: diffusers.DiffusionPipeline, call: dict[str, Any], enabled_by: Callable[[Any], Any]):
        self.pipe, self.call = pipe, call
        enabled_by(pipe)
        self.denoiser, self.sampler = Calls(pipe.transformer, "__call__"), Calls(pipe.scheduler, "step")

    def run(self, num_steps: int = NUM_STEPS) -> list[Step]:
        """All steps but the first, which begins with what comes before it."""
        self.denoiser.marks.clear()
        self.sampler.marks.clear()
        self.pipe(**self.call, num_inference_steps=num_steps, generator=torch.Generator().manual_seed(0))
        ends = [end for _, end in self.sampler.marks]
        calls = self.denoiser.seconds
        slots = len(calls) // num_steps
        return [
            Step(sum(calls[step * slots : (step + 1) * slots]), ends[step] - ends[step - 1])
            for step in range(1, num_steps)
        ]


def in_turn(repeats: int, ways: dict[str, Callable[[], Any]]) -> Iterator[dict[str, Any]]:
    """What the ways give, by repeat, after one repeat to warm up; every other repeat goes the other way round."""
    order = list(ways)
    for number in range(repeats + 1):
        result = {way: ways[way]() for way in (order[::-1] if number % 2 else order)}
        if number:
            yield {way: result[way] for way in order}


# ---- steps


def mask_of_rule(rule: str, steps: Sequence[bool]) -> Mask:
    return Mask(tuple(steps), kept="velocity", rule=rule)


def enable_cache_dit(pipe: diffusers.DiffusionPipeline, mask: Mask) -> None:
    """As the printed lines say."""
    exec(compile(to_cache_dit(mask, "mask.json"), "lemica export", "exec"), {"pipe": pipe})


def step_costs(model: Model, blocks: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of full and reused steps by way, and ratios of them."""
    mask = mask_of_rule("hold", step_mask(BUDGET, NUM_STEPS))
    enabled = {
        NOT_ENABLED: lambda pipe: None,
        HOLD: lambda pipe: enable(pipe, mask),
        TWO: lambda pipe: enable(pipe, mask_of_rule("damped", mask.steps)),
        CACHE_DIT: lambda pipe: enable_cache_dit(pipe, mask),
    }
    ways = {}
    for way, enabled_by in enabled.items():
        torch.manual_seed(0)
        ways[way] = TimedPipeline(model.made(model.small_transformer(blocks)), model.call, enabled_by).run
    rows = step_rows([step_medians(runs, mask) for runs in in_turn(repeats, ways)])
    return dict(pipeline=class_of(model), blocks=blocks, ways=rows)


def step_medians(runs: dict[str, list[Step]], mask: Mask) -> dict[str, dict[str, Step]]:
    """The median full and reused step of one run of every way."""
    return {
        way: {
            kind: median_step([step for step, is_full in zip(steps, mask.steps[1:], strict=True) if is_full == full])
            for kind, full in (("full", True), ("reused", False))
            if full or way != NOT_ENABLED
        }
        for way, steps in runs.items()
    }


def median_step(steps: Sequence[Step]) -> Step:
    return Step(median(step.calls for step in steps), median(step.whole for step in steps))


def step_rows(repeats: Sequence[dict[str, dict[str, Step]]]) -> dict[str, dict[str, float]]:
    """Seconds, medians over repeats; a reused step's ratios to one that is not enabled and to cache-dit's, as well."""
    rows = {}
    for way, kinds in repeats[0].items():
        row = {
            f"{kind}_{part}": median(getattr(repeat[way][kind], part) for repeat in repeats)
            for kind in kinds
            for part in ("calls", "whole")
        }
        if "reused" in kinds:
            others = {"full": (NOT_ENABLED, "full"), "cache_dit": (CACHE_DIT, "reused")}
            row |= {
                f"{part}_of_{name}": median(
                    getattr(repeat[way]["reused"], part) / getattr(repeat[other][kind], part) for repeat in repeats
                )
                for name, (other, kind) in others.items()
                for part in ("calls", "whole")
            }
        rows[way] = row
    return rows


# ---- memory


class Output(NamedTuple):
    """What a model's denoiser returns per call, in bfloat16: its shape, and the calls per step."""

    shape: tuple[int, ...]
    calls: int


# Latents (1, channels, frames, rows, columns), or (1, tokens, channels) of 2 x 2 latents, 8 or 16 pixels each.
OUTPUTS = {
    "HunyuanVideo-1.5, 1280 x 720, 121 frames": Output((1, 32, 31, 45, 80), calls=2),
    "Wan2.1, 832 x 480, 81 frames": Output((1, 16, 21, 60, 104), calls=2),
    "Qwen-Image, 1024 x 1024": Output((1, 4096, 64), calls=2),
    "FLUX.1, 1024 x 1024": Output((1, 4096, 64), calls=1),
}
KEPT = {1: (1.0,), 2: (-0.5, 1.5), 3: (0.25, -0.75, 1.5)}
# The first reused step finds the sum's memory new.
REUSED_STEPS = 4


class Same(torch.nn.Module):
    """A denoiser that returns the same tensor always, as the pipelines ask for it."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output

    def forward(self, latents: torch.Tensor, time: float) -> tuple[torch.Tensor]:
        return (self.output,)


class StillSampler:
    """A scheduler whose latents stay as they are."""

    def __init__(self, num_steps: int):
        self.timesteps = range(num_steps)

    def set_timesteps(self) -> None:
        """They are set."""

    def step(self, output: torch.Tensor, timestep: int, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (sample,)


def reuse_run(
    output: torch.Tensor, calls: int, weights: Sequence[float], alive: Callable[[], int] = lambda: 0
) -> tuple[list[float], int, int]:
    """A run that keeps as many outputs per slot as there are weights.

    Returns CPU seconds of the reused steps but the first, the bytes that the run counted as kept, and what `alive` gave
    after its last reused step, when nothing but what is kept is needed any more.
    """
    steps = (True,) * len(weights) + (False,) * REUSED_STEPS + (True,)
    mask = Mask(steps, kept="velocity", weights=tuple(() if computed else tuple(weights) for computed in steps))
    denoiser, sampler, latents = Same(output), StillSampler(len(steps)), output
    seconds, noted = [], []
    with reusing([denoiser], sampler, mask) as reuse:
        sampler.set_timesteps()
        for t in sampler.timesteps:
            begin = thread_time()
            outputs = [denoiser(latents, t) for _ in range(calls)]
            seconds.append(thread_time() - begin)
            sampler.step(outputs[0][0], t, latents)
            del outputs
            noted.append(alive())
    return seconds[len(weights) + 1 : -1], reuse.record.kept_bytes, noted[-2]


def kept_memory(output: Output, shrink: int, repeats: int) -> dict[str, Any]:
    """For every number of kept outputs: bytes by the shape, as counted by the run and by storages; seconds of a run."""
    shape = (*output.shape[:-1], -(-output.shape[-1] // shrink))
    tensor = torch.randn(shape).bfloat16()
    runs = {count: functools.partial(reuse_run, tensor, output.calls, weights) for count, weights in KEPT.items()}
    timed = list(in_turn(repeats, runs))
    rows = {}
    for count, run in runs.items():
        with PeakMemory() as memory:
            _, counted, alive = run(alive=lambda memory=memory: memory.alive)
        rows[str(count)] = dict(
            bytes=count * output.calls * math.prod(shape) * tensor.itemsize,
            counted=counted,
            alive=alive,
            reused_step=median(median(result[count][0]) for result in timed),
        )
    return dict(shape=shape, calls=output.calls, kept=rows)


# ---- the hook itself


class IdlePipeline:
    """A pipeline whose transformer and scheduler do nothing, with clocks on all that the hook is in, around it."""

    def __init__(self, model: Model, blocks: int | None, enabled_by: Callable[[Any], Any]):
        self.pipe, self.call = model.made(model.small_transformer(blocks)), model.call
        output = torch.zeros_like(self.run()[0])
        self.pipe.transformer.forward = lambda *_, **__: (output,)
        override(self.pipe.scheduler, "step", lambda _self, _output, _time, latents, **_: (latents,))
        self.inside = Calls(self.pipe, "__call__")
        enabled_by(self.pipe)
        self.outside = Calls(self.pipe, "__call__")
        self.denoiser = Calls(self.pipe.transformer, "__call__")
        self.begin, self.sampler = Calls(self.pipe.scheduler, "set_timesteps"), Calls(self.pipe.scheduler, "step")

    def run(self, num_steps: int = 1) -> Any:
        generator = torch.Generator().manual_seed(0)
        return self.pipe(**self.call, num_inference_steps=num_steps, generator=generator, return_dict=False)

    def costs(self) -> dict[str, float]:
        """CPU seconds, of one run: per denoiser call, per scheduler step, per step with all between them, and once."""
        for clock in (self.inside, self.outside, self.denoiser, self.begin, self.sampler):
            clock.marks.clear()
        self.run(USUAL_STEPS)
        ends = [end for _, end in self.sampler.marks]
        return dict(
            call=median(self.denoiser.seconds),
            scheduler=median(self.sampler.seconds),
            step=median(after - before for before, after in pairwise(ends)),
            run=self.outside.seconds[0] - self.inside.seconds[0] + self.begin.seconds[0],
        )


def overhead(model: Model, blocks: int | None, repeats: int) -> dict[str, Any]:
    """CPU seconds that a hook adds that computes every step."""
    mask = mask_of_rule("hold", (True,) * USUAL_STEPS)
    enabled = IdlePipeline(model, blocks, lambda pipe: enable(pipe, replace(mask, target=target_of(pipe))))
    ways = {NOT_ENABLED: IdlePipeline(model, blocks, lambda pipe: None).costs, HOLD: enabled.costs}
    runs = list(in_turn(repeats, ways))
    added = {
        part: median(run[HOLD][part] - run[NOT_ENABLED][part] for run in runs)
        for part in ("call", "scheduler", "step", "run")
    }
    per_step = added["step"] + added["run"] / USUAL_STEPS
    return dict(
        pipeline=class_of(model),
        modules=len(list(enabled.pipe.transformer.modules())),
        calls=len(enabled.denoiser.marks) // USUAL_STEPS,
        steps=USUAL_STEPS,
        **added,
        per_step=per_step,
        share=per_step / SHORT_STEP,
    )


# ---- enabling


def enabling(model: Model, size: str, transformer: torch.nn.Module, repeats: int) -> dict[str, Any]:
    """CPU seconds: of the first enable of a new pipeline, of later ones with a mask and with a budget, of disable.

    The mask belongs to the pipeline, as one that was calibrated on it does.
    """
    pipe = model.made(transformer)
    mask = replace(mask_of_rule("hold", step_mask(BUDGET, NUM_STEPS)), target=target_of(pipe))
    arguments = {"first": dict(mask=mask), "mask": dict(mask=mask), "budget": dict(budget=BUDGET)}
    seconds: dict[str, list[float]] = {name: [] for name in (*arguments, "disable")}
    for number in range(repeats):
        for name in ("mask", "budget") if number else arguments:
            begin = thread_time()
            enable(pipe, **arguments[name])
            enabled = thread_time()
            disable(pipe)
            seconds[name].append(enabled - begin)
            seconds["disable"].append(thread_time() - enabled)
    return dict(
        pipeline=class_of(model),
        size=size,
        modules=len(list(transformer.modules())),
        **{name: median(values) for name, values in seconds.items()},
    )


# ---- all of it


def class_of(model: Model) -> str:
    return type(model.pipeline(model.small_transformer(1))).__name__


def measure(setting: Setting) -> dict[str, Any]:
    """All figures. Enabling comes first: its first one finds nothing prepared."""
    of_steps, of_sums, of_idle_runs, of_enabling = setting.repeats
    return machine_facts() | dict(
        enabling={
            f"{name}, {size}": enabling(model, size, transformer, of_enabling)
            for name, model in MODELS.items()
            for size, transformer in (
                ("real", model.real_transformer(setting.deep)),
                ("small", model.small_transformer(setting.blocks[name])),
            )
        },
        steps={name: step_costs(model, setting.blocks[name], of_steps) for name, model in MODELS.items()},
        memory={name: kept_memory(output, setting.shrink, of_sums) for name, output in OUTPUTS.items()},
        overhead={name: overhead(model, setting.deep, of_idle_runs) for name, model in MODELS.items()},
    )


def machine_facts() -> dict[str, Any]:
    """What the figures belong to."""
    packages = ("torch", "diffusers", "transformers", "cache-dit")
    return provenance() | dict(
        machine=processor(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        packages={name: version(name) for name in packages},
    )


def processor() -> str:
    """The name of the CPU, where the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ---- tables


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs"


def step_table(result: dict[str, Any]) -> Iterator[str]:
    """What every way's steps take, as a Markdown table."""
    whole = ("reused step with scheduler and guidance", "x cache-dit's")
    columns = ("full step", "reused step", "of a full one", "x cache-dit's", *whole)
    yield f"| | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for model in result["steps"].values():
        for way, row in model["ways"].items():
            cells = [milliseconds(row["full_calls"]), *[""] * 5]
            if "reused_calls" in row:
                cells[1:] = (
                    milliseconds(row["reused_calls"]),
                    f"{row['calls_of_full']:.2%}",
                    f"{row['calls_of_cache_dit']:.3f}",
                    milliseconds(row["reused_whole"]),
                    f"{row['whole_of_cache_dit']:.2f}",
                )
            yield f"| {model['pipeline']}, {model['blocks']} blocks, {way} | {' | '.join(cells)} |"


def memory_table(result: dict[str, Any]) -> Iterator[str]:
    """What is kept of a model's outputs, and what it takes to sum them, as a Markdown table."""
    counts = list(map(str, KEPT))
    kept = (f"kept, {count} per slot" for count in counts)
    yield f"| bfloat16 | calls per step | {' | '.join(kept)} | reused step, {' / '.join(counts)} per slot |"
    yield "|---" * (len(counts) + 3) + "|"
    for name, row in result["memory"].items():
        kept = [f"{row['kept'][count]['bytes'] / 1e6:.1f} MB" for count in counts]
        seconds = " / ".join(f"{row['kept'][count]['reused_step'] * 1e3:.1f}" for count in counts)
        yield f"| {name} | {row['calls']} | {' | '.join(kept)} | {seconds} ms |"


def overhead_table(result: dict[str, Any]) -> Iterator[str]:
    """What the hook adds where every step is computed, as a Markdown table."""
    shares = (f"run of {USUAL_STEPS} steps", "step with its part", f"of a step of {SHORT_STEP * 1e3:.0f} ms")
    columns = ("modules", "denoiser call", "scheduler step", "step", *shares)
    yield f"| every step computed | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for row in result["overhead"].values():
        parts = [microseconds(row[part]) for part in ("call", "scheduler", "step", "run", "per_step")]
        name = f"{row['pipeline']}, {row['calls']} calls per step"
        yield f"| {name} | {row['modules']} | {' | '.join(parts)} | {row['share']:.2%} |"


def enabling_table(result: dict[str, Any]) -> Iterator[str]:
    """What enabling and disabling take, as a Markdown table."""
    columns = ("modules", "first enable", "enable, mask", "enable, budget", "disable")
    yield f"| | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for row in result["enabling"].values():
        parts = [milliseconds(row[part]) for part in ("first", "mask", "budget", "disable")]
        yield f"| {row['pipeline']}, {row['size']} transformer | {row['modules']} | {' | '.join(parts)} |"


TABLES = {
    "pipeline_steps": step_table,
    "pipeline_memory": memory_table,
    "pipeline_overhead": overhead_table,
    "pipeline_enabling": enabling_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smallest", action="store_true", help="few and small: shows in seconds that all of it runs")
    parser.add_argument("--output", type=Path, help="also write the figures into this JSON")
    args = parser.parse_args()
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")
    torch.set_num_threads(1)
    # diffusers and cache-dit tell what they are doing.
    logging.disable(logging.WARNING)
    result = measure(SMALLEST if args.smallest else USUAL)
    if args.output:
        write_text(args.output, json.dumps(result, indent=1) + "\n")
    for name, table in TABLES.items():
        print(f"{name}:", *table(result), "", sep="\n")


if __name__ == "__main__":
    main()
