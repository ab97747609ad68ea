"""Reused steps: no block runs, the stack's output is embedding + residual, the mask is obeyed, nothing is left over."""

import copy
import dataclasses
import itertools
import weakref
from types import SimpleNamespace
from typing import ClassVar

import hyvideo.pipelines.hunyuan_video_pipeline as kit
import pytest
import torch
from diffusers.hooks import HookRegistry
from hyvideo.commons.infer_state import InferState, Mask, step_mask
from hyvideo.pipelines.hunyuan_video_pipeline import KEPT_KINDS, StepCache, Stopwatch
from runs import REQUEST, STEPS, Trace, generate, prepared
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("fast_attention")


def traced(pipe, steps, **changes):
    with Trace().watching(pipe.transformer) as trace:
        output = generate(pipe, steps, **changes)
    return output, trace.steps


@pytest.mark.parametrize("version", ["480p_t2v", "480p_i2v_step_distilled"])
@pytest.mark.parametrize("rule", ["hold", "damped"])
@pytest.mark.parametrize("kept", list(KEPT_KINDS))
def test_every_step_computed_equals_no_cache_to_the_bit(load_pipeline, reference_image, version, kept, rule):
    pipe = load_pipeline(version)
    image = {"reference_image": reference_image} if "i2v" in version else {}
    assert torch.equal(generate(pipe, (True,) * 6, kept, rule, **image).videos, generate(pipe, **image).videos)


@pytest.mark.parametrize("version", ["480p_t2v", "480p_i2v", "480p_t2v_distilled", "480p_i2v_step_distilled"])
def test_reused_steps_run_no_block_and_add_the_last_residual_exactly(load_pipeline, reference_image, version):
    pipe = load_pipeline(version)
    image = {"reference_image": reference_image} if "i2v" in version else {}
    output, steps = traced(pipe, STEPS, **image)
    blocks = len(pipe.transformer.double_blocks)
    assert [step["blocks"] for step in steps] == [blocks * runs for runs in STEPS]
    assert [step["text"] for step in steps] == [int(runs) for runs in STEPS]
    residual = steps[1]["stack_output"] - steps[1]["embedding"]
    for step in steps[2:4]:
        assert torch.equal(step["stack_output"], step["embedding"] + residual)
    assert not torch.equal(steps[2]["embedding"], steps[3]["embedding"])
    assert not torch.equal(output.videos, generate(pipe, **image).videos)


@pytest.mark.parametrize(
    ("num_steps", "budget"), [(50, 25), (50, 20), (50, 15), (50, 10), (8, 4), (12, 5), (30, 15), (60, 25)]
)
def test_the_mask_is_obeyed_at_every_step_count(load_pipeline, num_steps, budget):
    pipe = load_pipeline("480p_t2v_distilled")
    pipe.infer_state = InferState(enable_cache=True, cache_type="lemica", lemica_step=budget)
    with Trace().watching(pipe.transformer) as trace:
        report = pipe(**REQUEST | {"num_inference_steps": num_steps}).report
    assert tuple(step["blocks"] > 0 for step in trace.steps) == step_mask(budget, num_steps)
    assert report.mask_origin == ("released" if num_steps == 50 else "derived")
    assert (report.num_steps, len(report.computed_steps), len(report.step_seconds)) == (num_steps, budget, num_steps)
    assert 0 < report.dit_seconds <= report.total_seconds


def test_calls_do_not_influence_each_other(load_pipeline):
    pipe = load_pipeline("480p_t2v")
    alone = generate(pipe, STEPS).videos
    generate(pipe, STEPS, aspect_ratio="16:9", video_length=5, prompt="two stars", seed=8)
    generate(pipe, (True, False, False, True), num_inference_steps=4, guidance_scale=1.0)
    generate(pipe)
    assert torch.equal(generate(pipe, STEPS).videos, alone)


class CountedCache(StepCache):
    """Remembers every instance, and the tensors that each held after each step."""

    instances: ClassVar[list] = []

    def __init__(self, transformer, mask):
        super().__init__(transformer, mask)
        self.held = []
        CountedCache.instances.append(self)

    def compute(self, step, inputs):
        output = super().compute(step, inputs)
        self.held.append(list(self.kept))
        return output

    def reuse(self, step, inputs):
        output = super().reuse(step, inputs)
        self.held.append(list(self.kept))
        return output


@pytest.fixture
def counted_cache(monkeypatch):
    monkeypatch.setattr(CountedCache, "instances", [])
    monkeypatch.setattr(kit, "StepCache", CountedCache)
    return CountedCache


def test_one_tensor_is_held_while_steps_reuse_it_and_none_after_the_call(load_pipeline, counted_cache):
    pipe = load_pipeline("480p_t2v")
    generate(pipe, STEPS)
    (cache,) = counted_cache.instances
    assert [len(held) for held in cache.held] == [0, 1, 1, 1, 0, 0]
    (residual,) = cache.held[1]
    assert all(held[0] is residual for held in cache.held[1:4])
    tokens = 8 * 8
    assert residual.shape == (2, tokens, pipe.transformer.hidden_size)
    assert residual.untyped_storage().nbytes() == residual.nbytes
    assert cache.kept == []


