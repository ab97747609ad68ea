"""DPCache (arXiv 2602.22654): key steps by dynamic programming on the error of Taylor forecasts.

With F_t what leaves the last block at step t of an uncached run, and P_t(i, j) its Taylor forecast from the key step j,
before which i was one,

    C[i, j, k] = sum over t = j + 1 .. k of |F_t - P_t(i, j)|_1,
    D[m, k] = min over j of D[m - 1, j] + C[p, j, k],

where p is the best predecessor of j among paths of m - 1 steps. The first three steps are key steps. Derivatives are
those of TaylorSeer. Only the conditional branch is looked at. Two things of the authors' plan are not known. Here the
third point of a second derivative is the step before i; and the last step is a key step (`ends`), or is forecast like
others.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
from torch import Tensor

from benchmarks.rivals.bench import BRANCHES, Bench
from benchmarks.rivals.papers.forecasting import Forecasting
from benchmarks.rivals.papers.plans import NoPlan
from benchmarks.rivals.stack import behind
from benchmarks.rivals.trajectories import Trajectory

FORCED = 3
LONGEST_GAP = 0.3
History = Sequence[tuple[int, Tensor]]


def derivatives(history: History, order: int) -> list[Tensor]:
    """Of the newest step, the zeroth first: D_o = (D_{o-1} - D_{o-1} one key step earlier) / gap."""
    if order == 0 or len(history) == 1:
        return [history[-1][1].float()]
    gap = history[-1][0] - history[-2][0]
    earlier = derivatives(history[:-1], order - 1)
    found = [history[-1][1].float()]
    for before in earlier:
        found.append((found[-1] - before) / gap)
    return found


def taylor(step: int, history: History, order: int = 2) -> Tensor:
    """The sum of D_o (step - newest)^o / o!."""
    distance = step - history[-1][0]
    found = derivatives(history, order)
    return sum(each * distance**power / math.factorial(power) for power, each in enumerate(found))


def costs(runs: Sequence[Trajectory], order: int) -> np.ndarray:
    """C[i, j, k], infinite where a gap is too long; mean over samples."""
    num_steps = len(runs[0].guided)
    longest = int(LONGEST_GAP * num_steps)
    total = np.full((num_steps,) * 3, np.inf)
    for j in range(1, num_steps):
        for i in range(max(0, j - longest), j):
            last = min(num_steps - 1, j + longest)
            errors = np.mean([_errors(run, i, j, last, order) for run in runs], axis=0)
            total[i, j, j + 1 : last + 1] = np.cumsum(errors)
    return total


def _errors(run: Trajectory, i: int, j: int, last: int, order: int) -> list[float]:
    """Of the forecasts of steps j + 1 to `last`."""
    features = run.outputs[BRANCHES[0]]
    history = [(step, features[step]) for step in (i - 1, i, j) if step >= 0]
    return [float((features[t] - taylor(t, history, order)).abs().mean()) for t in range(j + 1, last + 1)]


def plan(cost: np.ndarray, budget: int, ends: bool = False) -> list[bool]:
    """The mask of so many key steps, the last step among them if `ends`, or else forecast where that is best.

    Raises NoPlan where no path of so few steps has gaps that are short enough.
    """
    num_steps = len(cost)
    # Behind the last step: a path ends there, and nothing is computed.
    end = np.pad(cost, ((0, 0), (0, 0), (0, 1)), constant_values=np.inf)
    for j in range(num_steps):
        end[:, j, num_steps] = cost[:, j, num_steps - 1] if j < num_steps - 1 else 0.0
    best = {FORCED - 1: (0.0, tuple(range(FORCED)))}
    for _ in range(budget - FORCED):
        best = _longer(best, end, range(num_steps))
    if ends:
        best = {num_steps - 1: best[num_steps - 1]} if num_steps - 1 in best else {}
    best = _longer(best, end, [num_steps])
    if num_steps not in best:
        raise NoPlan(budget)
    return [step in best[num_steps][1] for step in range(num_steps)]


def _longer(
    best: dict[int, tuple[float, tuple[int, ...]]], cost: np.ndarray, ends: Sequence[int]
) -> dict[int, tuple[float, tuple[int, ...]]]:
    """The best paths by their last step, from those that are shorter by one."""
    longer = {}
    for k in ends:
        found = [(total + cost[path[-2], j, k], (*path, k)) for j, (total, path) in best.items() if j < k]
        if found and math.isfinite(min(found)[0]):
            longer[k] = min(found)
    return longer


def dpcache(bench: Bench, steps: Sequence[bool], order: int = 2) -> AbstractContextManager[None]:
    """Inside, the bench's transformer has DPCache on for one run."""
    return behind(bench, Forecasting(bench, steps, lambda step, history: taylor(step, history, order), order + 1))
