"""Which steps to compute: optimal paths through an error graph. Pure functions, no torch.

A path of budget B runs from step 0 to step N - 1 over B computed steps, so over B - 1 edges. Two objectives:

lexicographic minimax  edge weights, sorted in descending order, lexicographically smallest: the worst stretch of reuse
                       as harmless as possible, then the second worst, and so on (LeMiCa, arXiv 2511.00090, the section
                       on the lexicographic minimax path)
minimum sum            sum of the edge weights smallest, for comparison

Both are exact: weights are compared as they are, without tolerance or rounding. Among paths of equal cost both return
the lexicographically smallest list of steps, that is, the path that computes earlier.

Dynamic programming over (number of edges, first state) is exact for both, because adding one edge keeps the order of
two paths: put the same weight into two descending lists of one length, and the smaller list stays smaller, equal lists
stay equal. So what follows any edge of an optimal path is itself optimal, no optimal path is lost by keeping only the
best rest from each state, and taking the shortest optimal gap at each step gives the smallest list of steps. A state
is a step, or a step with the computed ones before it (routes.py).
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from lemica.graph import ErrorGraph
from lemica.routes import Routes, step_routes


def feasible_budgets(graph: ErrorGraph) -> range:
    """Every budget for which a path exists: as many steps as the longest gap allows to skip, up to all."""
    least_edges = -(-(graph.num_steps - 1) // graph.max_gap)
    return range(least_edges + 1, graph.num_steps + 1)


def lexicographic_minimax_path(graph: ErrorGraph, budget: int) -> list[int]:
    """The lexicographic minimax path of LeMiCa (arXiv 2511.00090): ``budget`` ascending steps from 0 to N - 1.

    Ties go to the lexicographically smallest list of steps. Raises ValueError with the feasible range for any other
    budget.
    """
    return lexicographic_minimax_paths(graph, [budget])[budget]


def lexicographic_minimax_paths(
    graph: ErrorGraph, budgets: Iterable[int] | None = None, routes: Routes | None = None
) -> dict[int, list[int]]:
    """The lexicographic minimax path of each budget, of all feasible ones by default, for the price of the largest.

    S states (N steps, unless `routes` says otherwise), gaps up to D and a largest budget B take O(S D B^2) elementary
    numpy operations and O(S B) memory.
    """
    return _paths(graph, budgets, _minimax_gaps, routes)


def minimum_sum_path(graph: ErrorGraph, budget: int) -> list[int]:
    """The path with the smallest sum of edge weights; steps, ties and errors as in ``lexicographic_minimax_path``."""
    return minimum_sum_paths(graph, [budget])[budget]


def minimum_sum_paths(
    graph: ErrorGraph, budgets: Iterable[int] | None = None, routes: Routes | None = None
) -> dict[int, list[int]]:
    """The minimum sum path of each budget, of all feasible ones by default, for the price of the largest: O(S D B)."""
    return _paths(graph, budgets, _minimum_sum_gaps, routes)


def path_weights(graph: ErrorGraph, path: Sequence[int]) -> list[float]:
    """Weights of a path's edges in the order of its steps; raises ValueError where the graph has no such edge."""
    return [graph.weight(i, j) for i, j in pairwise(path)]


def _paths(graph: ErrorGraph, budgets: Iterable[int] | None, solve, routes: Routes | None) -> dict[int, list[int]]:
    feasible = feasible_budgets(graph)
    budgets = list(feasible if budgets is None else budgets)
    for budget in budgets:
        if budget not in feasible:
            raise ValueError(
                f"no path of budget {budget} through {graph.num_steps} steps with gaps of at most {graph.max_gap}; "
                f"choose a budget from {feasible[0]} to {feasible[-1]}"
            )
    routes = routes or step_routes(graph)
    first_gaps = solve(routes, max(budgets, default=1) - 1, graph.num_steps)
    return {budget: _trace(routes, first_gaps, budget - 1) for budget in budgets}


def _trace(routes: Routes, first_gaps: np.ndarray, num_edges: int) -> list[int]:
    path, state = [0], 0
    for remaining in range(num_edges, 0, -1):
        gap = first_gaps[remaining, state]
        path.append(path[-1] + int(gap))
        state = routes.follow[state, gap]
    return path


