"""What each kind of reuse gives on upstream's real transformer, and what it keeps."""

import pytest
import torch
from hyvideo.commons.infer_state import InferState, ReuseRule, kept_steps
from hyvideo.pipelines.hunyuan_video_pipeline import StepCache
from test_reuse import MASK, REQUEST, generate

KINDS = ("residual", "output", "velocity")


def generate_with(pipe, mask, reuse="residual", forecast="hold", **changes):
    state = InferState(
        enable_cache=True, cache_type="lemica", lemica_mask=mask, lemica_reuse=reuse, lemica_forecast=forecast
    )
    pipe.apply_infer_optimization(state)
    try:
        return pipe(**REQUEST | changes)
    finally:
        pipe.apply_infer_optimization()


@pytest.fixture
def watched(monkeypatch):
    """Every call of the cache: (is it computed, the transformer's arguments, its velocity, tensors kept after)."""
    calls = []

    def watch(name, computed):
        original = getattr(StepCache, name)

        def watching(cache, inputs, *rest):
            velocity = original(cache, inputs, *rest)
            calls.append((computed, inputs, velocity, list(cache.kept)))
            return velocity

        monkeypatch.setattr(StepCache, name, watching)

    watch("compute", True)
    watch("reuse", False)
    return calls


@pytest.mark.parametrize("forecast", ["hold", "linear-sigma"])
@pytest.mark.parametrize("reuse", KINDS)
def test_all_steps_computed_equals_no_cache_to_the_bit(load_pipeline, reuse, forecast):
    pipe = load_pipeline("480p_t2v")
    assert torch.equal(generate_with(pipe, (True,) * 6, reuse, forecast).videos, generate(pipe).videos)


def test_a_held_velocity_is_the_last_computed_one(load_pipeline, watched):
    generate_with(load_pipeline("480p_t2v"), MASK, "velocity")
    last = None
    for computed, _, velocity, _ in watched:
        if computed:
            last = velocity
        assert velocity is last


def test_a_held_output_goes_through_the_final_layer_of_the_current_step(load_pipeline, watched):
    pipe = load_pipeline("480p_t2v")
    generate_with(pipe, MASK, "output")
    reused = [call for call in watched if not call[0]]
    assert reused
    for _, inputs, velocity, (output,) in reused:
        tokens = pipe.transformer.final_layer(output, pipe.transformer.time_in(inputs["timestep"]))
        size = inputs["hidden_states"].shape[2:]
        assert torch.equal(velocity, pipe.transformer.unpatchify(tokens, *size))


@pytest.mark.parametrize("reuse", KINDS)
def test_a_linear_forecast_continues_the_kept_tensors(load_pipeline, watched, reuse):
    pipe = load_pipeline("480p_t2v")
    mask = (True, True, False, False, True, True)
    report = generate_with(pipe, mask, reuse, "linear-step").report
    assert (report.reuse, report.forecast) == (reuse, "linear-step")
    assert [len(kept) for *_, kept in watched] == [1, 2, 2, 2, 0, 0]
    older, newest = watched[1][3]
    (_, inputs, velocity, _) = watched[3]
    cache = StepCache(pipe.transformer, ReuseRule(reuse))
    cache.kept.append(newest + 2 * (newest - older))
    torch.testing.assert_close(velocity, cache.reuse(inputs, (1.0,)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reuse", KINDS)
def test_what_is_kept_is_its_own_storage_and_no_more_than_the_rule_says(load_pipeline, watched, reuse):
    pipe = load_pipeline("480p_t2v")
    generate_with(pipe, MASK, reuse, "quadratic-sigma")
    for *_, kept in watched:
        assert len(kept) <= 3
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)
    assert kept_steps(MASK, 3)[0]


def test_kinds_differ(load_pipeline):
    pipe = load_pipeline("480p_t2v")
    results = [generate_with(pipe, MASK, reuse).videos for reuse in KINDS]
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])
