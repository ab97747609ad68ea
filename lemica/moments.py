"""Second moments of what a denoiser returns in uncached runs: enough to fit a forecast, and to foresee its error.

A forecast takes v_s for a sum of w_k v_k over kept velocities. Its mean squared error, and the weights that make that
least, depend on the runs through P[s, t] = mean(v_s v_t) alone: N x N numbers, whatever the size of the model.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Moments:
    """What is kept of the outputs ("velocities") of uncached runs.

    Args:
        sigmas: (N + 1,), the noise levels from 1 to 0.
        products: (N, N), mean of v_s v_t over elements, guidance branches and samples; v_s is the output of step s,
            before guidance.

    Both are copied to float64 and made read-only. Raises ValueError for shapes that do not fit, numbers that are not
    finite, and products that are not symmetric.
    """

    sigmas: np.ndarray
    products: np.ndarray

    def __post_init__(self):
        for name in ("sigmas", "products"):
            values = np.array(getattr(self, name), dtype=np.float64)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.sigmas.ndim != 1:
            raise ValueError(f"sigmas have shape {self.sigmas.shape}; give one number per step and one more")
        num_steps = len(self.sigmas) - 1
        if self.products.shape != (num_steps, num_steps) or not np.array_equal(self.products, self.products.T):
            raise ValueError(f"products have shape {self.products.shape}; give a symmetric array for {num_steps} steps")
        if not (np.isfinite(self.sigmas).all() and np.isfinite(self.products).all()):
            raise ValueError("sigmas and products must be finite numbers")

    @property
    def num_steps(self) -> int:
        return len(self.products)

    def differences(self, origin: int | np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Mean of (v_left - v_origin)(v_right - v_origin), for steps in arrays that broadcast."""
        products = self.products
        return products[left, right] - products[left, origin] - products[origin, right] + products[origin, origin]
