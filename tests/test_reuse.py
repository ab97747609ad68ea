"""Reused steps: no block runs, the stack's output is embedding + residual, the mask is obeyed, nothing is left over."""

import copy
import dataclasses
import weakref
from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from diffusers.hooks import HookRegistry
from hyvideo.commons.infer_state import InferState, ReuseRule, step_mask
from hyvideo.pipelines.hunyuan_video_pipeline import REUSED_KINDS, StepCache
from torch.utils._python_dispatch import TorchDispatchMode

REQUEST = dict(
    prompt="a red circle moves left",
    aspect_ratio="1:1",
    video_length=1,
    num_inference_steps=6,
    enable_sr=False,
    prompt_rewrite=False,
    seed=3,
    output_type="latent",
)
MASK = (True, True, False, False, True, True)


def generate(pipe, mask=None, **changes):
    pipe.infer_state = InferState(enable_cache=mask is not None, cache_type="lemica", lemica_mask=mask)
    return pipe(**REQUEST | changes)


class Trace:
    """Per transformer step: how often blocks and text path ran, and the tensors at both ends of the block stack."""

    def __init__(self):
        self.steps = []

    @contextmanager
    def watching(self, net):
        hooks = [block.register_forward_pre_hook(self._count("blocks")) for block in net.double_blocks]
        hooks += [net.txt_in.register_forward_pre_hook(self._count("text"))]
        hooks += [net.img_in.register_forward_hook(self._begin)]
        hooks += [net.final_layer.register_forward_pre_hook(self._end)]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, name):
        def count(*_):
            self.steps[-1][name] += 1

        return count

    def _begin(self, _module, _args, output):
        self.steps.append({"blocks": 0, "text": 0, "embedding": output.clone()})

    def _end(self, _module, args):
        self.steps[-1]["stack_output"] = args[0].clone()


def traced(pipe, mask, **changes):
    with Trace().watching(pipe.transformer) as trace:
        output = generate(pipe, mask, **changes)
    return output, trace.steps


@pytest.mark.parametrize("version", ["480p_t2v", "480p_i2v_step_distilled"])
def test_every_step_computed_equals_no_cache_to_the_bit(load_pipeline, reference_image, version):
    pipe = load_pipeline(version)
    image = {"reference_image": reference_image} if "i2v" in version else {}
    assert torch.equal(generate(pipe, (True,) * 6, **image).videos, generate(pipe, **image).videos)


@pytest.mark.parametrize("version", ["480p_t2v", "480p_i2v", "480p_t2v_distilled", "480p_i2v_step_distilled"])
def test_reused_steps_run_no_block_and_add_the_last_residual_exactly(load_pipeline, reference_image, version):
    pipe = load_pipeline(version)
    image = {"reference_image": reference_image} if "i2v" in version else {}
    output, steps = traced(pipe, MASK, **image)
    blocks = len(pipe.transformer.double_blocks)
    assert [step["blocks"] for step in steps] == [blocks * runs for runs in MASK]
    assert [step["text"] for step in steps] == [int(runs) for runs in MASK]
    residual = steps[1]["stack_output"] - steps[1]["embedding"]
    for step in steps[2:4]:
        assert torch.equal(step["stack_output"], step["embedding"] + residual)
    assert not torch.equal(steps[2]["embedding"], steps[3]["embedding"])
    assert not torch.equal(output.videos, generate(pipe, **image).videos)


@pytest.mark.parametrize(
    ("num_steps", "budget"), [(50, 25), (50, 20), (50, 15), (50, 10), (8, 4), (12, 5), (30, 15), (60, 25)]
)
def test_mask_is_obeyed_at_every_step_count(load_pipeline, num_steps, budget):
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
    alone = generate(pipe, MASK).videos
    generate(pipe, MASK, aspect_ratio="16:9", video_length=5, prompt="two stars", seed=8)
    generate(pipe, (True, False, False, True), num_inference_steps=4, guidance_scale=1.0)
    generate(pipe)
    assert torch.equal(generate(pipe, MASK).videos, alone)


