"""What a planner may do after each computed step, and what that costs: the input of the solvers in path.py. No torch.

A state is what decides the cost of the next gap. For a forecast that holds, that is the last computed step. A forecast
that reads several computed steps also depends on how far apart these are, so that there a state is the tuple of the
last few computed steps, and a plan weighs the path as it will be run, not edges that know nothing of each other.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lemica.graph import ErrorGraph
from lemica.moments import Moments, fit


@dataclass(frozen=True, eq=False)
class Routes:
    """Gaps from S states with gaps up to D; state 0 is the first step.

    weights: float64 (S, D + 1), cost of a gap, 0 for gap 1, NaN where there is none.
    follow: int (S, D + 1), the state after it, S where there is none.
    ends: bool (S,), whether the state is at the last step.
    """

    weights: np.ndarray
    follow: np.ndarray
    ends: np.ndarray


def step_routes(graph: ErrorGraph) -> Routes:
    """One state a step: every edge costs its weight, whatever was computed before it."""
    steps, gaps = np.indices(graph.weights.shape)
    reached = steps + gaps
    follow = np.where((gaps == 0) | (reached >= graph.num_steps), graph.num_steps, reached)
    return Routes(graph.weights, follow, np.arange(graph.num_steps) == graph.num_steps - 1)


def fitted_routes(graph: ErrorGraph, keeps: int) -> Routes:
    """One state for every tuple of the last `keeps` computed steps.

    The cost of edge i -> j after some history is the edge's weight, measured with the velocity held, times the ratio of
    two local errors that the moments foresee: with the forecast fitted to that history, and with holding.

    Raises ValueError, saying what to type, for a graph of another rule or without moments.
    """
    _refuse_unfit(graph)
    states = _states(graph.num_steps, graph.max_gap, keeps)
    weights = np.full((len(states), graph.max_gap + 1), np.nan)
    follow = np.full(weights.shape, len(states))
    groups = defaultdict(list)
    for state, index in states.items():
        groups[state[-1], len(state)].append(index)
        for gap in range(1, min(graph.max_gap, graph.num_steps - 1 - state[-1]) + 1):
            follow[index, gap] = states[_after(state, gap, keeps)]
    histories = list(states)
    for (step, _), indices in groups.items():
        older = np.array([histories[index][:-1] for index in indices], dtype=int)
        weights[indices] = graph.weights[step] * _improvements(graph.moments, graph.max_gap, step, older)
    return Routes(weights, follow, np.array([state[-1] == graph.num_steps - 1 for state in states]))


def _after(state: tuple[int, ...], gap: int, keeps: int) -> tuple[int, ...]:
    return (*state, state[-1] + gap)[-keeps:]


def _states(num_steps: int, max_gap: int, keeps: int) -> dict[tuple[int, ...], int]:
    """Every history that a path can have, numbered from that of the first step."""
    states, frontier = {(0,): 0}, [(0,)]
    for state in frontier:
        for gap in range(1, min(max_gap, num_steps - 1 - state[-1]) + 1):
            following = _after(state, gap, keeps)
            if following not in states:
                states[following] = len(states)
                frontier.append(following)
    return states


def fitted_costs(graph: ErrorGraph, path: Sequence[int], keeps: int) -> list[float]:
    """Cost of every edge of a path with a forecast fitted to its last `keeps` computed steps, as in the routes.

    Raises ValueError for a graph that cannot be fitted, and where it has no such edge.
    """
    _refuse_unfit(graph)
    costs = []
    for k, (i, j) in enumerate(pairwise(path)):
        older = np.array([path[max(0, k + 1 - keeps) : k]], dtype=int)
        share = 1.0 if j == i + 1 else float(_improvement(graph.moments, i, older, j - i)[0])
        costs.append(graph.weight(i, j) * share)
    return costs


def _refuse_unfit(graph: ErrorGraph) -> None:
    if graph.moments is None or (graph.reuse, graph.forecast) != ("velocity", "hold"):
        raise ValueError(
            "a fitted forecast is planned on a graph with moments of velocity + hold: write one with python -m lemica "
            "calibrate --reuse velocity"
        )


def _improvements(moments: Moments, max_gap: int, step: int, older: np.ndarray) -> np.ndarray:
    """``_improvement`` by history and gap: (n, max_gap + 1)."""
    shares = np.ones((len(older), max_gap + 1))
    for gap in range(2, min(max_gap, moments.num_steps - 1 - step) + 1):
        shares[:, gap] = _improvement(moments, step, older, gap)
    return shares


def _improvement(moments: Moments, step: int, older: np.ndarray, gap: int) -> np.ndarray:
    """Local error with the fitted forecast as a share of that with holding, for each of n histories: (n,)."""
    seen, goal = moments.seen_from(step), moments.stretch(step, step + gap)
    held = np.sqrt(max(goal @ seen @ goal, 0))
    return fit(seen, older, goal)[1] / held if held > 0 else np.ones(len(older))
