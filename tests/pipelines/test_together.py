"""LeMiCa together with what else people do to pipelines: it works, or it is refused in one line."""

import copy
import functools
import gc
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import accelerate
import diffusers
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload
from conftest import REPOSITORY, clean_environment
from diffusers.hooks import HookRegistry
from diffusers.hooks.group_offloading import GroupOffloadingHook
from packaging.version import Version
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny import TinyPipeline, flow_euler, make, run
from together import MASK, Count, applied_and_enabled, counted_blocks, held, run_noting

import lemica
from lemica.errors import Refused
from lemica.masks import Mask, mask_of
from lemica.reuse import cache
from lemica.reuse.identity import DENOISERS, denoisers_of, target_of
from lemica.reuse.watch import owner_of

CPU = torch.device("cpu")
WORKERS = Path(__file__).parent
BEFORE_AND_AFTER = pytest.mark.parametrize("first", [True, False], ids=["before enable", "after enable"])


OTHER_MASK = held(0, 2, 5)


CALLS_PER_STEP = {"flux": 1, "wan_unipc": 2, "wan_two_experts": 2}


@functools.cache
def alone(name: str, mask: Mask | None = None) -> torch.Tensor:
    """What a fresh pipeline gives with nothing else done to it; reused steps are made by hand."""
    tiny = make(name)
    if mask is not None:
        hold_by_hand(denoisers_of(tiny.pipe), mask, CALLS_PER_STEP[name])
    return run(tiny)


def hold_by_hand(denoisers: list[torch.nn.Module], mask: Mask, calls_per_step: int) -> None:
    numbers, held_outputs = itertools.count(), {}

    def held(compute, *args, **kwargs):
        step, call = divmod(next(numbers), calls_per_step)
        if mask.steps[step]:
            held_outputs[call] = compute(*args, **kwargs)
        return held_outputs[call]

    for denoiser in denoisers:
        denoiser.forward = functools.partial(held, denoiser.forward)


@pytest.fixture
def tiny() -> TinyPipeline:
    """One denoiser call per step."""
    return make("flux")


def kept(pipe: diffusers.DiffusionPipeline) -> dict:
    return owner_of(pipe).reuse._kept


# Offload: the weights come to the device when the denoiser is computed, and only then


@pytest.fixture
def offload_hooks(monkeypatch) -> Count:
    """How often the hooks of all kinds of offload are at work. The CPU has the part of the accelerator."""
    count = Count()
    for hook in (AlignDevicesHook, CpuOffload, GroupOffloadingHook):
        monkeypatch.setattr(hook, "pre_forward", counting(hook.pre_forward, count))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: CPU)
    offload = accelerate.cpu_offload
    # Diffusers gives the device a number: weights that "cpu:0" has for "cpu" are no parameters any more.
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, _, **options: offload(model, CPU, **options))
    return count


def counting(method, count):
    def counted(*args, **kwargs):
        count()
        return method(*args, **kwargs)

    return counted


def group_offload(kind: str, **options):
    def apply(pipe):
        for denoiser in denoisers_of(pipe):
            denoiser.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **options)

    return apply


OFFLOADS = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(device="cpu"),
    "blocks": group_offload("block_level", num_blocks_per_group=1),
    "leaves": group_offload("leaf_level"),
}


@BEFORE_AND_AFTER
@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("name", ["flux", "wan_two_experts"])
def test_a_reused_step_brings_no_weights_to_the_device(name, offload, first, offload_hooks):
    tiny = make(name)
    applied_and_enabled(tiny.pipe, OFFLOADS[offload], first)
    blocks = counted_blocks(tiny)
    # At the end of a call, accelerate's hooks are removed and put on again.
    for _ in range(2):
        latents, hooks_ran, blocks_ran = run_noting(tiny, offload_hooks, blocks)
        assert torch.equal(latents, alone(name, MASK))
        assert hooks_ran == blocks_ran == list(MASK.steps)
    lemica.disable(tiny.pipe)
    latents, hooks_ran, blocks_ran = run_noting(tiny, offload_hooks, blocks)
    assert torch.equal(latents, alone(name))
    assert hooks_ran == blocks_ran == [True] * 6


# Arithmetic: layerwise casting, quantised weights, bfloat16


def quantised(config: str):
    def apply(pipe):
        quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        quantization.quantize_(pipe.transformer, getattr(quantization, config)())

    return apply


