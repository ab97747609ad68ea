"""The caches of cache-dit: each function is a context manager, inside which the cache is on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cache_dit
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern, TaylorSeerCalibratorConfig
from cache_dit.caching.cache_contexts.calibrators import DMDCalibratorConfig

from benchmarks.rivals.bench import Bench

CALIBRATORS = {
    "none": lambda: None,
    "taylorseer": lambda: TaylorSeerCalibratorConfig(taylorseer_order=1),
    "taylorseer 2": lambda: TaylorSeerCalibratorConfig(taylorseer_order=2),
    "dmd": DMDCalibratorConfig,
}


@contextmanager
def _enabled(bench: Bench, calibrator: str, **config: Any) -> Iterator[None]:
    adapter = BlockAdapter(
        transformer=bench.transformer,
        blocks=bench.transformer.transformer_blocks,
        forward_pattern=ForwardPattern.Pattern_0,
        has_separate_cfg=True,
    )
    cache_dit.enable_cache(
        adapter,
        cache_config=DBCacheConfig(enable_separate_cfg=True, **config),
        calibrator_config=CALIBRATORS[calibrator](),
    )
    try:
        yield
    finally:
        cache_dit.disable_cache(adapter)


def dbcache(
    bench: Bench,
    residual_diff_threshold: float = 0.08,
    first_blocks: int = 8,
    calibrator: str = "none",
    warmup: int = 8,
    consecutive: int = -1,
    num_steps: int = 50,
):
    """DBCache: the first blocks run always, and decide."""
    return _enabled(
        bench,
        calibrator,
        Fn_compute_blocks=first_blocks,
        Bn_compute_blocks=0,
        residual_diff_threshold=residual_diff_threshold,
        max_warmup_steps=warmup,
        max_cached_steps=-1,
        max_continuous_cached_steps=consecutive,
        num_inference_steps=num_steps,
    )


def own_steps_mask(bench: Bench, policy: str, calibrator: str = "none", num_steps: int = 50):
    """Steps that cache-dit has by name: "fast" computes 20 of 50, "ultra" 14."""
    return steps_mask(bench, cache_dit.steps_mask(mask_policy=policy, total_steps=num_steps), calibrator)


def steps_mask(bench: Bench, steps: Sequence[bool], calibrator: str = "none"):
    """Steps fixed in advance; the first block runs on every step."""
    return _enabled(
        bench,
        calibrator,
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        num_inference_steps=len(steps),
        max_warmup_steps=0,
        max_cached_steps=-1,
        max_continuous_cached_steps=-1,
        steps_computation_mask=[int(computed) for computed in steps],
        steps_computation_policy="static",
    )
