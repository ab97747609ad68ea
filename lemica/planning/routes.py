"""What a planner may do after each computed step, and what that costs: the input of the solvers in paths.py.

The cost of edge i -> j after a history of computed steps is the edge's error, measured with the velocity held, times
the share of the local error that the forecast leaves. The velocities' moments foresee both local errors: the
latents after steps i + 1 ... j - 1 are off by sum_s d_s (v_s - sum_k w_sk v_k), where d_s = sigma_{s+1} - sigma_s.

So a plan counts a path as it will be run. A state is the tuple of the last K computed steps, K the forecast's history.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from lemica.forecasts import Forecast
from lemica.masks import MAX_WEIGHT_SUM, Mask
from lemica.moments import Moments
from lemica.planning.graph import ErrorGraph

History = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Routes:
    """What each of S states allows, with gaps up to D; state 0 is that of the first step.

    Args:
        num_steps: number of denoising steps.
        costs: float64 (S, D + 1), cost of a gap, 0 for gap 1, NaN where there is none.
        next_state: int (S, D + 1), the state after a gap, S where there is none.
        is_last: bool (S,), whether the state is at the last step.
    """

    num_steps: int
    costs: np.ndarray
    next_state: np.ndarray
    is_last: np.ndarray

    @property
    def max_gap(self) -> int:
        return self.costs.shape[1] - 1


def forecast_routes(graph: ErrorGraph, forecast: Forecast) -> Routes:
    """The routes through a graph whose reused steps are made by a forecast.

    A gap that would need larger weights than a mask may have is left out. With a forecast of history 1 a state is a
    step, and every edge costs its error.
    """
    numbers = _numbered_histories(graph.num_steps, graph.max_gap, forecast.history)
    shares = _shares_by_state(graph, forecast, list(numbers))
    errors = graph.errors[[history[-1] for history in numbers]]
    costs = errors * np.where(np.isfinite(shares), shares, np.nan)
    next_state = np.full(costs.shape, len(numbers))
    for history, number in numbers.items():
        for gap in np.flatnonzero(np.isfinite(costs[number])).tolist():
            next_state[number, gap] = numbers[_extended(history, gap, forecast.history)]
    is_last = np.array([history[-1] == graph.num_steps - 1 for history in numbers])
    return Routes(graph.num_steps, costs, next_state, is_last)


def edge_costs(graph: ErrorGraph, mask: Mask) -> list[float]:
    """Cost of every edge of a mask of velocities, with the mask's own weights.

    Args:
        graph: a graph with moments; without them masks that hold can have a cost alone.
        mask: a mask that has its weights (``with_weights``); they must sum to 1 at every step.

    Raises ValueError where the graph has no such edge.
    """
    costs = held_costs(graph, mask)
    if mask.history <= 1:
        return costs
    shares = []
    for edge, (i, j) in enumerate(pairwise(mask.computed_steps)):
        history = mask.computed_steps[: edge + 1][-mask.history :]
        rows = Forecast(mask.rule, mask.history, partial(_row_of_mask, mask))
        shares.append(_shares(graph.moments, rows, np.array([history]), j - i)[0, j - i])
    return [cost * float(share) for cost, share in zip(costs, shares, strict=True)]


def _row_of_mask(mask: Mask, histories: np.ndarray, step: int) -> np.ndarray:
    row = np.array(mask.weights[step])
    return np.pad(row, (histories.shape[1] - len(row), 0))[None]


def held_costs(graph: ErrorGraph, mask: Mask) -> list[float]:
    """Error of every edge of a mask with the velocity held, whatever the mask's own rule."""
    return [graph.error(i, j) for i, j in pairwise(mask.computed_steps)]


def _numbered_histories(num_steps: int, max_gap: int, length: int) -> dict[History, int]:
    """Every history of at most `length` computed steps that a path can have, numbered from that of the first step."""
    numbers: dict[History, int] = {(0,): 0}
    frontier = [(0,)]
    for history in frontier:
        for gap in range(1, min(max_gap, num_steps - 1 - history[-1]) + 1):
            following = _extended(history, gap, length)
            if following not in numbers:
                numbers[following] = len(numbers)
                frontier.append(following)
    return numbers


def _extended(history: History, gap: int, length: int) -> History:
    return (*history, history[-1] + gap)[-length:]


def _shares_by_state(graph: ErrorGraph, forecast: Forecast, histories: list[History]) -> np.ndarray:
    """Share of the held error that the forecast leaves, by state and gap: (S, D + 1)."""
    shares = np.ones((len(histories), graph.max_gap + 1))
    if forecast.history == 1:
        # One tensor can only be held, and a graph without moments knows no more.
        return shares
    alike = defaultdict(list)
    for number, history in enumerate(histories):
        alike[history[-1], len(history)].append(number)
    for numbers in alike.values():
        together = np.array([histories[number] for number in numbers])
        shares[numbers] = _shares(graph.moments, forecast, together, graph.max_gap)
    return shares


def _shares(moments: Moments, forecast: Forecast, histories: np.ndarray, max_gap: int) -> np.ndarray:
    """The share by gap for histories (n, k) that end at one step; inf where weights are too large: (n, D + 1)."""
    newest, oldest = int(histories[0, -1]), int(histories.min())
    end = min(newest + max_gap, moments.num_steps - 1)
    widths = np.diff(moments.sigmas)
    shares = np.ones((len(histories), max_gap + 1))
    # Coefficients of the velocities in the error of the latents, by history; the last row is that of holding.
    error = np.zeros((len(histories) + 1, moments.num_steps))
    each = np.arange(len(histories))[:, None]
    too_large = np.zeros(len(histories), dtype=bool)
    for step in range(newest + 1, end):
        weights = forecast.weigh(histories, step)
        error[:, step] += widths[step]
        error[each, histories] -= widths[step] * weights
        error[-1, newest] -= widths[step]
        *left, held = _root_mean_squares(moments, error, newest, range(oldest, end))
        too_large |= np.abs(weights).sum(axis=1) > MAX_WEIGHT_SUM
        share = np.array(left) / held if held > 0 else 1.0
        shares[:, step + 1 - newest] = np.where(too_large, np.inf, share)
    return shares


def _root_mean_squares(moments: Moments, coefficients: np.ndarray, newest: int, steps: range) -> np.ndarray:
    """Root mean square of sum_s c_s v_s over `steps`, for each row c of coefficients: sqrt(c^T P c).

    Each c must sum to 0: so P can be that of the differences from the newest velocity, which rounding harms less.
    """
    steps = np.array(steps)
    products = moments.differences(newest, steps[:, None], steps[None, :])
    c = coefficients[:, steps]
    return np.sqrt(np.maximum(((c @ products) * c).sum(axis=1), 0))
