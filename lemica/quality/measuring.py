"""The figures of what a method made of a sample."""

import math

import numpy as np

from lemica.errors import RefusedHere
from lemica.quality.evaluation import Measured
from lemica.quality.metrics import Metric, Quality, means_of, psnr, ssim
from lemica.quality.models import Made


def measured(reference: Made, made: Made, name: str, lpips: Metric | None = None) -> Measured:
    """The figures of what was made, against the uncached result of the same sample.

    Args:
        reference: the uncached result; may be `made` itself, which then equals it.
        made: what the method made, frames (F, H, W, 3).
        name: the method's, for refusals.
        lpips: what ``lemica.quality.metrics.load_lpips`` returns; None leaves LPIPS out.

    Raises RefusedHere where there are values that are no numbers.

    Example:
        >>> grey, black = (Made(np.full((1, 16, 16, 3), value), 2.0, 50) for value in (0.1, 0.0))
        >>> round(measured(grey, black, "mine").psnr, 6)
        20.0
    """
    if not np.isfinite(made.frames).all():
        raise RefusedHere(f"the result of {name} has values that are no numbers: run it in another arithmetic")
    quality = _equal(lpips) if made is reference else _against(reference, made, lpips)
    means = means_of(quality)
    return Measured(
        means.psnr, means.ssim, made.seconds, made.steps, made.fallbacks, means.lpips, dit_seconds=made.dit_seconds
    )


def _equal(lpips: Metric | None) -> Quality:
    return Quality((math.inf,), (1.0,), None if lpips is None else (0.0,))


def _against(reference: Made, made: Made, lpips: Metric | None) -> Quality:
    metrics = [psnr, ssim, lpips] if lpips else [psnr, ssim]
    pairs = zip(reference.frames, made.frames, strict=True)
    return Quality(*zip(*([metric(*pair) for metric in metrics] for pair in pairs), strict=True))
