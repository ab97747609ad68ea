"""Spectrum (arXiv 2603.01623): Chebyshev polynomials through what left the last block, by ridge regression.

With H the rows of all computed steps, T_m the Chebyshev polynomials and Phi their values at these steps' times, which
are scaled to [-1, 1] over the whole run,

    C = (Phi^T Phi + ridge I)^-1 Phi^T H,        h(t) = T(t) C,

blended by w with a line through the two newest. Its authors' w is 0.5 to 1, their degree 4, their ridge 0.1; with w = 0
nothing is left of it but the line.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from benchmarks.rivals.bench import Bench
from benchmarks.rivals.papers.forecasting import Forecast, Forecasting
from benchmarks.rivals.stack import behind

WARM_UP, FIRST_WINDOW = 5, 2.0


def own_steps(alpha: float, num_steps: int) -> list[bool]:
    """Its authors' schedule: after five steps every second one is computed, and each interval is longer by alpha."""
    steps, window, reused = [True] * WARM_UP, FIRST_WINDOW, 0
    while len(steps) < num_steps:
        computed = (reused + 1) % int(window) == 0
        steps.append(computed)
        reused = 0 if computed else reused + 1
        # Rounded as theirs is, or small alphas would not add up.
        window = round(window + alpha, 3) if computed else window
    return steps


def chebyshev(times: Sequence[float], degree: int) -> Tensor:
    """T_0 to T_degree at times in [-1, 1], a row each."""
    return torch.from_numpy(np.polynomial.chebyshev.chebvander(np.asarray(times), degree)).float()


def forecast(num_steps: int, degree: int, ridge: float, blend: float) -> Forecast:
    """What leaves the last block at a step that is not computed."""

    def at(step: float) -> float:
        return 2 * step / num_steps - 1

    def predict(step: int, history: Sequence[tuple[int, Tensor]]) -> Tensor:
        known = chebyshev([at(each) for each, _ in history], degree)
        kept = torch.stack([feature.float().flatten() for _, feature in history])
        coefficients = torch.linalg.solve(known.T @ known + ridge * torch.eye(degree + 1), known.T @ kept)
        spectral = (chebyshev([at(step)], degree) @ coefficients).view_as(history[-1][1])
        return blend * spectral + (1 - blend) * line(step, history)

    return predict


def line(step: int, history: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Through the two newest; the newest where there is one."""
    newest_step, newest = history[-1]
    if len(history) == 1:
        return newest.float()
    older_step, older = history[-2]
    return newest + (step - newest_step) / (newest_step - older_step) * (newest.float() - older)


def spectrum(
    bench: Bench, steps: Sequence[bool], blend: float = 0.5, degree: int = 4, ridge: float = 0.1
) -> AbstractContextManager[None]:
    """Inside, the bench's transformer has Spectrum on for one run."""
    return behind(bench, Forecasting(bench, steps, forecast(len(steps), degree, ridge, blend)))
