"""What a scheduler says of its steps."""

import math
from typing import Any

import torch


def noise_levels(scheduler: Any) -> tuple[float, ...]:
    """The N + 1 noise levels of a scheduler whose time steps are set, from about 1 to about 0.

    For flow matching sigma itself. Else the angle 2/pi atan(sigma / alpha), the share of noise in signal and noise:
    finite for pure noise, too, and over it a variance-preserving sampler moves by as much as its output has changed.
    Where a scheduler tells neither, its time steps as shares of the first.

        >>> noise_levels(scheduler)
        (1.0, 0.75, 0.5, 0.25, 0.0)
    """
    times = torch.as_tensor(scheduler.timesteps).cpu()
    sigmas = getattr(scheduler, "sigmas", None)
    signal = getattr(scheduler, "alphas_cumprod", None)
    if sigmas is not None and len(sigmas) == len(times) + 1:
        levels = torch.as_tensor(sigmas).double().tolist()
        return tuple(levels) if max(levels) <= 1 else tuple(map(_angle, levels))
    if signal is not None:
        shares = signal.double().cpu()[times.long()].tolist()
        return (*(2 / math.pi * math.acos(math.sqrt(share)) for share in shares), 0.0)
    return (*(times.double() / times[0]).tolist(), 0.0)


def _angle(sigma: float) -> float:
    return 2 / math.pi * math.atan(sigma)