def test_what_a_call_kept_is_freed_when_it_returns(load_pipeline, monkeypatch):
    kept = []
    compute = StepCache.compute

    def noting(cache, step, inputs):
        velocity = compute(cache, step, inputs)
        kept.extend(weakref.ref(tensor) for tensor in cache.kept)
        return velocity

    monkeypatch.setattr(StepCache, "compute", noting)
    generate(load_pipeline("480p_t2v"), STEPS)
    assert [tensor() for tensor in kept] == [None]


@pytest.mark.parametrize("fatal_module", ["final_layer", "img_in"])
def test_a_call_that_fails_midway_leaves_nothing_behind(load_pipeline, counted_cache, fatal_module):
    pipe = load_pipeline("480p_t2v")
    expected = generate(pipe, STEPS).videos
    hooks_before = _hook_count(pipe.transformer)
    calls = itertools.count(1)

    def fail_on_third_call(*_):
        if next(calls) == 3:
            raise RuntimeError("out of memory")

    hook = getattr(pipe.transformer, fatal_module).register_forward_pre_hook(fail_on_third_call)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(pipe, STEPS)
    hook.remove()
    assert counted_cache.instances[-1].held[1]
    assert counted_cache.instances[-1].kept == []
    assert _hook_count(pipe.transformer) == hooks_before
    assert torch.equal(generate(pipe, STEPS).videos, expected)


def _hook_count(module) -> int:
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in module.modules())


def test_a_mask_for_another_step_count_is_refused_before_anything_is_encoded(load_pipeline, monkeypatch):
    pipe = load_pipeline("480p_t2v")
    monkeypatch.setitem(vars(pipe), "encode_prompt", lambda *_, **__: pytest.fail("the prompt was encoded"))
    with pytest.raises(ValueError, match="the mask is for 6 steps but the sampler runs 7"):
        generate(pipe, STEPS, num_inference_steps=7)


@pytest.mark.parametrize("mask", [Mask((True, False, True)), Mask((True, False, True)).with_weights(())])
def test_the_loop_refuses_a_mask_without_weights_or_for_another_number_of_steps(load_pipeline, mask):
    inputs = prepared(load_pipeline("480p_t2v"))
    with pytest.raises(ValueError, match=f"the mask must have weights .* for the {len(inputs.timesteps)} steps"):
        dataclasses.replace(inputs, mask=mask)


def test_a_missing_super_resolution_model_is_noticed_before_any_step(load_pipeline):
    pipe = load_pipeline("480p_t2v")
    with Trace().watching(pipe.transformer) as trace, pytest.raises(ValueError, match="no super-resolution model"):
        generate(pipe, enable_sr=True)
    assert not trace.steps


def test_an_offloaded_transformer_is_moved_also_when_others_hooked_it(load_pipeline, monkeypatch):
    pipe = load_pipeline("480p_t2v")
    HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    moves = []
    monkeypatch.setattr(type(pipe.transformer), "to", lambda _, device: moves.append(str(device)))
    pipe.enable_offloading = True
    with pipe.on_device(pipe.transformer):
        assert moves == ["cpu"]
    assert moves == ["cpu", "cpu"]


def test_the_loop_can_run_again_on_the_same_inputs(load_pipeline):
    pipe = load_pipeline("480p_t2v")
    inputs = prepared(pipe)
    assert torch.equal(pipe.denoise(inputs), pipe.denoise(inputs))
    assert torch.equal(pipe.denoise(inputs), generate(pipe).videos)


def test_rotary_tables_are_made_before_the_loop(load_pipeline, monkeypatch):
    pipe = load_pipeline("480p_t2v")
    inputs = prepared(pipe, aspect_ratio="16:9", video_length=5, num_inference_steps=2)
    tables = [inputs.transformer_kwargs[name] for name in ("freqs_cos", "freqs_sin")]
    grid = tuple(inputs.noise.shape[2:])
    assert pipe.transformer.patch_size == [1, 1, 1]
    assert all(map(torch.equal, tables, pipe.transformer.get_rotary_pos_embed(grid)))
    assert {table.device for table in tables} == {inputs.noise.device}
    monkeypatch.setitem(vars(pipe.transformer), "get_rotary_pos_embed", lambda *_: pytest.fail("made anew in the loop"))
    pipe.denoise(inputs)


