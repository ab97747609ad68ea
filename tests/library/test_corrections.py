"""Corrections: that a computed step pays back what the forecasts before it have missed, in the kit's and any loop."""

import itertools

import numpy as np
import pytest
import torch
from toy_sampler import Denoiser, Scheduler, sample

from lemica.forecasts import hold, interpolation
from lemica.masks import MAX_WEIGHT_SUM, RULES, Mask, Target, corrected, kept_steps, line, mask_of
from lemica.moments import Moments
from lemica.planning.graph import ErrorGraph, edge_pairs
from lemica.planning.plan import plan
from lemica.reuse.cache import StepReuse
from lemica.reuse.hook import intercepted
from lemica.reuse.sampler import is_euler
from lemica.reuse.watch import watch

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


def test_with_moments_velocities_are_interpolated_by_least_squares_on_both_ends_and_the_step_before():
    """Velocities that are a plane of two curves: three of them tell all the others, up to the ridge."""
    curves = np.array([np.array(SIGMAS[:9]) ** power for power in (0, 1, 2)])
    velocities = curves.T @ np.random.default_rng(0).normal(size=(3, 400))
    interpolate = interpolation(Moments(SIGMAS, velocities @ velocities.T / 400))
    for step in (3, 4, 5):
        weights = interpolate([0, 2, 6], step)
        assert set(weights) == {0, 2, 6} and sum(weights.values()) == pytest.approx(1)
        guess = sum(weight * velocities[k] for k, weight in weights.items())
        assert np.abs(guess - velocities[step]).max() < 0.05 * np.abs(velocities[2] - velocities[step]).max()
    assert set(interpolate([0, 2], 1)) == {0, 2}


def test_velocities_that_never_change_leave_nothing_to_pay_back():
    same = graph(moments=Moments(SIGMAS, np.ones((9, 9))))
    assert plan(same, 4).corrected_steps == ()


def test_a_sampler_that_stands_still_is_no_error():
    """Z-Image's last step has no width, Heun's sampler makes two steps at one level."""
    still = (1.0, 0.9, 0.75, 0.6, 0.4, 0.2, 0.1, 0.0, 0.0, 0.0)
    assert Mask(STEPS, "velocity", rule="damped").with_weights(still, is_euler=True).corrected_steps == (2, 6)
    twice = (1.0, 1.0, 1.0, 0.6, 0.6, 0.6, 0.6, 0.4, 0.4, 0.0)
    assert Mask(STEPS, "velocity", rule="damped").with_weights(twice, is_euler=True).weights[3] == (0.0, 1.0)


def test_without_corrections_computed_steps_take_their_own():
    mask = Mask(STEPS, "velocity", by_line(RULES["damped"](STEPS, SIGMAS)), rule="damped")
    assert mask.without_corrections().weights == RULES["damped"](STEPS, SIGMAS)
    assert (mask.method, mask.without_corrections().method) == ("velocity + damped, corrected", "velocity + damped")


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


class FlowMatchEulerDiscreteScheduler(Scheduler):
    """Of a known name, whose step is its own."""

    def __init__(self, **config):
        self.config, self.sigmas = config, [1.0, 0.0]

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        return super().step(model_output, timestep, sample, generator, return_dict)


@pytest.mark.parametrize(
    ("config", "expected"), [({}, True), ({"solver": "heun"}, False), ({"stochastic_sampling": True}, False)]
)
def test_eulers_samplers_are_known_by_name_also_while_they_are_watched(config, expected):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    assert is_euler(scheduler) is expected
    watch(scheduler, {"step": lambda step, args, kwargs: step(*args, **kwargs)})
    assert is_euler(scheduler) is expected


def test_a_sampler_with_a_step_of_its_own_or_levels_above_one_is_not_eulers():
    class Stochastic(FlowMatchEulerDiscreteScheduler):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    assert not is_euler(Stochastic())
    assert not is_euler(Scheduler())
    cosmos = FlowMatchEulerDiscreteScheduler()
    cosmos.sigmas = [80.0, 0.0]
    assert not is_euler(cosmos)


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
    denoiser, scheduler = Drifting(), FlowMatchEulerDiscreteScheduler()
    with intercepted([denoiser], scheduler, StepReuse(lambda _: mask)):
        latents = sample(denoiser, scheduler, steps=5, first=first)
    # Runs 1, 2 and 3 are of steps 0, 2 and 4; where step 0 is left out, run 1 is of step 1.
    whole = 1 + 1 + (-0.5 + 3) + (-1 + 4) + (0.25 - 2 + 1.75 * 3)
    later = 1 + 2 + 2 + 3
    assert latents.tolist() == pytest.approx([1 - (later if first else whole)] * 2)
    assert denoiser.runs == 3


def test_another_sampler_than_eulers_runs_the_mask_without_corrections():
    mask = Mask((True, False, True), "velocity", ((), (1.0,), (-0.5, 1.5)))
    denoiser, scheduler = Drifting(), Scheduler()
    reuse = StepReuse(lambda _: mask)
    with intercepted([denoiser], scheduler, reuse):
        assert sample(denoiser, scheduler, steps=3).tolist() == [1 - (1 + 1 + 2)] * 2
    assert reuse.record.mask == mask.without_corrections()


def test_a_call_of_another_shape_before_a_corrected_step_leaves_it_as_it_is():
    """Guidance that ends within a gap: the kept outputs are of two branches, the new one of one."""
    mask = Mask((True, False, True), "velocity", ((), (1.0,), (-0.5, 1.5)))
    denoiser, scheduler = Drifting(), FlowMatchEulerDiscreteScheduler()
    with intercepted([denoiser], scheduler, StepReuse(lambda _: mask)):
        scheduler.set_timesteps(3)
        for t, size in zip(scheduler.timesteps, (4, 4, 2), strict=True):
            velocity = denoiser(torch.ones(size))[0]
            scheduler.step(velocity, t, torch.ones(size))
    assert velocity.tolist() == [2.0, 2.0]