ARITHMETIC = {
    "layerwise casting": lambda pipe: pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    ),
    "int8 weights": quantised("Int8WeightOnlyConfig"),
    "float8 weights": quantised("Float8WeightOnlyConfig"),
    "int8 weights and activations": quantised("Int8DynamicActivationInt8WeightConfig"),
}


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_weights_of_fewer_bits_before_or_after(arithmetic):
    latents = []
    for first in (True, False):
        tiny = make("flux")
        blocks = counted_blocks(tiny)
        applied_and_enabled(tiny.pipe, ARITHMETIC[arithmetic], first)
        reused, blocks_ran = run_noting(tiny, blocks)
        assert blocks_ran == list(MASK.steps)
        lemica.disable(tiny.pipe)
        latents.append((reused, run(tiny)))
    (reused, uncached), other = latents
    assert torch.equal(reused, other[0]) and torch.equal(uncached, other[1])
    assert 0 < (uncached - alone("flux")).abs().max() < 0.1
    assert 0 < (reused - alone("flux", MASK)).abs().max() < 0.1


class Recording(diffusers.FlowMatchEulerDiscreteScheduler):
    """Remembers what the denoiser returned at each step."""

    def __init__(self, **config):
        super().__init__(**config)
        self.outputs = []

    def step(self, model_output, *args, **kwargs):
        self.outputs.append(model_output.clone())
        return super().step(model_output, *args, **kwargs)


def test_a_bfloat16_pipeline_takes_its_sums_in_float32():
    tiny = make("flux")
    tiny.pipe.to(torch.bfloat16)
    tiny.pipe.scheduler = Recording.from_config(tiny.pipe.scheduler.config)
    steps, weights = mask_of((0, 1, 2, 5), 6), (1.3, -3.1, 2.8)
    rows = tuple(() if computed else weights for computed in steps)
    lemica.enable(tiny.pipe, Mask(steps, kept="velocity", weights=rows, rule="fitted"))
    embeddings = {name: tiny.call[name].bfloat16() for name in ("prompt_embeds", "pooled_prompt_embeds")}
    run(tiny, **embeddings)
    outputs = tiny.pipe.scheduler.outputs
    exact = sum(weight * output.double() for weight, output in zip(weights, outputs[:3], strict=True))
    in_bfloat16 = sum(weight * output for weight, output in zip(weights, outputs[:3], strict=True))
    assert not is_nearest(in_bfloat16, exact)
    for reused in outputs[3:5]:
        assert reused.dtype == torch.bfloat16
        assert is_nearest(reused, exact)