class CountedCache(StepCache):
    """Remembers every instance, and the storages that each held after each step."""

    instances: ClassVar[list] = []

    def __init__(self, transformer, rule):
        super().__init__(transformer, rule)
        self.held = []
        CountedCache.instances.append(self)

    def compute(self, inputs, keep):
        output = super().compute(inputs, keep)
        self.held.append(list(self.kept))
        return output

    def reuse(self, inputs, weights):
        output = super().reuse(inputs, weights)
        self.held.append(list(self.kept))
        return output


@pytest.fixture
def counted_cache(monkeypatch):
    import hyvideo.pipelines.hunyuan_video_pipeline as module

    monkeypatch.setattr(CountedCache, "instances", [])
    monkeypatch.setattr(module, "StepCache", CountedCache)
    return CountedCache


def test_one_tensor_is_held_while_steps_reuse_it_and_none_after_the_call(load_pipeline, counted_cache):
    pipe = load_pipeline("480p_t2v")
    generate(pipe, MASK)
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

    def noting(cache, inputs, keep):
        velocity = compute(cache, inputs, keep)
        kept.extend(weakref.ref(tensor) for tensor in cache.kept)
        return velocity

    monkeypatch.setattr(StepCache, "compute", noting)
    generate(load_pipeline("480p_t2v"), MASK)
    assert [tensor() for tensor in kept] == [None]


def test_a_call_that_fails_midway_leaves_nothing_behind(load_pipeline, counted_cache):
    pipe = load_pipeline("480p_t2v")
    expected = generate(pipe, MASK).videos
    hooks_before = _hook_count(pipe.transformer)
    for fatal_module in ("final_layer", "img_in"):
        calls = 0

        def fail_on_third_call(*_):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise RuntimeError("out of memory")

        hook = getattr(pipe.transformer, fatal_module).register_forward_pre_hook(fail_on_third_call)
        with pytest.raises(RuntimeError, match="out of memory"):
            generate(pipe, MASK)
        hook.remove()
        assert counted_cache.instances[-1].kept == []
        assert _hook_count(pipe.transformer) == hooks_before
        assert torch.equal(generate(pipe, MASK).videos, expected)


def _hook_count(module) -> int:
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in module.modules())


def test_a_mask_for_another_step_count_is_refused_before_anything_is_encoded(load_pipeline, monkeypatch):
    pipe = load_pipeline("480p_t2v")
    monkeypatch.setattr(pipe, "encode_prompt", lambda *_, **__: pytest.fail("the prompt was encoded"))
    with pytest.raises(ValueError, match="the mask is for 6 steps but the sampler runs 7"):
        generate(pipe, MASK, num_inference_steps=7)


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


def test_replays_continue_a_trajectory_to_the_bit(load_pipeline):
    pipe = load_pipeline("480p_t2v")
    pipe.infer_state = None
    settings = {name: value for name, value in REQUEST.items() if name not in ("enable_sr", "output_type")}
    inputs = prepared(pipe, **settings)
    trajectory = [inputs.noise]
    final = pipe.denoise(inputs, on_step=lambda _, latents: trajectory.append(latents))
    assert torch.equal(final, trajectory[-1])
    assert torch.equal(pipe.denoise(inputs, start=3, latents=trajectory[3]), final)
    assert torch.equal(pipe.denoise(inputs), final)


