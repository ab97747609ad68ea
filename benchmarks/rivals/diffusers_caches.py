"""The caches of diffusers: each function is a context manager, inside which the bench's transformer has the cache on.

Their decisions are those of the package. HunyuanVideo-1.5's block is not in its registry, so it is registered here, as
its documentation says for new models. Defaults are those of its configs, but for TaylorSeer's mode and dtype.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15TransformerBlock
from torch import Tensor

from benchmarks.rivals.bench import Bench

LATENT_CHANNELS = 32

TransformerBlockRegistry.register(
    model_class=HunyuanVideo15TransformerBlock,
    metadata=TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1),
)


@contextmanager
def _enabled(bench: Bench, config: Any) -> Iterator[None]:
    bench.transformer.enable_cache(config)
    try:
        yield
    finally:
        bench.transformer.disable_cache()


def first_block_cache(bench: Bench, threshold: float = 0.05):
    """FirstBlockCache: the first block runs always, and decides."""
    return _enabled(bench, FirstBlockCacheConfig(threshold))


def mag_cache(
    bench: Bench,
    ratios: Sequence[float],
    threshold: float = 0.06,
    max_skip_steps: int = 3,
    retention_ratio: float = 0.2,
):
    """MagCache, with magnitude ratios that were calibrated (``benchmarks.rivals.fitted``)."""
    config = MagCacheConfig(
        threshold=threshold,
        max_skip_steps=max_skip_steps,
        retention_ratio=retention_ratio,
        num_inference_steps=len(ratios),
        mag_ratios=list(ratios),
    )
    return _enabled(bench, config)


def sea_cache(
    bench: Bench,
    threshold: float = 0.25,
    residual_order: int = 1,
    max_consecutive_cached: int = 2,
    cache_end_steps: int = 1,
):
    """SeaCache: a spectrally filtered change of the latents decides."""
    config = SeaCacheConfig(
        threshold=threshold,
        residual_order=residual_order,
        max_consecutive_cached=max_consecutive_cached,
        cache_end_steps=cache_end_steps,
        raw_vision_callback=_latents,
    )
    return _enabled(bench, config)


def _latents(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """What SeaCache looks at: the noisy latents (C, T, H, W) among the transformer's input channels."""
    return list(kwargs["hidden_states"][:, :LATENT_CHANNELS])


def taylorseer(
    bench: Bench,
    cache_interval: int = 5,
    max_order: int = 1,
    disable_cache_before_step: int = 3,
    disable_cache_after_step: int | None = None,
):
    """TaylorSeer in lite mode: what leaves the last layer is extrapolated, at regular intervals, kept in float32."""
    config = TaylorSeerCacheConfig(
        cache_interval=cache_interval,
        max_order=max_order,
        disable_cache_before_step=disable_cache_before_step,
        disable_cache_after_step=disable_cache_after_step,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )
    return _enabled(bench, config)


def computed_by_taylorseer(num_steps: int, interval: int, before: int, after: int | None) -> int:
    """How many steps it computes, by its rule."""
    last = num_steps if after is None else after
    return sum(step < before or (step - before - 1) % interval == 0 or step >= last for step in range(num_steps))
