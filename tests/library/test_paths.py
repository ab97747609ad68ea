"""The planner against brute force: every path of small graphs, with few distinct errors so that ties abound."""

import functools
import itertools
import time
from fractions import Fraction

import numpy as np
import pytest

from lemica.forecasts import hold
from lemica.masks import RELEASED_STEPS, Target
from lemica.planning.graph import ErrorGraph
from lemica.planning.paths import feasible_budgets, minimax_paths, minimum_sum_paths
from lemica.planning.routes import forecast_routes

# (N, D): every gap from the shortest to none at all, odd and even, up to the largest that brute force can hold.
SHAPES = [(2, 1), (3, 1), (3, 2), (5, 2), (6, 5), (7, 3), (8, 4), (9, 2), (10, 4), (11, 8), (12, 3), (12, 11)]
SEEDS = range(4)


def graph_of(errors: np.ndarray) -> ErrorGraph:
    num_steps, width = errors.shape
    return ErrorGraph(Target("random"), num_steps, width - 1, 1, errors)


def minimax(graph: ErrorGraph, budgets=None) -> dict[int, tuple[int, ...]]:
    return minimax_paths(forecast_routes(graph, hold()), budgets)


def minimum_sum(graph: ErrorGraph, budgets=None) -> dict[int, tuple[int, ...]]:
    return minimum_sum_paths(forecast_routes(graph, hold()), budgets)


def errors_of(graph: ErrorGraph, path: tuple[int, ...]) -> list[float]:
    return [graph.error(i, j) for i, j in itertools.pairwise(path)]


def integer_graph(num_steps: int, max_gap: int, seed: int, distinct: int = 4) -> ErrorGraph:
    return graph_of(np.random.default_rng(seed).integers(0, distinct, (num_steps, max_gap + 1)).astype(float))


def every_path(num_steps: int, max_gap: int, budget: int) -> list[tuple[int, ...]]:
    if budget < 2:
        return []
    inner = itertools.combinations(range(1, num_steps - 1), budget - 2)
    paths = ((0, *steps, num_steps - 1) for steps in inner)
    return [path for path in paths if all(j - i <= max_gap for i, j in itertools.pairwise(path))]


def descending(graph: ErrorGraph, path: tuple[int, ...]) -> list[float]:
    return sorted(errors_of(graph, path), reverse=True)


def exact_sum(graph: ErrorGraph, path: tuple[int, ...]) -> Fraction:
    return sum(map(Fraction, errors_of(graph, path)))


def brute_force(graph: ErrorGraph, cost) -> dict[int, tuple[int, ...]]:
    """Best path of every budget that has one; ties go to the lexicographically smallest list of steps."""
    paths = {b: every_path(graph.num_steps, graph.max_gap, b) for b in range(graph.num_steps + 2)}
    return {b: min(some, key=lambda path: (cost(graph, path), path)) for b, some in paths.items() if some}


def tuple_dynamic_programming(graph: ErrorGraph, budget: int) -> tuple[int, ...]:
    """The same objective in plain Python, whole paths as states: slow, but reaches graphs that brute force cannot."""
    last = graph.num_steps - 1

    @functools.cache
    def best(i, edges):
        if edges == 0:
            return ((), (i,)) if i == last else None
        found = []
        for j in range(i + 1, min(i + graph.max_gap, last) + 1):
            if (rest := best(j, edges - 1)) is not None:
                found.append((tuple(sorted((*rest[0], graph.error(i, j)), reverse=True)), (i, *rest[1])))
        return min(found, default=None)

    return best(0, budget - 1)[1]


@pytest.mark.parametrize(("num_steps", "max_gap"), SHAPES)
@pytest.mark.parametrize(("solve", "cost"), [(minimax, descending), (minimum_sum, exact_sum)])
def test_every_budget_is_the_best_of_all_paths(num_steps, max_gap, solve, cost):
    for seed in SEEDS:
        for distinct in (2, 4):
            graph = integer_graph(num_steps, max_gap, seed, distinct)
            assert solve(graph) == brute_force(graph, cost), (seed, distinct)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("solve", "cost"), [(minimax, descending), (minimum_sum, exact_sum)])
def test_tenths_are_compared_exactly(solve, cost, seed):
    """0.1 + 0.2 and 0.3 differ as floats, and sums of tenths depend on the order of adding: neither may matter."""
    tenths = np.random.default_rng(seed).integers(0, 5, (10, 6)) / 10
    graph = graph_of(tenths)
    assert solve(graph) == brute_force(graph, cost)


@pytest.mark.parametrize("distinct", [3, 100_000])
def test_minimax_matches_plain_python_at_forty_steps(distinct):
    """Long enough for full rows of ranks, and with 100,000 values for more ranks than a byte holds."""
    graph = integer_graph(40, 11, seed=5, distinct=distinct)
    assert len({error for _, _, error in graph.edges()}) > (256 if distinct > 256 else 2)
    assert minimax(graph) == {b: tuple_dynamic_programming(graph, b) for b in range(5, 41)}


