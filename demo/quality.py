"""How far cached videos of the demo model are from uncached ones: PSNR and SSIM of frames as they leave the decoder."""

from collections.abc import Sequence

import numpy as np
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline

from demo.methods import Method
from demo.pairs import batches
from lemica.quality.metrics import Quality, means_of, psnr, ssim

AT_ONCE = 6


def quality(reference: np.ndarray, video: np.ndarray) -> dict[str, float]:
    """PSNR in dB and SSIM, means over frames; a video that equals its reference has an infinite PSNR."""
    pairs = list(zip(reference, video, strict=True))
    means = means_of(Quality(*(tuple(metric(*pair) for pair in pairs) for metric in (psnr, ssim))))
    return {"psnr": means.psnr, "ssim": means.ssim}


def measure(
    pipe: HunyuanVideo_1_5_Pipeline, pairs: Sequence[int], methods: Sequence[Method], shift: float | None = None
) -> dict[int, dict[str, dict[str, float]]]:
    """What every method costs on every pair, by the pair and the method's key; masks are of one number of steps."""
    num_steps = methods[0].mask.num_steps
    found = {}
    for batch in batches(pipe, pairs, AT_ONCE, shift):
        references, videos = batch.reference(num_steps), {method.key: batch.videos(method) for method in methods}
        for place, pair in enumerate(batch.pairs):
            found[pair.index] = {key: quality(references[place], made[place]) for key, made in videos.items()}
    return {pair: found[pair] for pair in pairs}
