"""What a scheduler says of its steps."""

import math
from typing import Any

import torch

# Diffusers' scheduler and HunyuanVideo-1.5's own.
_EULER_SCHEDULERS = {"FlowMatchEulerDiscreteScheduler", "FlowMatchDiscreteScheduler"}


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


def is_euler(scheduler: Any) -> bool:
    """Whether a step moves latents by the difference of its noise levels times the output, and by nothing else.

    >>> is_euler(FlowMatchEulerDiscreteScheduler())
    True
    """
    names = {kind.__name__ for kind in type(scheduler).__mro__}
    config = getattr(scheduler, "config", {})
    draws_noise, solver = config.get("stochastic_sampling", False), config.get("solver", "euler")
    return bool(names & _EULER_SCHEDULERS) and solver == "euler" and not draws_noise


def _angle(sigma: float) -> float:
    return 2 / math.pi * math.atan(sigma)
