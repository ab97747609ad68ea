"""Second moments of the velocities of uncached runs: enough to fit a forecast, and to foresee its error. No torch.

A forecast takes v_s for the sum of w_k v_k over the kept velocities, with weights that sum to 1. The weights with the
least squared error, and that error, depend on the runs through the products P[s, t] = mean(v_s v_t) alone (the normal
equations of linear least squares): N x N numbers, whatever the size of the model. And because sampling adds up
(sigma_{s+1} - sigma_s) v_s, they also give the error of a whole stretch of reused steps, however the computed steps
before it are spaced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Added to the normal equations, as a share of their mean diagonal: the velocities of a cached run are not quite those
# of the uncached runs that the weights are fitted to, and large weights would enlarge the difference.
RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Moments:
    """sigmas: (N + 1,), the noise levels from 1 to 0; products: (N, N), mean of v_s v_t over elements and samples.

    v_s is the velocity of step s after classifier-free guidance. Both float64, copied and made read-only.
    Raises ValueError for shapes that do not fit, numbers that are not finite, and products that are not symmetric.
    """

    sigmas: np.ndarray
    products: np.ndarray

    def __post_init__(self):
        for name in ("sigmas", "products"):
            values = np.array(getattr(self, name), dtype=np.float64)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.sigmas.ndim != 1:
            raise ValueError(f"sigmas have shape {self.sigmas.shape}; give one number a step and one more")
        num_steps = len(self.sigmas) - 1
        if self.products.shape != (num_steps, num_steps) or not np.array_equal(self.products, self.products.T):
            raise ValueError(f"products have shape {self.products.shape}; give a symmetric array for {num_steps} steps")
        if not (np.isfinite(self.sigmas).all() and np.isfinite(self.products).all()):
            raise ValueError("sigmas and products must be finite numbers")

    @property
    def num_steps(self) -> int:
        return len(self.products)

    def stretch(self, i: int, j: int) -> np.ndarray:
        """How much each step's velocity counts for the latents where only steps between i and j matter: (N,)."""
        steps = np.zeros(self.num_steps)
        steps[i + 1 : j] = np.diff(self.sigmas)[i + 1 : j]
        return steps

    def seen_from(self, i: int) -> np.ndarray:
        """Products of the differences v_s - v_i: (N, N). With weights that sum to 1 they are all that matters."""
        to_i = self.products[i]
        return self.products - to_i[:, None] - to_i[None, :] + to_i[i]

    def reuse_weights(self, path: Sequence[int], keeps: int) -> tuple[tuple[float, ...], ...]:
        """For every reused step the fitted weights of the last `keeps` computed ones, oldest first; else none."""
        weights: list[tuple[float, ...]] = []
        sources: list[int] = []
        for step in range(self.num_steps):
            if step in path:
                sources = [*sources, step][-keeps:]
                weights.append(())
                continue
            *older, newest = sources
            fitted, _ = fit(self.seen_from(newest), np.array([older], dtype=int), np.eye(self.num_steps)[step])
            weights.append((*fitted[0].tolist(), 1 - float(fitted[0].sum())))
        return tuple(weights)


def fit(seen: np.ndarray, older: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares for `goal`, a combination of velocities, by the newest kept velocity and older ones.

    Args:
        seen: ``Moments.seen_from`` of the newest kept step.
        older: (n, m) older kept steps, for n cases at once.
        goal: (N,) how much of each step's velocity is wanted.

    Returns the weights of the older steps, (n, m); the newest has what is left of the goal's sum. And the root mean
    square errors, (n,).
    """
    gram, towards = seen[older[:, :, None], older[:, None, :]], (seen @ goal)[older]
    kept = older.shape[1]
    # Velocities that are all the same leave nothing to fit: any positive number there gives weights of 0.
    ridge = RIDGE * np.trace(gram, axis1=1, axis2=2)[:, None, None] / max(kept, 1)
    loaded = gram + np.where(ridge > 0, ridge, 1) * np.eye(kept)
    weights = np.linalg.solve(loaded, towards[:, :, None])[:, :, 0]
    explained = 2 * (weights * towards).sum(1) - np.einsum("na,nab,nb->n", weights, gram, weights)
    return weights, np.sqrt(np.maximum(goal @ seen @ goal - explained, 0))