def is_nearest(rounded: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether no bfloat16 number is nearer, but for what float32 rounds: half of the last of eight bits."""
    half = torch.ldexp(torch.ones_like(exact), exact.frexp().exponent - 9)
    return bool(((rounded.double() - exact).abs() <= half + 1e-6).all())


def test_what_the_pipeline_writes_into_is_a_copy(tiny):
    class Writing(diffusers.FlowMatchEulerDiscreteScheduler):
        def step(self, model_output, *args, **kwargs):
            result = super().step(model_output, *args, **kwargs)
            model_output.fill_(torch.nan)
            return result

    tiny.pipe.scheduler = Writing.from_config(tiny.pipe.scheduler.config)
    lemica.enable(tiny.pipe, MASK)
    assert torch.equal(run(tiny), alone("flux", MASK))


# Compilation


@pytest.fixture(scope="module")
def compiled() -> dict:
    """What compiled_pipeline_worker.py saw, by the way of compiling and by when that was."""
    once_under_the_newer_diffusers()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", WORKERS / "compiled_pipeline_worker.py"],
        env=worker_environment() | {"TORCHDYNAMO_DISABLE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def once_under_the_newer_diffusers() -> None:
    """Programs of their own take long: they need not run twice."""
    if Version(diffusers.__version__) < Version("0.40"):
        pytest.skip("run under the newer diffusers")


def worker_environment() -> dict[str, str]:
    """For programs of their own, which import what this one does."""
    environment = clean_environment()
    paths = [str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(paths)}


@BEFORE_AND_AFTER
@pytest.mark.parametrize("way", ["module", "blocks", "wrapped"])
def test_compiled_denoisers_give_what_eager_ones_do_and_are_compiled_once(compiled, way, first):
    """Ten times enabled and disabled, with two budgets, without a graph break."""
    seen = compiled[way]["before" if first else "after"]
    assert seen["largest_difference"] == 0
    graphs = seen["graphs"]
    assert len(graphs) == 21
    assert graphs[0] > 0 and len(set(graphs)) == 1
    assert seen["wrong_steps"] == 0
    assert seen["is_the_same_model"]


def test_a_denoiser_that_is_compiled_into_another_module_must_be_enabled_again(compiled):
    assert compiled["wrapped"]["after"]["refusal"] == (
        "the pipeline has another scheduler or denoiser than at lemica.enable: call lemica.enable again"
    )


# LoRA


def add_adapter(pipe, name: str = "style") -> None:
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        pipe.transformer.add_adapter(config, adapter_name=name)


@pytest.fixture
def lora_file(tmp_path) -> Path:
    pipe = make("flux").pipe
    add_adapter(pipe)
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="style")
    type(pipe).save_lora_weights(tmp_path, transformer_lora_layers=layers)
    return tmp_path / "pytorch_lora_weights.safetensors"


def test_lora_weights_are_loaded_scaled_and_unloaded_before_or_after(lora_file):
    seen = []
    for first in (True, False):
        tiny = make("flux")
        applied_and_enabled(tiny.pipe, lambda pipe: pipe.load_lora_weights(lora_file, adapter_name="style"), first)
        latents = [run(tiny)]
        tiny.pipe.set_adapters("style", 0.3)
        latents.append(run(tiny))
        tiny.pipe.unload_lora_weights()
        latents.append(run(tiny))
        lemica.disable(tiny.pipe)
        latents.append(run(tiny))
        seen.append(latents)
    full, scaled, unloaded, disabled = seen[0]
    assert all(map(torch.equal, *seen))
    assert torch.equal(unloaded, alone("flux", MASK)) and torch.equal(disabled, alone("flux"))
    assert not torch.equal(full, scaled) and not torch.equal(scaled, unloaded)


def test_adapters_are_swapped_in_place(lora_file):
    """For this peft asks whether the denoiser has been compiled already."""
    tiny = make("flux")
    lemica.enable(tiny.pipe, MASK)
    tiny.pipe.enable_lora_hotswap(target_rank=4)
    for options in ({}, {"hotswap": True}):
        tiny.pipe.load_lora_weights(lora_file, adapter_name="style", **options)
        swapped = run(tiny)
    fresh = make("flux")
    fresh.pipe.load_lora_weights(lora_file)
    lemica.enable(fresh.pipe, MASK)
    torch.testing.assert_close(swapped, run(fresh), atol=1e-5, rtol=1e-5)


def test_a_mask_names_the_adapters_that_are_at_work(tiny, lora_file):
    def model() -> str:
        return target_of(tiny.pipe).model.removeprefix("FluxPipeline, FlowMatchEulerDiscreteScheduler")

    assert model() == ""
    for name in ("style", "other"):
        tiny.pipe.load_lora_weights(lora_file, adapter_name=name)
    tiny.pipe.set_adapters(["style", "other"])
    assert model() == ", LoRA other, LoRA style"
    tiny.pipe.set_adapters("style")
    assert model() == ", LoRA style"
    tiny.pipe.disable_lora()
    assert model() == ""
    tiny.pipe.enable_lora()
    tiny.pipe.fuse_lora()
    tiny.pipe.unload_lora_weights()
    assert model() == ", LoRA style"


@BEFORE_AND_AFTER
def test_a_mask_that_was_calibrated_without_the_adapter_is_refused_unless_forced(tiny, first):
    mask = held(0, 1, 3, 5, target=target_of(tiny.pipe))
    refusal = (
        "^the mask is for model FluxPipeline, FlowMatchEulerDiscreteScheduler, this run has FluxPipeline, "
        "FlowMatchEulerDiscreteScheduler, LoRA style: plan one for this pipeline, or pass force=True to take it anyway$"
    )
    with pytest.raises(ValueError, match=refusal):
        applied_and_enabled(tiny.pipe, add_adapter, first, mask)
        run(tiny)
    lemica.enable(tiny.pipe, mask, force=True)
    blocks = counted_blocks(tiny)
    assert run_noting(tiny, blocks)[1] == list(MASK.steps)


# Other caches


CACHES = {
    "FirstBlockCache": {},
    "FasterCache": dict(
        current_timestep_callback=lambda: 500,
        is_guidance_distilled=True,
        spatial_attention_block_identifiers=("blocks.*attn1",),
    ),
    "PyramidAttentionBroadcast": dict(
        spatial_attention_block_skip_range=2,
        spatial_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: 500,
    ),
    "MagCache": dict(mag_ratios=[1.0] * 6, num_inference_steps=6),
    "TaylorSeerCache": {},
    "SeaCache": {},
    "TextKVCache": {},
}


@pytest.mark.parametrize("name", CACHES)
def test_another_cache_of_diffusers_is_refused_by_name(name):
    config = getattr(diffusers, f"{name}Config", None)
    if config is None:
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    tiny = make("wan_unipc")
    transformer, refusal = tiny.pipe.transformer, f"^{name} is enabled on the WanTransformer3DModel: call its disable_c"
    transformer.enable_cache(config(**CACHES[name]))
    with pytest.raises(ValueError, match=refusal):
        lemica.enable(tiny.pipe, MASK)
    assert owner_of(tiny.pipe) is None
    transformer.disable_cache()
    lemica.enable(tiny.pipe, MASK)
    transformer.enable_cache(config(**CACHES[name]))
    blocks = counted_blocks(tiny)
    for use in (lambda: run(tiny), lambda: lemica.enable(tiny.pipe, OTHER_MASK)):
        with pytest.raises(ValueError, match=refusal):
            use()
    assert blocks.taken() == 0
    transformer.disable_cache()
    # The first mask is still there.
    assert torch.equal(run(tiny), alone("wan_unipc", MASK))


def test_the_hooks_of_another_cache_are_refused_by_name(tiny):
    """Put on by diffusers' function, past the transformer's enable_cache."""
    transformer = tiny.pipe.transformer
    diffusers.hooks.apply_first_block_cache(transformer, diffusers.FirstBlockCacheConfig())
    for hook in ("fbc_leader_block_hook", "fbc_block_hook"):
        with pytest.raises(ValueError, match=f"^the hook {hook} of another cache is enabled on the Flux.*Registry fir"):
            lemica.enable(tiny.pipe, MASK)
        HookRegistry.check_if_exists_or_initialize(transformer).remove_hook(hook, recurse=True)
    lemica.enable(tiny.pipe, MASK)
    assert torch.equal(run(tiny), alone("flux", MASK))


def test_cache_dit_is_refused_by_name():
    cache_dit = pytest.importorskip("cache_dit", reason="the engine is not installed: pip install cache-dit==1.5.3")
    tiny = make("wan_unipc")
    # cache-dit writes into the pipeline's class, which other tests share.
    tiny.pipe.__class__ = type("WanPipeline", (type(tiny.pipe),), {})
    enable = functools.partial(cache_dit.enable_cache, cache_config=cache_dit.DBCacheConfig(num_inference_steps=6))
    refusal = "^cache-dit is enabled on the WanTransformer3DModel: call cache_dit.disable_cache first, one cache"
    enable(tiny.pipe)
    with pytest.raises(ValueError, match=refusal):
        lemica.enable(tiny.pipe, MASK)
    cache_dit.disable_cache(tiny.pipe)
    lemica.enable(tiny.pipe, MASK)
    enable(tiny.pipe)
    with pytest.raises(ValueError, match=refusal):
        run(tiny)
    cache_dit.disable_cache(tiny.pipe)
    assert torch.equal(run(tiny), alone("wan_unipc", MASK))
    # In the wrong order: other pipelines do not suffer from it.
    enable(tiny.pipe)
    lemica.disable(tiny.pipe)
    cache_dit.disable_cache(tiny.pipe)
    other = make("wan_unipc")
    other.pipe.__class__ = type(tiny.pipe)
    lemica.enable(other.pipe, MASK)
    assert torch.equal(run(other), alone("wan_unipc", MASK))


# Several ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What the two ranks of context_parallel_worker.py saved."""
    once_under_the_newer_diffusers()
    output = tmp_path_factory.mktemp("ranks") / "rank"
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, WORKERS / "context_parallel_worker.py", output],
        env=worker_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{output}.{rank}") for rank in range(2)]


