"""All methods by name: what puts one on the bench for one run, with its knobs.

    >>> with METHODS["SeaCache"](bench, fitted, threshold=0.3):
    ...     run = bench.run(request, 50)

`budget` is a number of computed steps of 50. Knobs that are left out are the authors' defaults.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from benchmarks.rivals import diffusers_caches
from benchmarks.rivals.bench import Bench
from benchmarks.rivals.fitted import NUM_STEPS, Fitted
from benchmarks.rivals.papers import dpcache, l2p, mean_cache, spectrum, teacache
from lemica.masks import Mask, balanced_mask, step_mask, uniform_mask
from lemica.planning.plan import plan
from lemica.reuse.loops import reusing

# Why cache-dit cannot be imported, None where it can.
cache_dit_missing: ImportError | None = None
try:
    from benchmarks.rivals import cache_dit_caches
except ImportError as error:
    cache_dit_missing = error

Method = Callable[..., AbstractContextManager[Any]]
# Sampling with so many steps, computed all: the runner gives them to the loop.
FEWER_STEPS = "fewer steps"
# Every step computed, of a noise that is moved a little: the runner moves it.
FLOOR = "noise floor"


def uncached(bench: Bench, fitted: Fitted, **_: Any) -> AbstractContextManager[None]:
    """Nothing is reused."""
    return nullcontext()


# ---- LeMiCa


def with_mask(bench: Bench, mask: Mask) -> AbstractContextManager[Any]:
    """LeMiCa with a mask."""
    return reusing([bench.transformer], bench.scheduler, mask)


def planned(bench: Bench, fitted: Fitted, budget: int, forecast: str = "fitted") -> AbstractContextManager[Any]:
    """A mask that was planned for a forecast."""
    return with_mask(bench, plan(fitted.graph, budget, forecast))


def balanced(bench: Bench, fitted: Fitted, budget: int) -> AbstractContextManager[Any]:
    """What takes no calibration: balanced steps, damped and corrected."""
    sigmas = list(fitted.graph.moments.sigmas)
    mask = Mask(balanced_mask(budget, NUM_STEPS, sigmas), "velocity", rule="damped")
    return with_mask(bench, mask.with_weights(sigmas, is_euler=True))


# ---- packages


def mag_cache(bench: Bench, fitted: Fitted, **knobs: Any) -> AbstractContextManager[None]:
    """With calibrated ratios."""
    return diffusers_caches.mag_cache(bench, fitted.mag_ratios, **knobs)


def cache_dit_mask(
    bench: Bench, fitted: Fitted, budget: int, steps: str, calibrator: str = "none"
) -> AbstractContextManager[None]:
    """cache-dit's steps mask with LeMiCa's released steps, or those planned for what its forecast is nearest to."""
    forecast = "hold" if calibrator == "none" else "taylor-step"
    chosen = plan(fitted.graph, budget, forecast).steps if steps == "planned" else step_mask(budget, NUM_STEPS)
    return cache_dit_caches.steps_mask(bench, chosen, calibrator)


def _needing_no_fit(method: Method) -> Method:
    return lambda bench, fitted, **knobs: method(bench, **knobs)


# ---- papers


def teacache_fitted(bench: Bench, fitted: Fitted, threshold: float, rescaled: bool = True):
    """With the fitted polynomial, or without one."""
    polynomial = fitted.teacache_polynomial if rescaled else teacache.IDENTITY
    return teacache.teacache(bench, threshold, polynomial, NUM_STEPS)


def steps_of(fitted: Fitted, budget: int, steps: str, plan_for: str) -> Sequence[bool]:
    """Uniform steps, or those that LeMiCa plans for one of its own forecasts."""
    return plan(fitted.graph, budget, plan_for).steps if steps == "planned" else uniform_mask(budget, NUM_STEPS)


def l2p_on(bench: Bench, fitted: Fitted, budget: int, steps: str, plan_for: str = "fitted", kept_only: bool = False):
    """Steps that are given."""
    steps = steps_of(fitted, budget, steps, plan_for)
    return l2p.l2p(bench, steps, fitted.l2p_kept_only(steps) if kept_only else fitted.l2p_weights)


def spectrum_on(bench: Bench, fitted: Fitted, budget: int, steps: str, plan_for: str = "fitted", **knobs: Any):
    """Steps that are given."""
    return spectrum.spectrum(bench, steps_of(fitted, budget, steps, plan_for), **knobs)


def spectrum_own(bench: Bench, fitted: Fitted, alpha: float = 0.75, **knobs: Any):
    """Its authors' steps."""
    return spectrum.spectrum(bench, spectrum.own_steps(alpha, NUM_STEPS), **knobs)


def mean_cache_planned(bench: Bench, fitted: Fitted, budget: int, gamma: float = 4.0):
    """Its plan."""
    return mean_cache.mean_cache(bench, mean_cache.plan(fitted.mean_cache_costs, NUM_STEPS, budget, gamma))


def dpcache_planned(bench: Bench, fitted: Fitted, budget: int, order: int = 2, ends: bool = False):
    """Its plan."""
    return dpcache.dpcache(bench, dpcache.plan(fitted.dpcache_costs(order), budget, ends), order)


METHODS: dict[str, Method] = {
    FLOOR: uncached,
    FEWER_STEPS: uncached,
    "LeMiCa, planned": planned,
    "LeMiCa, balanced": balanced,
    "FirstBlockCache": _needing_no_fit(diffusers_caches.first_block_cache),
    "MagCache": mag_cache,
    "SeaCache": _needing_no_fit(diffusers_caches.sea_cache),
    "TaylorSeer": _needing_no_fit(diffusers_caches.taylorseer),
    "TeaCache": teacache_fitted,
    "L2P": l2p_on,
    "Spectrum": spectrum_on,
    "Spectrum, its own steps": spectrum_own,
    "MeanCache": mean_cache_planned,
    "DPCache": dpcache_planned,
}
if cache_dit_missing is None:
    METHODS |= {
        "DBCache": _needing_no_fit(cache_dit_caches.dbcache),
        "cache-dit's steps mask": cache_dit_mask,
        "cache-dit's steps mask, its own": _needing_no_fit(cache_dit_caches.own_steps_mask),
    }
