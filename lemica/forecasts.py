"""Forecasts: the rules that turn computed steps into the weights of a reused step. numpy only.

A reused step s takes sum_k w_k v_k for its velocity v_s, over the kept velocities of the last computed steps. All
weights of a step sum to 1, so a forecast that reads one kept tensor holds it.

hold         the newest kept tensor as it is
damped       halfway from the newest to the line through the last two, drawn over the noise level
taylor-step  Taylor's series from the newest over the step index, its derivatives from the last three
fitted       least squares on what the denoiser returned in calibrated runs

    >>> taylor_step().weights((0, 2, 4), 5)
    (0.125, -0.75, 1.625)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lemica.masks import FURTHEST, RULES, Interpolation, StepMask, Weights, mask_of
from lemica.moments import Moments

FORECASTS = ("hold", "damped", "taylor-step", "fitted")
DEFAULT_FORECAST = "fitted"
# Computed steps that a fitted forecast reads: a third one helps up to ``FURTHEST`` steps after the newest, and harms
# further away, as tuning on the demo model showed. A mask is planned as if all steps read two: a plan that counts on a
# third one trusts it too much.
NEAR_HISTORY, FAR_HISTORY = 3, 2
PLANNING_HISTORY = 2
MAX_HISTORY = 4
# Added to the normal equations, as a share of their mean diagonal: the velocities of a cached run are not quite those
# of the uncached runs that the weights are fitted to, and large weights would enlarge the difference.
RIDGE = 1e-3


@dataclass(frozen=True)
class Forecast:
    """A rule for the weights of reused steps.

    Args:
        name: the rule's name in mask files.
        history: how many of the last computed steps it reads at most.
        weigh: from n histories of k computed steps each, (n, k), oldest first, and a reused step after them to their
            weights, (n, k).
    """

    name: str
    history: int
    weigh: Callable[[np.ndarray, int], np.ndarray]

    def weights(self, computed: Sequence[int], step: int) -> tuple[float, ...]:
        """Weights for reused step `step` of the last of the steps `computed` before it, oldest first."""
        row = self.weigh(np.array([computed[-self.history :]]), step)[0].tolist()
        unread = next((place for place, weight in enumerate(row[:-1]) if weight != 0), len(row) - 1)
        return tuple(row[unread:])

    def rows(self, steps: StepMask) -> Weights:
        """The weights of every step of a mask, as ``Mask.weights`` has them: none for a computed step."""
        rows: list[tuple[float, ...]] = []
        seen: list[int] = []
        for step, computed in enumerate(steps):
            rows.append(() if computed else self.weights(seen, step))
            if computed:
                seen.append(step)
        return tuple(rows)


def forecast_named(name: str, moments: Moments | None = None, history: int | None = None) -> Forecast:
    """A forecast by its name.

    Args:
        name: one of ``FORECASTS``.
        moments: of the velocities that it is for; hold alone does without.
        history: how many computed steps the fitted forecast reads, by default three near the newest one and two further
            away; the others have a number of their own.

    Raises ValueError for another name or history, and where moments are missing.
    """
    if name not in FORECASTS:
        raise ValueError(f"forecast {name!r:.60} is not known: choose one of {', '.join(FORECASTS)}")
    if name == "hold":
        return hold()
    if moments is None:
        raise ValueError(
            f"this graph has no products of velocities, which forecast {name} needs: write the graph again with lemica "
            "calibrate, or plan with --forecast hold"
        )
    if name == "fitted":
        return fitted_near_and_far(moments) if history is None else fitted(moments, history)
    return damped(moments.sigmas.tolist()) if name == "damped" else taylor_step()


def hold() -> Forecast:
    """The newest kept tensor as it is."""
    return _of_mask_rule("hold", 1, ())


def damped(sigmas: Sequence[float]) -> Forecast:
    """Halfway from the newest kept tensor to the line through the last two, drawn over the noise levels `sigmas`."""
    return _of_mask_rule("damped", 2, sigmas)


def interpolation(moments: Moments) -> Interpolation:
    """Least squares for a velocity between the last two computed steps, by those of both and of the one before.

    In ``lemica.masks.corrected``; the weights sum to 1, as a forecast's.
    """
    fit = fitted(moments, 3)

    def interpolate(seen: Sequence[int], step: int) -> dict[int, float]:
        *older, i, j = seen[-3:]
        # Last, because the last one is that from which differences are taken.
        nodes = [*older, j, i]
        return dict(zip(nodes, fit.weigh(np.array([nodes]), step)[0].tolist(), strict=True))

    return interpolate


def _of_mask_rule(name: str, history: int, sigmas: Sequence[float]) -> Forecast:
    """A forecast of a rule that masks.py has, because the kit offers it without a mask file."""

    def weigh(histories: np.ndarray, step: int) -> np.ndarray:
        return np.array([RULES[name](mask_of(computed, step + 1), sigmas)[step] for computed in histories.tolist()])

    return Forecast(name, history, weigh)


def taylor_step() -> Forecast:
    """Taylor's series from the newest step over the step index, to second order, with divided differences F[...]:

        F(x) = F[p1] + (x - p1) F[p1, p2] + (x - p1)^2 F[p1, p2, p3]

    p1 is the newest computed step, p2 and p3 those before it; F[p1, ..., pn] stands for the derivative of order n - 1
    over its factorial, whatever the gaps between the computed steps.
    """
    return Forecast("taylor-step", 3, _taylor_weights)


def _taylor_weights(histories: np.ndarray, step: int) -> np.ndarray:
    newest_first = histories[:, ::-1]
    weights = np.zeros(histories.shape)
    for order in range(histories.shape[1]):
        points = newest_first[:, : order + 1]
        power = (step - points[:, 0]) ** order
        # F[p1, ..., pn] is the sum over m of F(pm) / product over l != m of (pm - pl).
        for m in range(order + 1):
            distances = points[:, [m]] - np.delete(points, m, axis=1)
            weights[:, m] += power / distances.prod(axis=1)
    return weights[:, ::-1]


def fitted_near_and_far(moments: Moments) -> Forecast:
    """The fitted forecast that reads three computed steps near the newest of them, and two further away.

    g steps after the newest, more than ``FURTHEST``, it goes the share FURTHEST / g of the way from the newest.
    """
    near, far = fitted(moments, NEAR_HISTORY), fitted(moments, FAR_HISTORY)

    def weigh(histories: np.ndarray, step: int) -> np.ndarray:
        gap = step - int(histories[0, -1])
        if gap <= FURTHEST:
            return near.weigh(histories, step)
        weights = FURTHEST / gap * far.weigh(histories[:, -FAR_HISTORY:], step)
        weights[:, -1] += 1 - FURTHEST / gap
        return np.pad(weights, ((0, 0), (histories.shape[1] - weights.shape[1], 0)))

    return Forecast("fitted", NEAR_HISTORY, weigh)


def fitted(moments: Moments, history: int) -> Forecast:
    """Least squares for the velocity of the reused step, by those of the last `history` computed steps.

    Fitted is v_s - v_newest by the older v_k - v_newest, so that the weights sum to 1; the ridge keeps them small.
    """
    if history < 1:
        raise ValueError(f"history is {history}: give the number of computed steps to read, from 1 to {MAX_HISTORY}")

    def weigh(histories: np.ndarray, step: int) -> np.ndarray:
        older, newest = histories[:, :-1], histories[:, -1:]
        gram = moments.differences(newest[:, :, None], older[:, :, None], older[:, None, :])
        towards = moments.differences(newest, older, step)
        count = older.shape[1]
        ridge = RIDGE * np.trace(gram, axis1=1, axis2=2)[:, None, None] / max(count, 1)
        # Velocities that are all the same leave nothing to fit: any positive number there gives weights of 0.
        loaded = gram + np.where(ridge > 0, ridge, 1) * np.eye(count)
        weights = np.linalg.solve(loaded, towards[:, :, None])[:, :, 0]
        return np.column_stack([weights, 1 - weights.sum(axis=1)])

    return Forecast("fitted", history, weigh)