@BEFORE_AND_AFTER
@pytest.mark.parametrize("way", ["context parallel", "sharded weights"])
@pytest.mark.parametrize("name", ["flux", "wan_unipc"])
def test_two_ranks_give_what_one_does(ranks, name, way, first):
    """Context parallel by Ulysses' attention: diffusers' ring attention has none that a CPU could run."""
    case = f"{name}, {way}, {'before' if first else 'after'}"
    if case not in ranks[0]:
        pytest.skip(f"diffusers {diffusers.__version__} has no context parallel")
    one, other = (rank[case] for rank in ranks)
    assert torch.equal(one["reused"], other["reused"])
    assert torch.equal(one["reused"], one["again"])
    torch.testing.assert_close(one["reused"], alone(name, MASK), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one["disabled"], alone(name), atol=1e-5, rtol=1e-5)
    for rank in (one, other):
        assert rank["blocks ran"] == list(MASK.steps)
        assert rank["model"] == asdict(target_of(make(name).pipe))


# Threads, and pipelines that share their parts


class PausingBar:
    """In the place of a pipeline's progress bar: waits between steps 1 and 2 until `go` is set. Step 2 is reused."""

    def __init__(self):
        self.reached, self.go, self._done = threading.Event(), threading.Event(), 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self):
        self._done += 1
        if self._done == 2:
            self.reached.set()
            assert self.go.wait(60)


