"""The noise floor: how far the initial noise is moved to see what rounding alone does to a result."""

import torch

# How far the noise floor moves the initial noise; less than half of the last bit of a number would move nothing.
NOISE_CHANGE = 1e-5


def moved(latents: torch.Tensor) -> torch.Tensor:
    """Every number up or down by 1e-5 of itself, or by its last bit where it has no smaller one.

    >>> moved(torch.ones(2, dtype=torch.float64))
    tensor([1.0000, 1.0000], dtype=torch.float64)
    """
    change = max(NOISE_CHANGE, torch.finfo(latents.dtype).eps / 2)
    signs = torch.randint(0, 2, latents.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
    return (wide * (1 + change * signs.to(wide))).to(latents.dtype)
