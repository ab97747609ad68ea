"""What a path costs with a forecast: against the velocities themselves, and plans against every path."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from calibrated import MAX_GAP, NUM_STEPS, SIGMAS, calibrated_graph, moments_of, velocities

from lemica.forecasts import FORECASTS, Forecast, fitted, forecast_named, hold
from lemica.masks import MAX_WEIGHT_SUM, Mask, Target, mask_of
from lemica.moments import Moments
from lemica.planning.graph import ErrorGraph
from lemica.planning.paths import minimax_paths, minimum_sum_paths
from lemica.planning.plan import with_forecast
from lemica.planning.routes import edge_costs, forecast_routes, held_costs

CASES = [("hold", 1), ("damped", 2), ("taylor-step", 3), ("fitted", 1), ("fitted", 2), ("fitted", 3)]
WIDTHS = np.diff(SIGMAS)


def seen_costs(path: tuple[int, ...], forecast, graph: ErrorGraph, v: np.ndarray) -> list[float]:
    """Costs of a path's edges from the velocities, as the equation says; none where weights are too large."""
    costs = []
    for edge, (i, j) in enumerate(itertools.pairwise(path)):
        history = path[: edge + 1][-forecast.history :]
        error, held = np.zeros((2, v.shape[1]))
        for step in range(i + 1, j):
            weights = forecast.weights(history, step)
            if sum(map(abs, weights)) > MAX_WEIGHT_SUM:
                return []
            error += WIDTHS[step] * (v[step] - weights @ v[list(history)])
            held += WIDTHS[step] * (v[step] - v[i])
        costs.append(0.0 if j == i + 1 else graph.error(i, j) * np.sqrt((error**2).mean() / (held**2).mean()))
    return costs


def every_path(budget: int) -> list[tuple[int, ...]]:
    paths = ((0, *inner, NUM_STEPS - 1) for inner in itertools.combinations(range(1, NUM_STEPS - 1), budget - 2))
    return [path for path in paths if all(j - i <= MAX_GAP for i, j in itertools.pairwise(path))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "history"), CASES)
def test_plans_are_the_best_of_all_paths_by_the_velocities_themselves(seed, name, history):
    graph, v = calibrated_graph(seed), velocities(seed)
    forecast = forecast_named(name, graph.moments, history)
    routes = forecast_routes(graph, forecast)
    for budget in (4, 6, 8):
        costs = {path: seen_costs(path, forecast, graph, v) for path in every_path(budget)}
        costs = {path: found for path, found in costs.items() if found}
        worst_first = min(costs, key=lambda path: sorted(costs[path], reverse=True))
        assert minimax_paths(routes, [budget])[budget] == worst_first
        assert minimum_sum_paths(routes, [budget])[budget] == min(costs, key=lambda path: sum(costs[path]))


@pytest.mark.parametrize(("name", "history"), CASES)
def test_the_cost_of_a_masks_edges_is_that_of_its_route(name, history):
    graph, path = calibrated_graph(), (0, 2, 3, 5, 6, 8)
    forecast = forecast_named(name, graph.moments, history)
    routes, state, costs = forecast_routes(graph, forecast), 0, []
    for i, j in itertools.pairwise(path):
        costs.append(routes.costs[state, j - i])
        state = routes.next_state[state, j - i]
    assert routes.is_last[state]
    assert costs == pytest.approx(seen_costs(path, forecast, graph, velocities()))
    mask = with_forecast(mask_of(path, NUM_STEPS), graph, name, history)
    assert edge_costs(graph, mask) == pytest.approx(costs)


def test_holding_costs_the_graphs_errors_exactly_and_needs_no_moments():
    graph = calibrated_graph()
    routes = forecast_routes(replace(graph, moments=None), hold())
    np.testing.assert_array_equal(routes.costs, graph.errors)
    mask = Mask(mask_of([0, 2, 6, 8], NUM_STEPS), "velocity")
    errors = [graph.error(0, 2), graph.error(2, 6), graph.error(6, 8)]
    assert edge_costs(graph, mask) == held_costs(graph, mask) == errors
    with_one = forecast_routes(graph, fitted(graph.moments, history=1))
    np.testing.assert_array_equal(with_one.costs, graph.errors)


def test_velocities_that_never_change_cost_what_they_cost_held():
    graph = replace(calibrated_graph(), moments=moments_of(np.ones((NUM_STEPS, 5))))
    routes = forecast_routes(graph, fitted(graph.moments, 2))
    # After the state of step 0 come those of the steps that it leads to.
    np.testing.assert_array_equal(routes.costs[: MAX_GAP + 1], graph.errors[: MAX_GAP + 1])


@pytest.mark.parametrize("name", FORECASTS)
def test_planned_weights_are_small_enough_for_a_mask(name):
    graph = calibrated_graph()
    for path in minimax_paths(forecast_routes(graph, forecast_named(name, graph.moments, 3))).values():
        assert with_forecast(mask_of(path, NUM_STEPS), graph, name, 3).computed_steps == path


def test_a_budget_whose_only_path_needs_too_large_weights_is_refused():
    sigmas = (1, 0.9, 0.8, 0.5, 0.2, 0)
    graph = ErrorGraph(Target(sigmas=sigmas), 5, 2, 1, np.ones((5, 3)), Moments(sigmas, np.eye(5)))

    def weigh(histories: np.ndarray, step: int) -> np.ndarray:
        return np.array([[-9.0, 10.0] if kept == [0, 2] else [0.0, 1.0][-len(kept) :] for kept in histories.tolist()])

    routes = forecast_routes(graph, Forecast("too far from 0 and 2", 2, weigh))
    assert minimax_paths(routes, [4])[4] == (0, 1, 2, 4)
    with pytest.raises(ValueError, match="no path of budget 3 keeps weights small enough for a mask; choose another"):
        minimax_paths(routes, [3])
