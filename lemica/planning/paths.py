"""The best paths through an error graph: which steps to compute.

A path of budget B runs from step 0 to step N - 1 over B computed steps, so over B - 1 edges. Two objectives:

minimax  costs of the edges, sorted in descending order, lexicographically smallest: the worst stretch of reuse as
         harmless as possible, then the second worst, and so on (LeMiCa, arXiv 2511.00090, the section on the
         lexicographic minimax path)
sum      sum of the costs smallest, for comparison

Both are exact: costs are compared as they are, without tolerance or rounding. Among paths of equal cost both give the
lexicographically smallest list of steps, that is, the path that computes earlier.

Dynamic programming over (number of edges, first state) is exact for both, because one more edge keeps the order of two
paths: put the same cost into two descending lists of one length, and the smaller list stays smaller, equal lists stay
equal. So the rest of an optimal path, after any of its edges, is optimal itself. Of equally good first gaps the
shortest is taken, which gives the smallest list of steps.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from lemica.planning.routes import Routes

Path = tuple[int, ...]


class NoPath(ValueError):
    """A budget has no path; the message says which have one."""


def feasible_budgets(num_steps: int, max_gap: int) -> range:
    """Every budget that has a path: from as few steps as the longest gap allows, up to all.

    Example:
        >>> feasible_budgets(num_steps=50, max_gap=8)
        range(8, 51)
    """
    fewest_edges = -(-(num_steps - 1) // max_gap)
    return range(fewest_edges + 1, num_steps + 1)


def minimax_paths(routes: Routes, budgets: Iterable[int] | None = None) -> dict[int, Path]:
    """The lexicographic minimax path of each budget, for the price of the largest.

    With S states, gaps up to D and a largest budget B it takes O(S D B N) elementary numpy operations.

    Args:
        routes: the routes through a graph (``forecast_routes``).
        budgets: numbers of computed steps; None stands for every feasible one.

    Raises NoPath, a ValueError with the feasible range, for a budget that has none.
    """
    return _best_paths(routes, budgets, _DescendingCosts(routes))


def minimum_sum_paths(routes: Routes, budgets: Iterable[int] | None = None) -> dict[int, Path]:
    """The path with the smallest sum of costs of each budget; arguments and errors as in ``minimax_paths``."""
    return _best_paths(routes, budgets, _ExactSums(routes))


class _Totals(Protocol):
    """How an objective adds up the costs of a path's edges, for many paths at once: a row or number each."""

    def of_no_edges(self) -> np.ndarray:
        """The total of a path without edges, for every state."""

    def with_edge(self, totals: np.ndarray, states: np.ndarray, gap: int) -> np.ndarray:
        """Totals of the paths that begin in `states` with `gap` and go on with paths of these totals."""

    def smaller(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether each total of left is smaller than the same one of right."""


class _DescendingCosts:
    """Totals of the minimax objective: the costs of a path in descending order, compared as words are.

    A cost is its integer rank: same order as the costs, exact, and small enough for numpy to compare thousands of rows
    at memory speed. A row is a wall above all ranks, the descending ranks, and zeros for the costs to come.
    """

    def __init__(self, routes: Routes):
        distinct, ranks = np.unique(np.nan_to_num(routes.costs), return_inverse=True)
        self._wall = len(distinct)
        self._ranks = ranks.reshape(routes.costs.shape).astype(np.min_scalar_type(self._wall))
        # Gaps of 1 cost nothing, and at most half as many gaps as steps can be longer.
        self._longest = max(1, routes.num_steps // 2)

    def of_no_edges(self) -> np.ndarray:
        rows = np.zeros((len(self._ranks), self._longest + 1), dtype=self._ranks.dtype)
        rows[:, 0] = self._wall
        return rows

    def with_edge(self, totals: np.ndarray, states: np.ndarray, gap: int) -> np.ndarray:
        # A place keeps a rank that is larger than the new one; else it gets the new one, or its left neighbour's where
        # the new one went in farther left.
        rank = self._ranks[states, gap, None]
        rows = totals.copy()
        rows[:, 1:] = np.maximum(totals[:, 1:], np.minimum(totals[:, :-1], rank))
        return rows

    def smaller(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        row, first_difference = np.arange(len(left)), (left != right).argmax(axis=1)
        return left[row, first_difference] < right[row, first_difference]


class _ExactSums:
    """Totals of the sum objective: costs times one power of two, as Python integers, so that sums do not round."""

    def __init__(self, routes: Routes):
        costs = np.nan_to_num(routes.costs)
        ratios = [cost.as_integer_ratio() for cost in costs.ravel().tolist()]
        scale = max(denominator for _, denominator in ratios)
        integers = [numerator * (scale // denominator) for numerator, denominator in ratios]
        self._costs = np.array(integers, dtype=object).reshape(costs.shape)

    def of_no_edges(self) -> np.ndarray:
        return np.zeros(len(self._costs), dtype=object)

    def with_edge(self, totals: np.ndarray, states: np.ndarray, gap: int) -> np.ndarray:
        return totals + self._costs[states, gap]

    def smaller(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return left < right


def _best_paths(routes: Routes, budgets: Iterable[int] | None, totals: _Totals) -> dict[int, Path]:
    feasible = feasible_budgets(routes.num_steps, routes.max_gap)
    wanted = list(feasible if budgets is None else budgets)
    for budget in wanted:
        if budget not in feasible:
            raise NoPath(
                f"no path of budget {budget} through {routes.num_steps} steps with gaps of at most {routes.max_gap}; "
                f"choose a budget from {feasible[0]} to {feasible[-1]}"
            )
    first_gaps = _best_first_gaps(routes, max(wanted, default=1) - 1, totals)
    return {budget: _followed(routes, first_gaps, budget) for budget in wanted}


def _best_first_gaps(routes: Routes, max_edges: int, totals: _Totals) -> np.ndarray:
    """First gap of the best path to the last step that has k edges and starts in state s, at [k, s]; 0 for none."""
    first_gaps = np.zeros((max_edges + 1, len(routes.costs)), dtype=np.int32)
    rest = totals.of_no_edges()
    # One place more than states, for the state "there is no such gap".
    reaches_end = np.append(routes.is_last, False)
    for num_edges in range(1, max_edges + 1):
        best, found = rest.copy(), np.zeros_like(reaches_end)
        for gap in range(1, routes.max_gap + 1):
            states = np.flatnonzero(reaches_end[routes.next_state[:, gap]])
            candidates = totals.with_edge(rest[routes.next_state[states, gap]], states, gap)
            better = ~found[states] | totals.smaller(candidates, best[states])
            best[states[better]] = candidates[better]
            first_gaps[num_edges, states[better]] = gap
            found[states] = True
        rest, reaches_end = best, found
    return first_gaps


def _followed(routes: Routes, first_gaps: np.ndarray, budget: int) -> Path:
    steps, state = [0], 0
    for remaining in range(budget - 1, 0, -1):
        gap = int(first_gaps[remaining, state])
        if gap == 0:
            raise NoPath(
                f"no path of budget {budget} keeps weights small enough for a mask; choose another "
                "budget, or plan with --forecast hold, whose weights are 1"
            )
        steps.append(steps[-1] + gap)
        state = routes.next_state[state, gap]
    return tuple(steps)