@contextmanager
def paused_run(tiny: TinyPipeline):
    """Inside, a run of the pipeline waits in a thread, in its midst; its latents are given, later."""
    bar, latents = PausingBar(), []
    tiny.pipe.progress_bar = lambda total: bar
    thread = threading.Thread(target=lambda: latents.append(run(tiny)))
    thread.start()
    try:
        assert bar.reached.wait(60)
        yield latents
    finally:
        bar.go.set()
        thread.join()
        del tiny.pipe.progress_bar


def sharing(tiny: TinyPipeline, seed: int = 0, **parts) -> TinyPipeline:
    """Another pipeline of the same parts but for the scheduler."""
    components = {**tiny.pipe.components, "scheduler": flow_euler(use_dynamic_shifting=True), **parts}
    pipe = type(tiny.pipe)(**components)
    pipe.set_progress_bar_config(disable=True)
    return TinyPipeline(pipe, tiny.call, tiny.blocks)


def test_a_pipeline_that_runs_refuses_a_second_thread_and_goes_on(tiny):
    lemica.enable(tiny.pipe, MASK)
    refusal = r"^this pipeline is running already, .* wait until it is done$"
    with paused_run(tiny) as latents, pytest.raises(RuntimeError, match=refusal):
        run(tiny)
    assert torch.equal(latents[0], alone("flux", MASK))
    assert torch.equal(run(tiny), alone("flux", MASK))


@pytest.mark.parametrize("built_first", [True, False], ids=["built before", "built after"])
def test_a_pipeline_that_is_not_enabled_runs_uncached_with_the_denoiser_of_one_that_is(tiny, built_first):
    other = sharing(tiny)
    lemica.enable(tiny.pipe, MASK)
    if not built_first:
        # Of the class that the enabled pipeline has.
        other = sharing(tiny)
    assert torch.equal(run(other), alone("flux"))
    with paused_run(tiny) as latents:
        assert torch.equal(run(other), alone("flux"))
    assert torch.equal(latents[0], alone("flux", MASK))


def test_of_two_pipelines_that_share_a_denoiser_one_is_enabled_at_a_time(tiny):
    other = sharing(tiny)
    lemica.enable(tiny.pipe, MASK)
    with pytest.raises(ValueError, match=r"^LeMiCa is at work on this denoiser or scheduler already"):
        lemica.enable(other.pipe, OTHER_MASK)
    assert torch.equal(run(tiny), alone("flux", MASK))
    lemica.disable(tiny.pipe)
    lemica.enable(other.pipe, OTHER_MASK)
    assert torch.equal(run(other), alone("flux", OTHER_MASK))
    assert torch.equal(run(tiny), alone("flux"))


def test_a_pipeline_that_is_deleted_lets_its_denoiser_go():
    tiny = make("flux")
    other = sharing(tiny)
    acceleration = lemica.enable(tiny.pipe, MASK)
    run(tiny)
    gone = weakref.ref(tiny.pipe)
    del tiny
    gc.collect()
    assert gone() is None
    lemica.enable(other.pipe, OTHER_MASK)
    acceleration.detach()
    assert torch.equal(run(other), alone("flux", OTHER_MASK))


def test_a_copy_of_the_scheduler_does_not_hold_the_denoiser():
    tiny = make("flux")
    lemica.enable(tiny.pipe, MASK)
    scheduler, denoiser = copy.deepcopy(tiny.pipe.scheduler), weakref.ref(tiny.pipe.transformer)
    del tiny
    gc.collect()
    assert denoiser() is None
    scheduler.set_timesteps(6, mu=1.0)


def test_a_pipeline_of_the_class_that_an_enabled_one_has_is_enabled_and_sees_each_call_once(tiny):
    lemica.enable(tiny.pipe, MASK)
    other = make("flux")
    other.pipe = type(tiny.pipe)(
        **{**other.pipe.components, "scheduler": type(tiny.pipe.scheduler).from_config(tiny.pipe.scheduler.config)}
    )
    other.pipe.set_progress_bar_config(disable=True)
    lemica.enable(other.pipe, OTHER_MASK)
    assert torch.equal(run(other), alone("flux", OTHER_MASK))
    assert lemica.summary(other.pipe).fallbacks == ()
    lemica.disable(other.pipe)
    lemica.disable(tiny.pipe)
    assert torch.equal(run(other), alone("flux"))


