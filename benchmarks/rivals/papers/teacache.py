"""TeaCache's rule (arXiv 2411.19108): the change of the first block's input tells when to compute.

With F_i what the first block's attention is given at step i,

    x_i = mean |F_i - F_{i-1}| / mean |F_{i-1}|,

and steps are reused while the sum of p(x) since the last computed one is below a threshold; p is a polynomial that was
fitted to the relative change of what the blocks add. The first and the last step are computed. A reused step adds to
the image tokens what the blocks added at the last computed one. Each branch of guidance has a state of its own.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np
from torch import Tensor

from benchmarks.rivals.bench import BRANCHES, Bench
from benchmarks.rivals.stack import behind
from benchmarks.rivals.trajectories import Trajectory, modulated

DEGREE = 4
# The change itself.
IDENTITY = (1.0, 0.0)


def relative_change(new: Tensor, old: Tensor) -> float:
    """mean |new - old| / mean |old|."""
    return float((new - old).abs().mean() / old.abs().mean())


def fit(runs: Sequence[Trajectory]) -> list[float]:
    """Coefficients of p, the highest power first, over all steps and branches of uncached runs."""
    changes, wanted = [], []
    for run in runs:
        for branch in BRANCHES:
            residuals = [after - before for before, after in zip(run.inputs[branch], run.outputs[branch], strict=True)]
            changes += [relative_change(new, old) for old, new in pairwise(run.modulated[branch])]
            wanted += [relative_change(new, old) for old, new in pairwise(residuals)]
    return np.polyfit(changes, wanted, DEGREE).tolist()


class TeaCache:
    """The rule, for runs of so many steps."""

    def __init__(self, bench: Bench, threshold: float, polynomial: Sequence[float], num_steps: int):
        self.bench, self.threshold, self.polynomial = bench, threshold, polynomial
        self.forced = (0, num_steps - 1)
        self.previous: dict[str, Tensor] = {}
        self.residual: dict[str, Tensor] = {}
        self.sum = dict.fromkeys(BRANCHES, 0.0)

    def __call__(self, image: Tensor, temb: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        branch = self.bench.branch
        if not self._is_due(modulated(self.bench, image, temb), branch):
            return image + self.residual[branch]
        output = compute()
        self.residual[branch] = output - image
        return output

    def _is_due(self, given: Tensor, branch: str) -> bool:
        before, self.previous[branch] = self.previous.get(branch), given
        if self.bench.step not in self.forced:
            self.sum[branch] += float(np.polyval(self.polynomial, relative_change(given, before)))
            if self.sum[branch] < self.threshold:
                return False
        self.sum[branch] = 0.0
        return True


def teacache(
    bench: Bench, threshold: float, polynomial: Sequence[float] = IDENTITY, num_steps: int = 50
) -> AbstractContextManager[None]:
    """Inside, the bench's transformer has TeaCache on for one run."""
    return behind(bench, TeaCache(bench, threshold, polynomial, num_steps))