def test_rotary_tables_are_made_before_the_loop(load_pipeline, monkeypatch):
    pipe = load_pipeline("480p_t2v")
    settings = {name: value for name, value in REQUEST.items() if name not in ("enable_sr", "output_type")}
    inputs = prepared(pipe, **settings | {"aspect_ratio": "16:9", "video_length": 5})
    tables = [inputs.transformer_kwargs[name] for name in ("freqs_cos", "freqs_sin")]
    grid = tuple(inputs.noise.shape[2:])
    assert pipe.transformer.patch_size == [1, 1, 1]
    assert all(map(torch.equal, tables, pipe.transformer.get_rotary_pos_embed(grid)))
    assert {table.device for table in tables} == {inputs.noise.device}
    monkeypatch.setattr(pipe.transformer, "get_rotary_pos_embed", lambda *_: pytest.fail("made anew in the loop"))
    pipe.denoise(inputs, stop=2)


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
@pytest.mark.parametrize("kind", list(REUSED_KINDS))
def test_a_reused_step_copies_nothing_to_the_device(load_pipeline, version, kind):
    """The meta device stands in for a GPU: it is not the CPU, and copies to it are seen."""
    net = copy.deepcopy(load_pipeline(version).transformer).to("meta")
    times = {name: torch.ones(2, device="meta") for name in ("timestep", "timestep_r")}
    times |= {} if net.config.use_meanflow else {"timestep_r": None}
    inputs = dict(hidden_states=torch.ones(2, 65, 2, 4, 4, device="meta"), text_states_2=None, guidance=None, **times)
    carried = torch.ones((2, 32, 2, 4, 4) if kind == "velocity" else (2, 32, net.hidden_size), device="meta")
    with CopiesFromCpu() as copies:
        velocity = REUSED_KINDS[kind].velocity(net, inputs, carried)
    assert velocity.shape == (2, 32, 2, 4, 4)
    assert copies.count == 0


@pytest.mark.parametrize("kind", list(REUSED_KINDS))
def test_the_loops_reused_steps_copy_nothing_to_the_device(load_pipeline, monkeypatch, kind):
    """Inputs, guidance and sampler included: steps 2 and 3 of a run on the meta device."""
    pipe = load_pipeline("480p_t2v")
    inputs = prepared(pipe, **{k: v for k, v in REQUEST.items() if k not in ("enable_sr", "output_type")})
    inputs = dataclasses.replace(inputs, rule=ReuseRule(kind, "damped-sigma"))
    plan = pipe._reuse_plan(MASK, inputs)
    scheduler = copy.copy(inputs.scheduler)
    scheduler._step_index = 2
    away = dict(scheduler=scheduler, **{n: getattr(inputs, n).to("meta") for n in ("noise", "condition", "timesteps")})
    net = copy.deepcopy(pipe.transformer).to("meta")
    tokens = inputs.noise[0, 0].numel()
    shape = inputs.condition[:, :32].shape if kind == "velocity" else (len(inputs.condition), tokens, net.hidden_size)
    cache = StepCache(net, inputs.rule)
    cache.kept = [torch.ones(shape, device="meta") for _ in range(2)]
    # Both are done once, before the first step: the plan reads all timesteps, and the sampler finds its place.
    monkeypatch.setattr(pipe, "_reuse_plan", lambda *_: plan)
    with CopiesFromCpu() as copies:
        latents = pipe.denoise(dataclasses.replace(inputs, **away), mask=MASK, start=2, stop=4, cache=cache)
    assert (latents.shape, latents.device.type) == (inputs.noise.shape, "meta")
    assert copies.count == 0


@pytest.mark.parametrize("kind", ["residual", "output"])
def test_what_is_kept_has_the_dtype_of_the_blocks(load_pipeline, kind):
    """As under autocast on a GPU, where float32 text makes all tokens float32 on their way to the final layer."""
    pipe = load_pipeline("480p_t2v")
    net = copy.deepcopy(pipe.transformer)
    final = net.final_layer.forward
    net.final_layer.forward = lambda tokens, vector: final(tokens.float(), vector)
    inputs = prepared(pipe, **{k: v for k, v in REQUEST.items() if k not in ("enable_sr", "output_type")})
    arguments = pipe._transformer_inputs(0, inputs.noise, inputs)
    with torch.no_grad():
        _, expected = REUSED_KINDS[kind].compute(net, arguments)
        net.final_layer.register_forward_pre_hook(lambda _, tokens: (tokens[0].double(), *tokens[1:]))
        _, kept = REUSED_KINDS[kind].compute(net, arguments)
    assert kept.dtype == torch.float32
    assert torch.equal(kept, expected)


def prepared(pipe, **settings):
    """The inputs of the denoising loop, as a call would make them."""
    captured = []
    original = pipe.denoise
    pipe.denoise = lambda inputs, *_, **__: captured.append(inputs) or original(inputs)
    try:
        pipe(**settings, enable_sr=False, output_type="latent")
    finally:
        del pipe.denoise
    return captured[0]
