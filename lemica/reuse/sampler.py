"""What a scheduler says of its steps."""

import inspect
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
    """Whether a step moves latents by the difference of its noise levels times the velocity, and by nothing else.

    For a scheduler whose time steps are set. Levels above 1 are not of flow matching: what the denoiser returns is no
    velocity there.

        >>> is_euler(scheduler)
        True
    """
    # The scheduler may be watched, and a subclass may step in a way of its own.
    step_of = inspect.unwrap(type(scheduler).step).__qualname__.split(".")[-2]
    config = getattr(scheduler, "config", {})
    draws_noise, solver = config.get("stochastic_sampling", False), config.get("solver", "euler")
    is_flow = max(getattr(scheduler, "sigmas", (0,))) <= 1
    return step_of in _EULER_SCHEDULERS and solver == "euler" and is_flow and not draws_noise


def _angle(sigma: float) -> float:
    return 2 / math.pi * math.atan(sigma)
