"""Corrections: that a computed step pays back what the forecasts before it have missed, in the kit's and any loop."""

import itertools

import numpy as np
import pytest
import torch
from toy_sampler import Denoiser, Scheduler, sample

from lemica.forecasts import fitted, hold, interpolation, taylor_step
from lemica.masks import MAX_WEIGHT_SUM, RULES, Mask, Target, corrected, kept_steps, line, mask_of
from lemica.moments import Moments
from lemica.planning.graph import ErrorGraph, edge_pairs
from lemica.planning.plan import plan
from lemica.reuse.cache import StepReuse
from lemica.reuse.hook import intercepted
from lemica.reuse.sampler import is_euler

SIGMAS = (1.0, 0.97, 0.93, 0.88, 0.81, 0.72, 0.6, 0.44, 0.25, 0.0)
STEPS = mask_of([0, 2, 6, 8], 9)


def by_line(rows, steps=STEPS):
    return corrected(rows, steps, SIGMAS, lambda seen, step: line(SIGMAS, seen, step))


def euler(velocity, weights, steps=STEPS):
    """Latents before every step and after the last, of Euler's sampler on velocities that do not depend on latents."""
    latents, kept = [0.0], []
    for step, row in enumerate(weights):
        kept += [velocity(step)] * steps[step]
        taken = np.dot(row, kept[len(kept) - len(row) :]) if row else kept[-1]
        latents.append(latents[-1] + (SIGMAS[step + 1] - SIGMAS[step]) * taken)
    return np.array(latents)


def moments(seed=0) -> Moments:
    """Of velocities that drift."""
    drift = np.random.default_rng(seed).normal(size=(len(STEPS), 400)).cumsum(0)
    return Moments(SIGMAS, drift @ drift.T / 400)


@pytest.mark.parametrize("rule", ["hold", "damped"])
def test_of_what_was_missed_a_share_is_paid_back_that_falls_with_the_gap(rule):
    """On a velocity that is a line over the noise level, interpolation misses nothing."""
    rows = RULES[rule](STEPS, SIGMAS)

    def velocity(step):
        return 3 - 2 * SIGMAS[step]

    true = euler(velocity, ((),) * 9, (True,) * 9)
    missed = euler(velocity, rows) - true
    left = euler(velocity, by_line(rows)) - true
    owed = 0.0
    for i, j in itertools.pairwise([0, 2, 6, 8]):
        owed += (missed[j] - missed[i + 1]) * (1 - 1 / (1 + (j - i) / 5))
        assert left[j + 1] == pytest.approx(owed)


def test_weights_of_a_corrected_step_sum_to_one_and_the_others_are_left():
    rows = RULES["damped"](STEPS, SIGMAS)
    result = by_line(rows)
    assert [len(row) for row in result] == [0, 1, 2, 2, 2, 2, 3, 2, 3]
    assert all(sum(row) == pytest.approx(1) for row in result if row)
    assert all(mine == its for mine, its, computed in zip(result, rows, STEPS, strict=True) if not computed)


def test_steps_that_follow_a_computed_one_have_nothing_to_pay_back():
    steps = (True,) * 3 + (False, True, True, True, True, True)
    assert [step for step, row in enumerate(by_line(RULES["hold"](steps), steps)) if row] == [3, 4]


def test_a_step_whose_weights_would_be_too_large_is_not_corrected():
    levels = [1.0, 0.9, 0.5, 0.49999, 0.3, 0.0]
    steps = mask_of([0, 2, 4], 5)
    rows = RULES["hold"](steps)
    result = corrected(rows, steps, levels, lambda seen, step: line(levels, seen, step))
    assert Mask(steps, "velocity", result).corrected_steps == (4,)


@pytest.mark.parametrize("make", [taylor_step, lambda: fitted(moments(), 2)])
def test_with_moments_interpolation_is_least_squares_on_both_ends_and_the_step_before(make):
    rows = make().rows(STEPS)
    result = corrected(rows, STEPS, SIGMAS, interpolation(moments()))
    kept = [0, 2, 6]
    weights = fitted(moments(), 3).weigh(np.array([[0, 6, 2]]), 4)[0]
    assert interpolation(moments())(kept, 4) == pytest.approx(dict(zip([0, 6, 2], weights, strict=True)))
    assert all(sum(row) == pytest.approx(1) for row in result if row)


