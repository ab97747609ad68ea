"""Autocast in bfloat16, as on a GPU, which runs on a CPU too: what is kept and summed, equality with upstream."""

import hyvideo.pipelines.hunyuan_video_pipeline as kit
import pytest
import torch
from hyvideo.pipelines.hunyuan_video_pipeline import KEPT_KINDS, HunyuanVideo_1_5_Pipeline, StepCache
from runs import REQUEST, STEPS, generate
from upstream import upstream_twin

pytestmark = pytest.mark.usefixtures("fast_attention")


@pytest.fixture(scope="module")
def pipe(checkpoint):
    """A pipeline that runs under autocast; weights are in float32, as a CPU's layer norms take no others."""
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(checkpoint), "480p_t2v")
    pipe.target_dtype, pipe.autocast_enabled = torch.bfloat16, True
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def kept_tensors(monkeypatch):
    """Every tensor that a computed step keeps."""
    kept, compute = [], StepCache.compute

    def noting(cache, step, inputs):
        velocity = compute(cache, step, inputs)
        kept.extend(cache.kept[-1:])
        return velocity

    monkeypatch.setattr(StepCache, "compute", noting)
    return kept


def test_uncached_latents_equal_upstreams_to_the_bit(pipe, monkeypatch):
    request = REQUEST | {"num_inference_steps": 3}
    ours = pipe(**request).videos
    twin = upstream_twin(pipe)
    twin.target_dtype, twin.autocast_enabled = torch.bfloat16, True
    # Upstream asks for autocast on CUDA by name.
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device_type, **options: autocast("cpu", **options))
    assert torch.equal(ours, twin(**request).videos)


def test_every_step_computed_equals_no_cache_to_the_bit(pipe):
    assert torch.equal(generate(pipe, (True,) * 6).videos, generate(pipe).videos)


@pytest.mark.parametrize("kept", list(KEPT_KINDS))
@pytest.mark.parametrize("rule", ["hold", "damped"])
def test_what_is_kept_has_the_dtype_of_the_blocks(pipe, kept_tensors, kept, rule):
    latents = generate(pipe, STEPS, kept, rule).videos
    assert kept_tensors
    assert {tensor.dtype for tensor in kept_tensors} == {torch.bfloat16}
    assert latents.dtype == torch.float32
    assert latents.isfinite().all()


def test_sums_of_kept_tensors_are_taken_in_float32(pipe, monkeypatch):
    sums, weighted_sum = [], kit.weighted_sum

    def noting(weights, tensors):
        total = weighted_sum(weights, tensors)
        sums.append((weights, list(tensors), total))
        return total

    monkeypatch.setattr(kit, "weighted_sum", noting)
    generate(pipe, STEPS, "residual", "damped")
    assert [len(tensors) for _, tensors, _ in sums] == [2, 2]
    for weights, tensors, total in sums:
        exact = sum(weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True))
        assert total.dtype == torch.bfloat16
        torch.testing.assert_close(total.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("enabled", [True, False])
def test_computed_and_reused_steps_run_under_autocast_in_the_pipelines_dtype(load_pipeline, monkeypatch, enabled):
    pipe, found = load_pipeline("480p_t2v"), []
    monkeypatch.setattr(pipe, "target_dtype", torch.bfloat16)
    monkeypatch.setattr(pipe, "autocast_enabled", enabled)
    hook = pipe.transformer.img_in.register_forward_pre_hook(
        lambda *_: found.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
    )
    generate(pipe, (True, False, True), num_inference_steps=3)
    hook.remove()
    assert [is_enabled for is_enabled, _ in found] == [enabled] * 3
    assert {dtype for _, dtype in found} == {torch.bfloat16}