class CopiesFromCpu(TorchDispatchMode):
    """Counts the tensors that are copied from the CPU to another device: the host waits for each."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        copied = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}.get(func)
        if copied is not None:
            self.count += args[copied].device.type == "cpu" != result.device.type
        return result


def test_copies_to_another_device_are_seen():
    with CopiesFromCpu() as copies:
        torch.ones(2).to("meta")
        torch.empty(2, device="meta").copy_(torch.ones(2))
        torch.ones(2).clone()
    assert copies.count == 2


@pytest.mark.parametrize("version", ["480p_t2v", "480p_i2v_step_distilled"])
@pytest.mark.parametrize("kept", list(KEPT_KINDS))
def test_a_reused_step_copies_nothing_to_the_device(load_pipeline, version, kept):
    """The meta device stands in for a GPU: it is not the CPU, and copies to it are seen."""
    net = copy.deepcopy(load_pipeline(version).transformer).to("meta")
    times = {name: torch.ones(2, device="meta") for name in ("timestep", "timestep_r")}
    times |= {} if net.config.use_meanflow else {"timestep_r": None}
    inputs = dict(hidden_states=torch.ones(2, 65, 2, 4, 4, device="meta"), text_states_2=None, guidance=None, **times)
    tensor = torch.ones((2, 32, 2, 4, 4) if kept == "velocity" else (2, 32, net.hidden_size), device="meta")
    with CopiesFromCpu() as copies:
        velocity = KEPT_KINDS[kept].reuse(net, inputs, tensor)
    assert velocity.shape == (2, 32, 2, 4, 4)
    assert copies.count == 0


class CountingStopwatch(Stopwatch):
    """Notes at both ends of every step how many copies there were."""

    def __init__(self, copies: CopiesFromCpu):
        super().__init__(torch.device("cpu"))
        self.copies, self.at_marks = copies, []

    def mark(self):
        self.at_marks.append(self.copies.count)


@pytest.mark.parametrize("kept", list(KEPT_KINDS))
def test_the_loops_reused_steps_copy_nothing_to_the_device(load_pipeline, monkeypatch, kept):
    """Inputs, weighted sum, guidance and sampler included. Computed steps are stand-ins: upstream's forward copies."""
    pipe = load_pipeline("480p_t2v")
    inputs = prepared(pipe)
    mask = Mask(STEPS, kept, rule="damped").with_weights(inputs.scheduler.sigmas.tolist())
    # The sampler finds its place before the first step, once.
    scheduler = copy.copy(inputs.scheduler)
    scheduler._step_index = 0
    away = {name: getattr(inputs, name).to("meta") for name in ("noise", "condition", "timesteps")}
    inputs = dataclasses.replace(inputs, mask=mask, scheduler=scheduler, **away)
    net = copy.deepcopy(pipe.transformer).to("meta")
    velocity_shape = inputs.condition[:, :32].shape
    residual_shape = (len(inputs.condition), inputs.noise[0, 0].numel(), net.hidden_size)
    shape = velocity_shape if kept == "velocity" else residual_shape

    def compute(cache, step, arguments):
        cache.transformer = net
        cache.kept.append(torch.ones(shape, device="meta"))
        return torch.ones(velocity_shape, device="meta")

    monkeypatch.setattr(StepCache, "compute", compute)
    with CopiesFromCpu() as copies:
        clock = CountingStopwatch(copies)
        latents = pipe.denoise(inputs, clock)
    assert (latents.shape, latents.device.type) == (inputs.noise.shape, "meta")
    assert len(clock.at_marks) == 7
    assert clock.at_marks[2] == clock.at_marks[4]


def test_what_is_kept_has_the_dtype_of_the_blocks(load_pipeline):
    """As under autocast on a GPU, where float32 text makes all tokens float32 on their way to the final layer."""
    pipe = load_pipeline("480p_t2v")
    net = copy.deepcopy(pipe.transformer)
    final = net.final_layer.forward
    net.final_layer.forward = lambda tokens, vector: final(tokens.float(), vector)
    inputs = prepared(pipe)
    arguments = pipe._transformer_inputs(0, inputs.noise, inputs)
    with torch.no_grad():
        _, expected = KEPT_KINDS["residual"].compute(net, arguments)
        net.final_layer.register_forward_pre_hook(lambda _, tokens: (tokens[0].double(), *tokens[1:]))
        _, kept = KEPT_KINDS["residual"].compute(net, arguments)
    assert kept.dtype == torch.float32
    assert torch.equal(kept, expected)


def test_guidance_is_refused_where_the_model_has_none(load_pipeline):
    with pytest.raises(ValueError, match="needs a model that embeds guidance"):
        generate(load_pipeline("480p_t2v"), embedded_guidance_scale=6.0)


def test_an_image_for_a_text_to_video_model_is_refused(load_pipeline, reference_image):
    with pytest.raises(ValueError, match="this model does t2v: leave out reference_image"):
        generate(load_pipeline("480p_t2v"), reference_image=reference_image)


def test_the_progress_bar_counts_computed_and_reused_steps(load_pipeline, monkeypatch):
    pipe, shown = load_pipeline("480p_t2v"), []
    bar = SimpleNamespace(
        update=lambda: None, set_postfix=lambda **counts: shown.append((counts["computed"], counts["reused"]))
    )
    kit_bar = pipe._show_progress
    monkeypatch.setitem(vars(pipe), "_show_progress", lambda _, done: kit_bar(bar, done))
    generate(pipe, STEPS)
    assert shown == [(1, 0), (2, 0), (2, 1), (2, 2), (3, 2), (4, 2)]