def test_a_mask_reads_the_tensors_of_its_corrected_steps_too():
    mask = Mask(STEPS, "velocity", by_line(RULES["damped"](STEPS, SIGMAS)))
    assert mask.corrected_steps == (2, 6, 8)
    assert mask.history == 2
    assert kept_steps(mask) == mask_of([0, 2, 6], 9)


def test_corrections_need_velocities():
    with pytest.raises(ValueError, match=r'^"weights" of computed steps are for "kept" velocity: plan it again$'):
        Mask(STEPS, "residual", by_line(RULES["hold"](STEPS)))


@pytest.mark.parametrize("row", [(1.0,), (0.5, 0.25, 0.25), (4.5, -3.6)])
def test_weights_of_a_computed_step_that_cannot_be_are_refused(row):
    with pytest.raises(ValueError, match='"weights" of step 2 must'):
        Mask((True, False, True), "velocity", ((), (1.0,), row))
    assert sum(map(abs, (4.5, -3.6))) > MAX_WEIGHT_SUM


@pytest.mark.parametrize(("kept", "is_euler"), [("velocity", True), ("velocity", False), ("residual", True)])
def test_a_damped_line_is_corrected_where_that_can_be(kept, is_euler):
    rows = RULES["damped"](STEPS, SIGMAS)
    mask = Mask(STEPS, kept, rule="damped").with_weights(SIGMAS, is_euler)
    assert mask.weights == (by_line(rows) if kept == "velocity" and is_euler else rows)
    assert Mask(STEPS, kept).with_weights(SIGMAS).weights == RULES["hold"](STEPS)


# Plans


def graph(**changes) -> ErrorGraph:
    edges = [(i, j, 0.1 + j - i) for i, j in edge_pairs(9, 4)]
    settings = dict(target=Target("demo", sigmas=SIGMAS), num_steps=9, max_gap=4, moments=moments(), is_euler=True)
    return ErrorGraph.from_edges(edges=edges, **settings | changes)


@pytest.mark.parametrize("forecast", ["damped", "taylor-step", "fitted"])
def test_a_plan_corrects_its_forecasts_where_the_sampler_is_eulers(forecast):
    mask, plain = plan(graph(), 4, forecast), plan(graph(), 4, forecast, correct=False)
    assert (mask.steps, mask.rule) == (plain.steps, plain.rule)
    assert plain.corrected_steps == ()
    assert mask.weights == corrected(plain.weights, mask.steps, SIGMAS, interpolation(moments()))
    assert mask.corrected_steps
    assert plan(graph(is_euler=False), 4, forecast) == plain


def test_a_plan_that_holds_is_lemicas_own():
    assert plan(graph(), 4, "hold").weights == hold().rows(plan(graph(), 4, "hold").steps)


@pytest.mark.parametrize(
    ("config", "expected"), [({}, True), ({"solver": "heun"}, False), ({"stochastic_sampling": True}, False)]
)
def test_eulers_samplers_are_known_by_name_whatever_wraps_them(config, expected):
    class FlowMatchEulerDiscreteScheduler:
        pass

    class Watched(FlowMatchEulerDiscreteScheduler):
        def __init__(self):
            self.config = config

    assert is_euler(Watched()) is expected
    assert not is_euler(Scheduler())


# Any loop


class Drifting(Denoiser):
    """Returns what it was called the n-th time with: n."""

    def forward(self, latents, scale=1.0):
        self.runs += 1
        return (torch.full_like(latents, float(self.runs)),)


@pytest.mark.parametrize("first", [0, 1])
def test_a_loop_takes_the_weighted_sum_at_computed_steps_and_keeps_what_the_denoiser_returned(first):
    """Where a loop begins later, an output that the sum reads is missing, and the step takes its own."""
    mask = Mask(
        (True, False, True, False, True), "velocity", ((), (1.0,), (-0.5, 1.5), (-1.0, 2.0), (0.25, -1.0, 1.75))
    )
    denoiser, scheduler = Drifting(), Scheduler()
    reuse = StepReuse(lambda _: mask)
    with intercepted([denoiser], scheduler, reuse):
        latents = sample(denoiser, scheduler, steps=5, first=first)
    # Runs 1, 2 and 3 are of steps 0, 2 and 4; where step 0 is left out, run 1 is of step 1.
    whole = 1 + 1 + (-0.5 + 3) + (-1 + 4) + (0.25 - 2 + 1.75 * 3)
    later = 1 + 2 + 2 + 3
    assert latents.tolist() == pytest.approx([1 - (later if first else whole)] * 2)
    assert denoiser.runs == 3
