"""Which steps to compute: optimal paths through an error graph. Pure functions, no torch.

A path of budget B runs from step 0 to step N - 1 over B computed steps, so over B - 1 edges. Two objectives:

lexicographic minimax  edge weights, sorted in descending order, lexicographically smallest: the worst stretch of reuse
                       as harmless as possible, then the second worst, and so on (LeMiCa, arXiv 2511.00090, the section
                       on the lexicographic minimax path)
minimum sum            sum of the edge weights smallest, for comparison

Both are exact: weights are compared as they are, without tolerance or rounding. Among paths of equal cost both return
the lexicographically smallest list of steps, that is, the path that computes earlier.

Dynamic programming over (number of edges, first step) is exact for both, because adding one edge keeps the order of
two paths: put the same weight into two descending lists of one length, and the smaller list stays smaller, equal lists
stay equal. So what follows any edge of an optimal path is itself optimal, no optimal path is lost by keeping only the
best rest from each step, and taking the shortest optimal gap at each step gives the smallest list of steps.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from lemica.graph import ErrorGraph


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


def lexicographic_minimax_paths(graph: ErrorGraph, budgets: Iterable[int] | None = None) -> dict[int, list[int]]:
    """The lexicographic minimax path of each budget, of all feasible ones by default, for the price of the largest.

    N steps, gaps up to D and a largest budget B take O(N D B^2) elementary numpy operations and O(N B) memory.
    """
    return _paths(graph, budgets, _minimax_gaps)


def minimum_sum_path(graph: ErrorGraph, budget: int) -> list[int]:
    """The path with the smallest sum of edge weights; steps, ties and errors as in ``lexicographic_minimax_path``."""
    return minimum_sum_paths(graph, [budget])[budget]


def minimum_sum_paths(graph: ErrorGraph, budgets: Iterable[int] | None = None) -> dict[int, list[int]]:
    """The minimum sum path of each budget, of all feasible ones by default, for the price of the largest: O(N D B)."""
    return _paths(graph, budgets, _minimum_sum_gaps)


def path_weights(graph: ErrorGraph, path: Sequence[int]) -> list[float]:
    """Weights of a path's edges in the order of its steps; raises ValueError where the graph has no such edge."""
    return [graph.weight(i, j) for i, j in pairwise(path)]


def _paths(graph: ErrorGraph, budgets: Iterable[int] | None, solve) -> dict[int, list[int]]:
    feasible = feasible_budgets(graph)
    budgets = list(feasible if budgets is None else budgets)
    for budget in budgets:
        if budget not in feasible:
            raise ValueError(
                f"no path of budget {budget} through {graph.num_steps} steps with gaps of at most {graph.max_gap}; "
                f"choose a budget from {feasible[0]} to {feasible[-1]}"
            )
    first_gaps = solve(graph, max(budgets, default=1) - 1)
    return {budget: _trace(first_gaps, budget - 1) for budget in budgets}


def _trace(first_gaps: np.ndarray, num_edges: int) -> list[int]:
    path = [0]
    for remaining in range(num_edges, 0, -1):
        path.append(path[-1] + int(first_gaps[remaining, path[-1]]))
    return path


def _starts(graph: ErrorGraph, num_edges: int) -> Iterator[tuple[int, slice]]:
    """For each gap, ascending: the steps from which num_edges edges, the first of that gap, can end at the last step.

    The steps are consecutive, as the remaining edges can cover every distance from num_edges - 1 to max_gap times that.
    """
    last, rest = graph.num_steps - 1, num_edges - 1
    for gap in range(1, graph.max_gap + 1):
        low, high = max(0, last - rest * graph.max_gap - gap), last - rest - gap
        if low <= high:
            yield gap, slice(low, high + 1)


def _minimax_gaps(graph: ErrorGraph, max_edges: int) -> np.ndarray:
    """First gap of the lexicographic minimax path that has k edges and starts at step i: integers at [k, i].

    A path's cost is its weights in descending order, as a row of integer ranks: same order as the weights, exact, and
    small enough for numpy to compare thousands of rows at memory speed.
    """
    weights = np.nan_to_num(graph.weights)
    distinct, ranks = np.unique(weights, return_inverse=True)
    above_all = len(distinct)
    ranks = ranks.reshape(weights.shape).astype(np.min_scalar_type(above_all))
    first_gaps = np.zeros((max_edges + 1, graph.num_steps), dtype=np.int32)
    rest = np.zeros((graph.num_steps, 2), dtype=ranks.dtype)
    rest[:, 0] = above_all
    for k in range(1, max_edges + 1):
        # Gaps of 1 weigh nothing, and k edges have at most N - 1 - k gaps of more: longer rows would end in zeros.
        width = max(1, min(k, graph.num_steps - 1 - k))
        # A row is a wall above all ranks, the descending ranks, and one zero for the next layer to grow into.
        best = np.full((graph.num_steps, width + 2), above_all, dtype=ranks.dtype)
        best[:, -1] = 0
        for gap, starts in _starts(graph, k):
            after = rest[starts.start + gap : starts.stop + gap]
            candidates = _with_inserted(after, ranks[starts, gap], width)
            smaller = _smaller_rows(candidates, best[starts, 1:-1])
            best[starts, 1:-1][smaller] = candidates[smaller]
            first_gaps[k, starts][smaller] = gap
        rest = best
    return first_gaps


def _with_inserted(rows: np.ndarray, values: np.ndarray, width: int) -> np.ndarray:
    """Insert a value into each descending row behind its wall: (n, >= width + 1) and (n,) to (n, width), descending."""
    return np.maximum(rows[:, 1 : width + 1], np.minimum(rows[:, :width], values[:, None]))


def _smaller_rows(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether each row of left is lexicographically smaller than the same row of right: (n, width) twice to (n,)."""
    row, first_difference = np.arange(len(left)), (left != right).argmax(axis=1)
    return left[row, first_difference] < right[row, first_difference]


def _minimum_sum_gaps(graph: ErrorGraph, max_edges: int) -> np.ndarray:
    """First gap of the minimum sum path that has k edges and starts at step i: integers at [k, i]."""
    costs = _exact_integers(np.nan_to_num(graph.weights))
    above_all = costs.sum() + 1
    first_gaps = np.zeros((max_edges + 1, graph.num_steps), dtype=np.int32)
    rest = np.zeros(graph.num_steps, dtype=object)
    for k in range(1, max_edges + 1):
        best = np.full(graph.num_steps, above_all, dtype=object)
        for gap, starts in _starts(graph, k):
            candidates = rest[starts.start + gap : starts.stop + gap] + costs[starts, gap]
            smaller = candidates < best[starts]
            best[starts][smaller] = candidates[smaller]
            first_gaps[k, starts][smaller] = gap
        rest = best
    return first_gaps


def _exact_integers(values: np.ndarray) -> np.ndarray:
    """Floats times one common power of two, as Python integers: their sums do not depend on the order of adding."""
    ratios = [value.as_integer_ratio() for value in values.ravel().tolist()]
    scale = max(denominator for _, denominator in ratios)
    integers = [numerator * (scale // denominator) for numerator, denominator in ratios]
    return np.array(integers, dtype=object).reshape(values.shape)
