"""What each kind of kept tensor gives on upstream's real transformer, how it is weighted, and how many are held."""

import random

import pytest
import torch
from hyvideo.commons.infer_state import Mask
from hyvideo.pipelines.hunyuan_video_pipeline import KEPT_KINDS, StepCache, weighted_sum
from runs import STEPS, generate

pytestmark = pytest.mark.usefixtures("fast_attention")

# A line through the last two kept tensors, drawn over the steps.
LINE = ((), (), (-1.0, 2.0), (-2.0, 3.0), (), ())


@pytest.fixture
def watched(monkeypatch):
    """Every call of the cache: (is it computed, the transformer's arguments, its velocity, tensors kept after)."""
    calls = []

    def watch(name):
        original = getattr(StepCache, name)

        def watching(cache, step, inputs):
            velocity = original(cache, step, inputs)
            calls.append((name == "compute", inputs, velocity, list(cache.kept)))
            return velocity

        monkeypatch.setattr(StepCache, name, watching)

    watch("compute")
    watch("reuse")
    return calls


def test_a_held_velocity_is_the_last_computed_one(load_pipeline, watched):
    generate(load_pipeline("480p_t2v"), STEPS, "velocity")
    last = None
    for computed, _, velocity, _ in watched:
        if computed:
            last = velocity
        assert velocity is last


@pytest.mark.parametrize("kept", list(KEPT_KINDS))
def test_a_reused_step_takes_the_weighted_sum_of_the_kept_tensors(load_pipeline, watched, kept):
    pipe = load_pipeline("480p_t2v")
    report = generate(pipe, STEPS, kept, "a line", LINE).report
    assert (report.reuse, report.forecast, report.mask_origin) == (kept, "a line", "planned")
    assert [len(tensors) for *_, tensors in watched] == [1, 2, 2, 2, 0, 0]
    older, newest = watched[1][3]
    _, inputs, velocity, _ = watched[3]
    expected = KEPT_KINDS[kept].reuse(pipe.transformer, inputs, newest + 2 * (newest - older))
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", list(KEPT_KINDS))
def test_the_rule_of_a_mask_without_weights_is_drawn_over_the_samplers_noise_levels(load_pipeline, kept):
    pipe = load_pipeline("480p_t2v")
    by_rule = generate(pipe, STEPS, kept, "damped")
    rule = Mask(STEPS, kept, rule="damped")
    rows = rule.with_weights(pipe.scheduler.sigmas.double().tolist(), is_euler=True).weights
    assert torch.equal(by_rule.videos, generate(pipe, STEPS, kept, "damped", rows).videos)
    assert not torch.equal(by_rule.videos, generate(pipe, STEPS, kept, "hold").videos)
    other_rows = rule.with_weights([7, 6, 5, 4, 3, 2, 1], is_euler=True).weights
    assert not torch.equal(by_rule.videos, generate(pipe, STEPS, kept, "damped", other_rows).videos)


def test_kinds_differ(load_pipeline):
    pipe = load_pipeline("480p_t2v")
    residual, velocity = (generate(pipe, STEPS, kept).videos for kept in KEPT_KINDS)
    assert not torch.equal(residual, velocity)


@pytest.mark.parametrize("kept", list(KEPT_KINDS))
def test_what_is_kept_is_its_own_storage(load_pipeline, watched, kept):
    generate(load_pipeline("480p_t2v"), STEPS, kept, "a line", LINE)
    tensors = [tensor for *_, held in watched for tensor in held]
    assert tensors
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)


def random_mask(choose: random.Random) -> Mask:
    """Steps and rows of weights of all lengths, each within what has been computed."""
    steps = (True, *(choose.random() < 0.5 for _ in range(10)), True)
    rows = []
    for step, computed in enumerate(steps):
        readable = min(4, sum(steps[: step + 1]))
        length = choose.choice([0, *range(2, readable + 1)]) if computed else choose.randint(1, readable)
        rows.append(tuple(choose.uniform(-1, 1) for _ in range(length)))
    return Mask(steps, "velocity", tuple(rows))


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_weights_meet_the_tensors_that_they_are_for(seed):
    """On a denoiser that returns the step's number; no more is held than the longest row reads."""
    mask = random_mask(random.Random(seed))
    cache = StepCache(lambda step: (torch.tensor([float(step)]),), mask)
    seen = []
    for step, computed in enumerate(mask.steps):
        seen += [step] * computed
        row = mask.weights[step] or (1,)
        expected = sum(weight * kept for weight, kept in zip(row, seen[-len(row) :], strict=True))
        velocity = cache.compute(step, {"step": step}) if computed else cache.reuse(step, {})
        assert velocity.item() == pytest.approx(expected, abs=1e-5)
        assert len(cache.kept) <= mask.history
    assert cache.kept == []


def test_weighted_sums_are_taken_in_float32():
    tensors = [(torch.randn(64, generator=torch.Generator().manual_seed(k)) * 100).bfloat16() for k in range(3)]
    weights = (0.3, -1.7, 2.4)
    exact = sum(weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True))
    total = weighted_sum(weights, tensors)
    assert total.dtype == torch.bfloat16
    assert torch.equal(total, exact.float().bfloat16())
    in_bfloat16 = sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
    assert not torch.equal(in_bfloat16, total)


def test_the_newest_tensor_alone_is_not_copied():
    tensors = [torch.zeros(2), torch.ones(2)]
    assert weighted_sum((1.0,), tensors) is tensors[1]