def test_threads_take_turns_after_an_error_too(tiny):
    lemica.enable(tiny.pipe, MASK)
    results = []

    def work(**changes):
        try:
            results.append(run(tiny, **changes))
        except ZeroDivisionError as error:
            results.append(error)

    for changes in ({}, {"callback_on_step_end": lambda *_: 1 // 0}, {}):
        thread = threading.Thread(target=work, kwargs=changes)
        thread.start()
        thread.join()
    assert torch.equal(results[0], alone("flux", MASK)) and torch.equal(results[2], alone("flux", MASK))
    assert isinstance(results[1], ZeroDivisionError)


def test_a_call_of_the_pipeline_in_its_own_callback_is_refused_and_the_outer_one_goes_on(tiny):
    lemica.enable(tiny.pipe, MASK)
    refusals = []

    def call_again(_pipe, _step, _time, tensors):
        with pytest.raises(RuntimeError, match="this pipeline is running already") as refusal:
            run(tiny)
        refusals.append(refusal)
        return tensors

    assert torch.equal(run(tiny, callback_on_step_end=call_again), alone("flux", MASK))
    assert len(refusals) == 6


def test_what_a_callback_does_with_the_denoiser_is_no_part_of_the_run(tiny):
    other = sharing(tiny)
    lemica.enable(tiny.pipe, MASK)

    def call_other(_pipe, step, _time, tensors):
        if step == 1:
            assert torch.equal(run(other), alone("flux"))
        return tensors

    assert torch.equal(run(tiny, callback_on_step_end=call_other), alone("flux", MASK))
    assert lemica.summary(tiny.pipe).fallbacks == ()


def test_callbacks_of_diffusers_work():
    tiny = make("unet_ddim")
    cutoff = diffusers.callbacks.SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)
    uncached = run(tiny, callback_on_step_end=cutoff)
    lemica.enable(tiny.pipe, held(*range(6)))
    assert torch.equal(run(tiny, callback_on_step_end=cutoff), uncached)
    assert not torch.equal(uncached, alone("unet_ddim"))


# What ends a run early


class Ending:
    """A callback that ends the run after step 2, in one of several ways."""

    def __init__(self, end):
        self.end = end

    def __call__(self, pipe, step, _time, tensors):
        if step == 2:
            assert kept(pipe)
            self.end(pipe)
        return tensors


def interrupt(pipe):
    pipe._interrupt = True


def raising(error):
    def end(_pipe):
        raise error

    return end


ENDS = {
    "interrupt": interrupt,
    "error": raising(ZeroDivisionError()),
    "keyboard": raising(KeyboardInterrupt()),
    "disable": lemica.disable,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", ["flux", "wan_unipc"])
def test_a_run_that_ends_early_leaves_nothing_and_the_next_one_is_right(name, end):
    tiny = make(name)
    lemica.enable(tiny.pipe, MASK)
    store = kept(tiny.pipe)
    try:
        run(tiny, callback_on_step_end=Ending(ENDS[end]))
    except (ZeroDivisionError, KeyboardInterrupt) as error:
        assert end in ("error", "keyboard"), error
    assert store == {}
    assert torch.equal(run(tiny), alone(name, None if end == "disable" else MASK))


def test_no_kept_output_outlives_the_call(tiny, monkeypatch):
    outputs = []

    def noting(done, output):
        outputs.append(weakref.ref(output[0]))
        return entry(done, output)

    entry = cache.Kept
    monkeypatch.setattr(cache, "Kept", noting)
    lemica.enable(tiny.pipe, MASK)
    run(tiny)
    # Two that the mask reads, and the first, of which it is not known yet whether the run begins in the middle.
    assert len(outputs) == 3
    assert all(output() is None for output in outputs)
    assert lemica.summary(tiny.pipe).kept_bytes > 0


# Calls of other sizes


def test_several_images_per_prompt_are_the_images_of_several_calls(tiny):
    lemica.enable(tiny.pipe, MASK)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    both = tiny.pipe(
        num_inference_steps=6, num_images_per_prompt=2, generator=generators, return_dict=False, **tiny.call
    )[0]
    each = torch.cat([run(tiny, seed=seed) for seed in (0, 1)])
    torch.testing.assert_close(both, each, atol=1e-5, rtol=1e-5)
    assert lemica.summary(tiny.pipe).fallbacks == ()


@pytest.mark.parametrize("name", ["flux", "wan_unipc"])
def test_a_call_of_another_size_is_a_run_of_its_own(name):
    tiny = make(name)
    lemica.enable(tiny.pipe, MASK)
    run(tiny)
    batch = {"num_images_per_prompt" if name == "flux" else "num_videos_per_prompt": 2}
    for changes in (batch, {"height": 96}, {}):
        fresh = make(name)
        lemica.enable(fresh.pipe, MASK)
        assert torch.equal(run(tiny, **changes), run(fresh, **changes))
        assert lemica.summary(tiny.pipe).fallbacks == ()


def test_a_budget_chooses_a_mask_for_every_number_of_steps(tiny):
    lemica.enable(tiny.pipe, budget=3)
    for steps in (6, 4, 6):
        blocks = counted_blocks(tiny)
        ran = run_noting(tiny, blocks, steps=steps)[1]
        mask = lemica.summary(tiny.pipe).mask
        assert (mask.budget, mask.num_steps) == (3, steps)
        assert ran == list(mask.steps)


def test_a_mask_refuses_another_number_of_steps_before_anything_is_computed(tiny):
    lemica.enable(tiny.pipe, MASK)
    blocks = counted_blocks(tiny)
    with pytest.raises(ValueError, match=r"^the mask is for 6 steps and this run has 4: run as many as .*"):
        run(tiny, steps=4)
    assert blocks.taken() == 0
    assert torch.equal(run(tiny), alone("flux", MASK))


# Changes of the pipeline


def state_of(pipe) -> list:
    parts = [pipe, pipe.scheduler, *denoisers_of(pipe)]
    return [(type(part), sorted(vars(part))) for part in parts]


def test_another_scheduler_is_refused_until_it_is_enabled_again():
    tiny = make("unet_ddim")
    first = tiny.pipe.scheduler
    second = diffusers.DPMSolverMultistepScheduler.from_config(first.config)
    kinds = [type(first), type(second)]
    lemica.enable(tiny.pipe, MASK)
    run(tiny)
    tiny.pipe.scheduler = second
    blocks = counted_blocks(tiny)
    with pytest.raises(RuntimeError, match=r"^the pipeline has another scheduler or denoiser .* lemica.enable again$"):
        run(tiny)
    assert blocks.taken() == 0
    lemica.enable(tiny.pipe, MASK)
    assert run_noting(tiny, blocks)[1] == list(MASK.steps)
    lemica.disable(tiny.pipe)
    assert [type(first), type(second)] == kinds
    assert not any("lemica" in name for scheduler in (first, second) for name in vars(scheduler))


@pytest.mark.parametrize("part", DENOISERS[:2])
def test_another_denoiser_is_refused(part):
    tiny, other = make("wan_two_experts"), make("wan_two_experts")
    lemica.enable(tiny.pipe, MASK)
    setattr(tiny.pipe, part, getattr(other.pipe, part))
    with pytest.raises(RuntimeError, match="another scheduler or denoiser"):
        run(tiny)
    lemica.enable(tiny.pipe, MASK)
    assert torch.equal(run(tiny), alone("wan_two_experts", MASK))


@pytest.mark.parametrize("which", ["enabled", "built of its parts"])
def test_an_enabled_pipeline_is_saved_under_the_names_of_its_own_classes(tiny, which, tmp_path):
    absent = {name: None for name, part in tiny.pipe.components.items() if part is None}
    lemica.enable(tiny.pipe, MASK)
    saved = tiny if which == "enabled" else sharing(tiny, scheduler=tiny.pipe.scheduler)
    saved.pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "FluxPipeline"
    assert index["transformer"] == ["diffusers", "FluxTransformer2DModel"]
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert json.loads((tmp_path / "transformer/config.json").read_text())["_class_name"] == "FluxTransformer2DModel"
    loaded = diffusers.FluxPipeline.from_pretrained(tmp_path, **absent)
    loaded.set_progress_bar_config(disable=True)
    assert owner_of(loaded) is None
    assert torch.equal(run(TinyPipeline(loaded, tiny.call, [])), alone("flux"))


def test_a_copy_of_the_scheduler_serves_another_pipeline(tiny):
    lemica.enable(tiny.pipe, MASK)
    other = make("flux")
    other.pipe.scheduler = copy.deepcopy(tiny.pipe.scheduler)
    assert torch.equal(run(other), alone("flux"))
    lemica.enable(other.pipe, OTHER_MASK)
    assert torch.equal(run(other), alone("flux", OTHER_MASK))
    assert torch.equal(run(tiny), alone("flux", MASK))
    lemica.disable(tiny.pipe)
    assert torch.equal(run(other), alone("flux", OTHER_MASK))


def test_a_copy_of_the_denoiser_is_an_ordinary_one(tiny):
    lemica.enable(tiny.pipe, MASK)
    transformer = tiny.pipe.transformer
    for other in (copy.deepcopy(transformer), pickle.loads(pickle.dumps(transformer))):
        assert type(other) is type(transformer)
        # The name of a call may still be watched, which does nothing to the call.
        assert vars(other).keys() - {"cache_context"} == vars(make("flux").pipe.transformer).keys()


@pytest.mark.parametrize("original_first", [True, False], ids=["original first", "copy first"])
def test_a_copy_of_an_enabled_pipeline_is_not_enabled(tiny, original_first):
    lemica.enable(tiny.pipe, MASK)
    other = TinyPipeline(copy.deepcopy(tiny.pipe), tiny.call, [])
    assert owner_of(other.pipe) is None
    if original_first:
        assert torch.equal(run(tiny), alone("flux", MASK))
    assert torch.equal(run(other), alone("flux"))
    assert lemica.summary(tiny.pipe).mask == (MASK if original_first else None)
    assert torch.equal(run(tiny), alone("flux", MASK))
    lemica.enable(other.pipe, OTHER_MASK)
    assert torch.equal(run(other), alone("flux", OTHER_MASK))
    assert torch.equal(run(tiny), alone("flux", MASK))


def test_from_pipe_makes_a_pipeline_that_is_not_enabled(tiny):
    lemica.enable(tiny.pipe, MASK)
    other = diffusers.FluxPipeline.from_pipe(tiny.pipe)
    assert owner_of(other) is None and other.transformer is tiny.pipe.transformer
    assert torch.equal(run(TinyPipeline(other, tiny.call, [])), alone("flux"))
    assert torch.equal(run(tiny), alone("flux", MASK))


# Calibration


@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_pipeline_is_calibrated_to_the_same_graph(tiny, offload, offload_hooks):
    def graph():
        return lemica.calibrate(tiny.pipe, [tiny.call], 6, max_gap=2, show_progress=False)

    expected = list(graph().edges())
    OFFLOADS[offload](tiny.pipe)
    assert list(graph().edges()) == expected
    assert offload_hooks.taken() > 0
    assert torch.equal(run(tiny), alone("flux"))


# Enable and disable


def test_enabling_again_replaces_the_mask(tiny):
    before = state_of(tiny.pipe)
    lemica.enable(tiny.pipe, MASK)
    once = state_of(tiny.pipe)
    lemica.enable(tiny.pipe, OTHER_MASK)
    assert [names for _, names in state_of(tiny.pipe)] == [names for _, names in once]
    assert torch.equal(run(tiny), alone("flux", OTHER_MASK))
    assert lemica.summary(tiny.pipe).mask == OTHER_MASK
    lemica.disable(tiny.pipe)
    assert [kind for kind, _ in state_of(tiny.pipe)] == [kind for kind, _ in before]


def test_after_the_with_statement_the_pipeline_is_as_before(tiny):
    run(tiny)
    before = state_of(tiny.pipe)
    with pytest.raises(ZeroDivisionError), lemica.enable(tiny.pipe, MASK):
        assert torch.equal(run(tiny), alone("flux", MASK))
        raise ZeroDivisionError
    assert state_of(tiny.pipe) == before
    with lemica.enable(tiny.pipe, MASK):
        lemica.enable(tiny.pipe, OTHER_MASK)
    assert state_of(tiny.pipe) == before
    assert torch.equal(run(tiny), alone("flux"))


def test_disabling_what_is_not_enabled_does_nothing(tiny):
    before = state_of(tiny.pipe)
    lemica.disable(tiny.pipe)
    assert state_of(tiny.pipe) == before
    acceleration = lemica.enable(tiny.pipe, MASK)
    for _ in range(2):
        lemica.disable(tiny.pipe)
        acceleration.detach()
    assert state_of(tiny.pipe) == before
    lemica.enable(tiny.pipe, OTHER_MASK)
    acceleration.detach()
    assert torch.equal(run(tiny), alone("flux", OTHER_MASK))


def test_a_mask_that_is_refused_leaves_the_one_before(tiny):
    lemica.enable(tiny.pipe, MASK)
    with pytest.raises(ValueError, match="the mask keeps residuals"):
        lemica.enable(tiny.pipe, Mask(MASK.steps))
    assert torch.equal(run(tiny), alone("flux", MASK))


def test_calibrating_an_enabled_pipeline_is_refused_and_leaves_it_enabled(tiny):
    lemica.enable(tiny.pipe, MASK)
    with pytest.raises(Refused, match="LeMiCa is at work on this denoiser or scheduler already"):
        lemica.calibrate(tiny.pipe, [tiny.call], 6, max_gap=2, show_progress=False)
    assert torch.equal(run(tiny), alone("flux", MASK))
