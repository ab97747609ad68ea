"""Forecasts as weights of kept tensors: exact where they must be, and sums of one everywhere."""

import numpy as np
import pytest
from calibrated import NUM_STEPS, SIGMAS, moments_of, velocities

from lemica.forecasts import FORECASTS, RIDGE, damped, fitted, forecast_named, hold, taylor_step
from lemica.masks import FURTHEST, RULES, mask_of

STEPS = mask_of([0, 2, 3, 5, 8], NUM_STEPS)


@pytest.mark.parametrize("name", FORECASTS)
@pytest.mark.parametrize("computed", [(0,), (0, 2), (0, 2, 3), (0, 2, 3, 5), (0, 1, 2, 3, 4)])
def test_weights_sum_to_one_however_many_tensors_are_kept(name, computed):
    forecast = forecast_named(name, moments_of(velocities()), history=3)
    weights = forecast.weights(computed, 7)
    assert len(weights) == min(len(computed), forecast.history)
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("name", FORECASTS)
def test_a_single_tensor_is_held(name):
    assert forecast_named(name, moments_of(velocities())).weights((3,), 6) == (1.0,)


@pytest.mark.parametrize("name", FORECASTS)
def test_rows_are_the_weights_of_the_computed_steps_before_each_reused_one(name):
    forecast = forecast_named(name, moments_of(velocities()))
    rows = forecast.rows(STEPS)
    assert [row == () for row in rows] == list(STEPS)
    assert rows[1] == (1.0,)
    assert rows[4] == forecast.weights((0, 2, 3), 4)
    assert rows[7] == forecast.weights((0, 2, 3, 5), 7)


@pytest.mark.parametrize("name", RULES)
def test_the_kits_own_rules_are_the_same_here(name):
    assert forecast_named(name, moments_of(velocities())).rows(STEPS) == RULES[name](STEPS, SIGMAS)


def test_hold_takes_the_newest_tensor_as_it_is():
    assert hold().weights((0, 2, 5), 8) == (1.0,)


def test_damped_goes_halfway_from_the_newest_tensor_to_the_line_over_the_noise_level():
    values = 3 - 2 * np.array(SIGMAS)
    weights = damped(SIGMAS).weights((0, 2, 5), 7)
    assert np.dot(weights, values[[2, 5]]) == pytest.approx((values[5] + values[7]) / 2)
    for gap in (5, 6):
        assert gap > FURTHEST
        share = FURTHEST / gap / 2
        weights = damped(SIGMAS).weights((0, 2), 2 + gap)
        assert np.dot(weights, values[[0, 2]]) == pytest.approx((1 - share) * values[2] + share * values[2 + gap])


@pytest.mark.parametrize(("computed", "step"), [((0, 2, 3), 4), ((1, 4, 5), 8), ((0, 3, 7), 8), ((0, 1, 5, 7), 8)])
def test_taylor_step_takes_divided_differences_over_uneven_steps_for_the_derivatives(computed, step):
    a, b, c = 1.0, 2.0, -4.0
    values = a + b * np.arange(NUM_STEPS) + c * np.arange(NUM_STEPS) ** 2
    *_, older, newest = computed
    # Of a parabola: F[p1, p2] = b + c (p1 + p2), and F[p1, p2, p3] = c.
    series = values[newest] + (step - newest) * (b + c * (newest + older)) + (step - newest) ** 2 * c
    assert np.dot(taylor_step().weights(computed, step), values[list(computed[-3:])]) == pytest.approx(series)


def test_taylor_step_continues_a_line_through_two_tensors():
    assert taylor_step().weights((1, 4), 6) == pytest.approx((-2 / 3, 5 / 3))


def test_fitted_weights_are_those_of_least_squares_with_a_sum_of_one():
    v = velocities()
    weights = fitted(moments_of(v), history=3).weights((0, 2, 3, 5), 7)
    differences = (v[[2, 3]] - v[5]).T
    ridge = np.sqrt(RIDGE * (differences**2).sum() / 2) * np.eye(2)
    rows, goals = np.vstack([differences, ridge]), np.append(v[7] - v[5], [0, 0])
    older = np.linalg.lstsq(rows, goals, rcond=None)[0]
    assert weights == pytest.approx((*older, 1 - older.sum()))


def test_fitted_holds_velocities_that_never_change():
    assert fitted(moments_of(np.ones((NUM_STEPS, 5))), history=2).weights((0, 1), 3) == (1.0,)


def test_by_default_a_fitted_forecast_reads_three_computed_steps_near_the_newest_and_two_further_away():
    moments = moments_of(velocities())
    forecast, near, far = forecast_named("fitted", moments), fitted(moments, 3), fitted(moments, 2)
    computed = (0, 1, 2)
    for step in range(3, 3 + FURTHEST):
        assert forecast.weights(computed, step) == near.weights(computed, step)
    for step in range(3 + FURTHEST, NUM_STEPS):
        share = FURTHEST / (step - 2)
        older, newest = far.weights(computed, step)
        assert forecast.weights(computed, step) == pytest.approx((share * older, 1 - share + share * newest))
    assert NUM_STEPS > 3 + FURTHEST
    assert forecast.weights((0,), 1) == (1.0,)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("guess", None), "forecast 'guess' is not known: choose one of hold, damped, taylor-step, fitted"),
        (("fitted", None), "which forecast fitted needs: write the graph again with lemica calibrate, or plan with"),
        (("damped", None), "which forecast damped needs"),
        (("fitted", moments_of(velocities()), 0), "history is 0: give the number of computed steps to read"),
    ],
)
def test_what_has_no_weights_is_refused_in_one_line(arguments, fault):
    with pytest.raises(ValueError, match=fault) as refusal:
        forecast_named(*arguments)
    assert "\n" not in str(refusal.value)