@pytest.mark.parametrize("solve", [minimax, minimum_sum])
def test_one_budget_gives_the_path_of_the_pass_over_all(solve):
    graph = integer_graph(20, 6, seed=1)
    together = solve(graph)
    assert list(together) == list(feasible_budgets(20, 6))
    assert {budget: solve(graph, [budget])[budget] for budget in together} == together
    assert solve(graph, [9, 7]) == {9: together[9], 7: together[7]}
    assert solve(graph, []) == {}


@pytest.mark.parametrize("solve", [minimax, minimum_sum])
@pytest.mark.parametrize(("num_steps", "max_gap"), [(50, 8), (30, 29), (41, 2), (17, 1)])
def test_paths_are_well_formed(solve, num_steps, max_gap):
    paths = solve(graph_of(np.random.default_rng(2).random((num_steps, max_gap + 1))))
    assert paths[num_steps] == tuple(range(num_steps))
    for budget, path in paths.items():
        assert (len(path), path[0], path[-1]) == (budget, 0, num_steps - 1)
        assert all(1 <= j - i <= max_gap for i, j in itertools.pairwise(path))


@pytest.mark.parametrize("solve", [minimax, minimum_sum])
def test_ties_go_to_the_path_that_computes_earlier(solve):
    paths = solve(graph_of(np.ones((9, 5))))
    assert paths[6] == (0, 1, 2, 3, 4, 8)
    assert paths[3] == (0, 4, 8)
    assert solve(graph_of(np.zeros((9, 5))))[4] == (0, 1, 4, 8)


def two_ways(first: tuple[float, float], second: tuple[float, float]) -> ErrorGraph:
    """Six steps where a budget of 3 leaves two paths: (0, 2, 5) with the first errors, (0, 3, 5) with the others."""
    errors = np.zeros((6, 4))
    errors[0, 2], errors[2, 3] = first
    errors[0, 3], errors[3, 2] = second
    return graph_of(errors)


def test_minimax_prefers_a_small_worst_and_minimum_sum_a_small_total():
    graph = two_ways((3, 3), (5, 0))
    assert minimax(graph)[3] == (0, 2, 5)
    assert minimum_sum(graph)[3] == (0, 3, 5)


def test_the_second_worst_error_decides_between_equal_worst():
    assert minimax(two_ways((7, 2), (7, 1)))[3] == (0, 3, 5)
    assert minimax(two_ways((2, 7), (7, 1)))[3] == (0, 3, 5)
    assert minimax(two_ways((1, 7), (7, 1)))[3] == (0, 2, 5)


def test_errors_that_differ_in_the_last_bit_are_no_tie():
    assert minimax(two_ways((0.1 + 0.2, 0), (0.3, 0)))[3] == (0, 3, 5)
    assert minimum_sum(two_ways((1.0, 2.0**-70), (1.0, 0)))[3] == (0, 3, 5)


def test_minimax_has_the_smaller_worst_and_minimum_sum_the_smaller_total():
    graph = graph_of(np.random.default_rng(3).random((50, 9)))
    worst, total = minimax(graph), minimum_sum(graph)
    assert all(descending(graph, worst[b]) <= descending(graph, total[b]) for b in worst)
    assert all(exact_sum(graph, total[b]) <= exact_sum(graph, worst[b]) for b in worst)
    assert sum(worst[b] != total[b] for b in worst) > 10


@pytest.mark.parametrize("solve", [minimax, minimum_sum])
@pytest.mark.parametrize("budget", [-1, 0, 1, 7, 51, 12.5])
def test_infeasible_budgets_are_refused_with_the_feasible_range(solve, budget):
    with pytest.raises(ValueError, match=rf"^no path of budget {budget} .* choose a budget from 8 to 50$"):
        solve(graph_of(np.ones((50, 9))), [budget])


@pytest.mark.parametrize(("num_steps", "max_gap"), SHAPES)
def test_feasible_budgets_are_those_with_a_path(num_steps, max_gap):
    with_paths = [b for b in range(num_steps + 2) if every_path(num_steps, max_gap, b)]
    assert list(feasible_budgets(num_steps, max_gap)) == with_paths


@pytest.mark.parametrize("seed", SEEDS)
def test_falling_sensitivity_gives_early_dense_masks(seed):
    """Errors that grow with the gap and fall with the step: swapping a long gap before a short one lowers both errors,
    so gaps never shrink along an optimal path, which is the shape of the released HunyuanVideo-1.5 masks."""
    random = np.random.default_rng(seed)
    growth = np.cumsum(random.random(9))[None]
    decay = np.sort(random.random(50))[::-1, None]
    for path in minimax(graph_of(growth * decay)).values():
        gaps = np.diff(path)
        assert (np.diff(gaps) >= 0).all()
        assert gaps.max() <= 8


def test_a_plain_falling_error_gives_the_released_mask_of_budget_ten():
    step, gap = np.indices((50, 9))
    graph = graph_of(np.sqrt(np.maximum(gap - 1, 0)) * np.exp(-0.2 * step))
    assert minimax(graph)[10] == RELEASED_STEPS[10]


def test_every_budget_of_fifty_steps_is_quick():
    """The aim is 0.1 s; the bound only catches an algorithm of another order on a busy machine."""
    graph = graph_of(np.random.default_rng(0).random((50, 9)))
    start = time.perf_counter()
    minimax(graph)
    assert time.perf_counter() - start < 1