def _reaching(routes: Routes, open_states: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """The states from which `gap` leads to one of `open_states`, bool (S + 1,), and the states that it leads to."""
    follow = routes.follow[:, gap]
    states = np.flatnonzero(open_states[follow])
    return states, follow[states]


def _minimax_gaps(routes: Routes, max_edges: int, num_steps: int) -> np.ndarray:
    """First gap of the lexicographic minimax path that has k edges and starts at state s: integers at [k, s].

    A path's cost is its weights in descending order, as a row of integer ranks: same order as the weights, exact, and
    small enough for numpy to compare thousands of rows at memory speed.
    """
    distinct, ranks = np.unique(np.nan_to_num(routes.weights), return_inverse=True)
    above_all = len(distinct)
    ranks = ranks.reshape(routes.weights.shape).astype(np.min_scalar_type(above_all))
    count = len(routes.ends)
    first_gaps = np.zeros((max_edges + 1, count), dtype=np.int32)
    open_states = np.append(routes.ends, False)
    rest = np.zeros((count, 2), dtype=ranks.dtype)
    rest[:, 0] = above_all
    for k in range(1, max_edges + 1):
        # Gaps of 1 weigh nothing, and k edges have at most N - 1 - k gaps of more: longer rows would end in zeros.
        width = max(1, min(k, num_steps - 1 - k))
        # A row is a wall above all ranks, the descending ranks, and one zero for the next layer to grow into.
        best = np.full((count, width + 2), above_all, dtype=ranks.dtype)
        best[:, -1] = 0
        reached = np.zeros(count + 1, dtype=bool)
        for gap in range(1, routes.follow.shape[1]):
            states, after = _reaching(routes, open_states, gap)
            candidates = _with_inserted(rest[after], ranks[states, gap], width)
            smaller = _smaller_rows(candidates, best[states, 1:-1])
            better = states[smaller]
            best[better, 1:-1] = candidates[smaller]
            first_gaps[k, better] = gap
            reached[states] = True
        rest, open_states = best, reached
    return first_gaps


def _with_inserted(rows: np.ndarray, values: np.ndarray, width: int) -> np.ndarray:
    """Insert a value into each descending row behind its wall: (n, >= width + 1) and (n,) to (n, width), descending."""
    return np.maximum(rows[:, 1 : width + 1], np.minimum(rows[:, :width], values[:, None]))


def _smaller_rows(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether each row of left is lexicographically smaller than the same row of right: (n, width) twice to (n,)."""
    row, first_difference = np.arange(len(left)), (left != right).argmax(axis=1)
    return left[row, first_difference] < right[row, first_difference]


def _minimum_sum_gaps(routes: Routes, max_edges: int, _num_steps: int) -> np.ndarray:
    """First gap of the minimum sum path that has k edges and starts at state s: integers at [k, s]."""
    costs = _exact_integers(np.nan_to_num(routes.weights))
    above_all = costs.sum() + 1
    count = len(routes.ends)
    first_gaps = np.zeros((max_edges + 1, count), dtype=np.int32)
    open_states = np.append(routes.ends, False)
    rest = np.zeros(count, dtype=object)
    for k in range(1, max_edges + 1):
        best = np.full(count, above_all, dtype=object)
        reached = np.zeros(count + 1, dtype=bool)
        for gap in range(1, routes.follow.shape[1]):
            states, after = _reaching(routes, open_states, gap)
            candidates = rest[after] + costs[states, gap]
            smaller = candidates < best[states]
            better = states[smaller]
            best[better] = candidates[smaller]
            first_gaps[k, better] = gap
            reached[states] = True
        rest, open_states = best, reached
    return first_gaps


def _exact_integers(values: np.ndarray) -> np.ndarray:
    """Floats times one common power of two, as Python integers: their sums do not depend on the order of adding."""
    ratios = [value.as_integer_ratio() for value in values.ravel().tolist()]
    scale = max(denominator for _, denominator in ratios)
    integers = [numerator * (scale // denominator) for numerator, denominator in ratios]
    return np.array(integers, dtype=object).reshape(values.shape)
