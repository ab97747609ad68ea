"""What a generation run is asked to do, and what it did: switches, step masks, run report. Imports without torch.

A step mask has one boolean per denoising step: True runs the transformer blocks (a computed step), False reuses what
computed steps have left (a reused step). The part between the two marker lines is lemica/masks.py's, word for word:
masks and their files. Where a mask comes from is told by ``Mask.origin``:

released  the four masks that the LeMiCa authors published for HunyuanVideo-1.5 at 50 steps (arXiv 2511.00090)
derived   any other budget or step count, interpolated from the released ones by ``step_mask``
balanced  evenly spread by step number and noise level (``balanced_mask``)
planned   a mask file, as ``lemica plan`` writes them
"""

import hashlib
import json
import math
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import partial
from itertools import accumulate, pairwise

# ---- shared with the kit: begin
MASK_FORMAT = "lemica-mask/2"
# The scheduler knows 1000 time steps; more could not be told apart.
MAX_NUM_STEPS = 1000
# residual: what the block stack adds to its input. velocity: what the transformer returns, before guidance.
KEPT = ("residual", "velocity")
# A row of weights whose absolute values sum to more would enlarge rounding errors as much.
MAX_WEIGHT_SUM = 8

# Computed steps of the released masks, by budget. Source: the LeMiCa authors' HunyuanVideo-1.5 release, 50 steps.
RELEASED_STEPS = {
    25: (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 19, 21, 24, 28, 33, 39, 45, 48, 49),
    20: (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 18, 22, 28, 36, 44, 49),
    15: (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 25, 33, 41, 49),
    10: (0, 1, 3, 5, 9, 17, 25, 33, 41, 49),
}

# How the steps of a budget lie where no mask is given: as the authors released them, or ``balanced_mask``.
SPACINGS = ("released", "balanced")
# The share of a step's place that comes from noise levels (``balanced_mask``); the rest comes from its number.
NOISE_SHARE = 0.25
# Steps whose places differ by less are equally near: noise levels come in float32 and in float64.
TIE = 1e-6
# A forecast goes no further from the newest tensor than so many steps would take it.
FURTHEST = 4
# Half of what forecasts have missed is paid back after so long a gap.
HALF_PAID_GAP = 5

StepMask = tuple[bool, ...]
Weights = tuple[tuple[float, ...], ...]
# From computed steps and a reused one between the last two of them to weights by computed step.
Interpolation = Callable[[Sequence[int], int], dict[int, float]]


@dataclass(frozen=True)
class Target:
    """The model, the sampler and the arithmetic that a mask or an error graph belongs to; None where unknown.

    Args:
        model: the model's name, with the names of a LoRA adapter or checkpoint that changes it.
        config: a digest of the transformer's config.
        sigmas: the N + 1 noise levels of the sampler, from 1 to 0.
        dtype: the arithmetic, "bfloat16" (autocast) or "float32".
    """

    model: str | None = None
    config: str | None = None
    sigmas: tuple[float, ...] | None = None
    dtype: str | None = None

    def difference(self, run: "Target") -> str | None:
        """What `run` has that this was not made for, in words; None if all that both know agrees."""
        for name in ("model", "config", "dtype"):
            mine, its = getattr(self, name), getattr(run, name)
            if None not in (mine, its) and mine != its:
                what = "transformer/config.json of digest" if name == "config" else name
                return f"{what} {mine}, this run has {its}"
        if None not in (self.sigmas, run.sigmas) and not _close(self.sigmas, run.sigmas):
            return "other noise levels: this run has another flow shift, sampler, size or number of steps"
        return None


def _close(left: Sequence[float], right: Sequence[float]) -> bool:
    return len(left) == len(right) and all(abs(a - b) < 1e-4 for a, b in zip(left, right, strict=True))


@dataclass(frozen=True)
class Mask:
    """A step mask with all that a reused step needs.

    Args:
        steps: one boolean per step, True where the transformer blocks run; the first and the last are True.
        kept: what a computed step keeps, "residual" or "velocity".
        weights: one row per step: coefficients of the last kept tensors, oldest first. The newest of a computed step is
            its own; an empty row takes that as it is. None where they follow from `rule` and the noise levels
            (``with_weights``).
        rule: the name of the rule that gave the weights.
        origin: "released", "derived", "balanced" or "planned"; or what computes every step: "no cache" or another
            cache's name.
        made_by: how the mask was made, for people.
        target: what the mask belongs to.

    Raises ValueError, in one line, for steps, names or weights that do not fit each other.
    """

    steps: StepMask
    kept: str = "residual"
    weights: Weights | None = None
    rule: str = "hold"
    origin: str = "planned"
    made_by: str = ""
    target: Target = Target()

    def __post_init__(self):
        if not (self.steps and self.steps[0] and self.steps[-1]):
            raise ValueError("a mask must compute the first and the last step: plan it again")
        if self.kept not in KEPT:
            raise ValueError(f'"kept" must be one of {", ".join(KEPT)}; got {self.kept!r:.60}')
        if self.weights is None and self.rule not in RULES:
            raise ValueError(f"rule {self.rule!r:.60} needs weights: plan the mask again with lemica plan")
        if self.weights is not None:
            _check_weights(self.steps, self.weights)
            if self.kept != "velocity" and self.corrected_steps:
                raise ValueError('"weights" of computed steps are for "kept" velocity: plan it again')

    @property
    def num_steps(self) -> int:
        return len(self.steps)

    @property
    def budget(self) -> int:
        return sum(self.steps)

    @property
    def computed_steps(self) -> tuple[int, ...]:
        return computed_steps(self.steps)

    @property
    def corrected_steps(self) -> tuple[int, ...]:
        """The computed steps that take more than their own tensor."""
        return tuple(step for step in self.computed_steps if self.weights and self.weights[step])

    @property
    def history(self) -> int:
        """How many tensors that earlier steps kept a step reads at most."""
        if self.weights is None:
            return 1 if self.rule == "hold" else 2
        return max(len(read_before(self, step)) for step in range(self.num_steps))

    @property
    def method(self) -> str:
        """What is kept, by which rule it is used, and whether that is corrected, in words."""
        return f"{self.kept} + {self.rule}" + (", corrected" if self.corrected_steps else "")

    def with_weights(self, sigmas: Sequence[float], is_euler: bool = False) -> "Mask":
        """The mask with weights for a sampler; its own if it has any.

        Args:
            sigmas: the noise levels, one per step at least; N + 1 if `is_euler`.
            is_euler: whether the sampler is Euler's: its computed steps can pay back what a damped line has missed.
        """
        if self.weights is not None:
            return self
        rows = RULES[self.rule](self.steps, sigmas)
        if self.rule == "damped" and self.kept == "velocity" and is_euler:
            rows = corrected(rows, self.steps, sigmas, partial(line, sigmas))
        return replace(self, weights=rows)

    def without_corrections(self) -> "Mask":
        """The mask whose computed steps take their own tensor as it is, for samplers other than Euler's."""
        if not self.corrected_steps:
            return self
        return replace(
            self, weights=tuple(() if done else row for done, row in zip(self.steps, self.weights, strict=True))
        )


def computed_steps(steps: StepMask) -> tuple[int, ...]:
    return tuple(step for step, computed in enumerate(steps) if computed)


def mask_of(computed: Sequence[int], num_steps: int) -> StepMask:
    """One boolean per step of the steps that are computed."""
    chosen = set(computed)
    return tuple(step in chosen for step in range(num_steps))


def hold(steps: StepMask, _sigmas: Sequence[float] = ()) -> Weights:
    """The newest kept tensor as it is."""
    return tuple(() if computed else (1.0,) for computed in steps)


def damped(steps: StepMask, sigmas: Sequence[float]) -> Weights:
    """Halfway from the newest kept tensor to the line through the last two, drawn over the noise level.

    g steps after the newest, more than ``FURTHEST``, only the share FURTHEST / g of that. Where the weights' absolute
    values would sum to more than ``MAX_WEIGHT_SUM`` the newest tensor is held.
    """
    rows: list[tuple[float, ...]] = []
    seen: list[int] = []
    for step, computed in enumerate(steps):
        if computed:
            seen = [*seen, step][-2:]
        part = 0.0
        if len(seen) == 2:
            older, newest = (sigmas[k] for k in seen)
            # Heun's sampler takes two steps at one level: there is no line.
            slope = (sigmas[step] - newest) / (newest - older) if newest != older else 0.0
            part = slope / 2 * min(1, FURTHEST / max(step - seen[-1], 1))
            if not abs(part) + abs(1 + part) <= MAX_WEIGHT_SUM:
                part = 0.0
        rows.append(() if computed else (-part, 1 + part)[-len(seen) :])
    return tuple(rows)


RULES = {"hold": hold, "damped": damped}


def corrected(rows: Weights, steps: StepMask, sigmas: Sequence[float], interpolate: Interpolation) -> Weights:
    """The weights of a mask with those of its computed steps, by which they pay back what forecasts have missed.

    Once step j is computed, the velocities of the reused steps s between i and j need not be forecast any more, they
    can be interpolated. The forecasts w_s instead of those u_s have left the latents off by sum_s d_s (u_s - w_s),
    d_s = sigma_{s+1} - sigma_s. An Euler sampler moves latents by d_j times the velocity that it is given, so with

        v_j + theta / d_j sum_s d_s (u_s - w_s)

    instead of v_j, step j pays back the share theta of that. This is the corrector of a predictor-corrector solver,
    which costs no forward (UniPC, arXiv 2302.04867; FoCa, arXiv 2508.16211, corrects cached features so). Not all is
    paid back, because v_j comes of latents that were off, and answers to that: theta = 1 / (1 + g / 5) after a gap
    g = j - i. Half of it always, or falling faster, did as well on the demo model; all of it harms after long gaps.

    Args:
        rows: the weights of the reused steps, none for computed ones.
        steps: one boolean per step.
        sigmas: the N + 1 noise levels.
        interpolate: from the computed steps up to j and a step s between the last two to weights by computed step.

    A step whose weights would be too large is not corrected, nor one at which the sampler stands still.
    """
    result, computed = list(rows), computed_steps(steps)
    for count, (i, j) in enumerate(pairwise(computed), 2):
        if j - i > 1:
            result[j] = _correction(rows, computed[:count], sigmas, interpolate)
    return tuple(result)


def _correction(
    rows: Weights, seen: tuple[int, ...], sigmas: Sequence[float], interpolate: Interpolation
) -> tuple[float, ...]:
    """Weights of the last of the computed steps `seen`, for itself and those before it."""
    *before, j = seen
    width_of_j = sigmas[j + 1] - sigmas[j]
    if width_of_j == 0:
        return ()
    missed = dict.fromkeys(seen, 0.0)
    for step in range(before[-1] + 1, j):
        width = sigmas[step + 1] - sigmas[step]
        for k, weight in interpolate(seen, step).items():
            missed[k] += width * weight
        for k, weight in zip(before[-len(rows[step]) :], rows[step], strict=True):
            missed[k] -= width * weight
    share = 1 / (1 + (j - before[-1]) / HALF_PAID_GAP) / width_of_j
    weights = [share * missed[k] + (k == j) for k in seen]
    oldest = next(place for place, weight in enumerate(weights) if weight != 0)
    row = tuple(weights[oldest:])
    return row if len(row) > 1 and sum(map(abs, row)) <= MAX_WEIGHT_SUM else ()


def line(sigmas: Sequence[float], seen: Sequence[int], step: int) -> dict[int, float]:
    """Weights of the last two of the computed steps `seen` on the line between them, drawn over the noise level."""
    i, j = seen[-2:]
    share = (sigmas[step] - sigmas[i]) / (sigmas[j] - sigmas[i]) if sigmas[j] != sigmas[i] else 0.0
    return {i: 1 - share, j: share}


def _check_weights(steps: StepMask, weights: Weights) -> None:
    if len(weights) != len(steps):
        raise ValueError(f'"weights" must have a row for each of {len(steps)} steps, got {len(weights)}: plan it again')
    for step, (computed, row) in enumerate(zip(steps, weights, strict=True)):
        readable = range(2 if computed else 1, sum(steps[: step + 1]) + 1)
        if len(row) not in readable and not (computed and not row):
            raise ValueError(
                f'"weights" of step {step} must have a number for each kept tensor it reads: plan it again'
            )
        if not sum(map(abs, row)) <= MAX_WEIGHT_SUM:
            raise ValueError(f'"weights" of step {step} must be numbers of sum {MAX_WEIGHT_SUM} at most: plan it again')


def read_before(mask: Mask, step: int) -> set[int]:
    """The computed steps before a step whose tensors it reads."""
    seen = [computed for computed in mask.computed_steps if computed <= step]
    return set(seen[len(seen) - len(mask.weights[step]) :]) - {step}


def kept_steps(mask: Mask) -> StepMask:
    """Which steps must keep a tensor: computed ones that a later step reads."""
    read = set[int]().union(*(read_before(mask, step) for step in range(mask.num_steps)))
    return mask_of(sorted(read), mask.num_steps)


@dataclass(frozen=True)
class ReleasedMasks:
    """The masks that the authors released for a model: the computed steps of `num_steps` steps, by budget."""

    num_steps: int
    steps: dict[int, tuple[int, ...]]

    @property
    def max_gap(self) -> int:
        return max(b - a for steps in self.steps.values() for a, b in pairwise(steps))


RELEASED = ReleasedMasks(50, RELEASED_STEPS)


def is_released(budget: int, num_steps: int, released: ReleasedMasks = RELEASED) -> bool:
    """Whether ``step_mask`` of the same arguments is one of the authors' masks rather than a derived one."""
    return num_steps == released.num_steps and budget in released.steps


def step_mask(budget: int, num_steps: int, released: ReleasedMasks = RELEASED) -> StepMask:
    """The step mask with exactly `budget` computed steps of `num_steps`; step 0 and the last are always computed.

    At the released number of steps, released budgets give the released masks to the letter. Every other mask is
    derived: the released masks are read as densities of computed steps along the normalised step axis, densities of
    neighbouring budgets are mixed linearly, and the mixture is inverted at whole counts. It follows that for every
    `num_steps` no gap exceeds ceil(max(G / (S - 1), 1 / (budget - 1)) * (num_steps - 1)), with G = `released.max_gap`
    and S = `released.num_steps`: the longest released gap as a share of the trajectory, or the even spacing where the
    budget is too small for it. The masks of `budget` and `budget` + 1 interlace (no prefix and no suffix loses a
    computed step when the budget grows) where the released ones do, as HunyuanVideo-1.5's.

    Raises ValueError if `budget` is not in 2..num_steps (1 for a single step).
    """
    _check_budget(budget, num_steps)
    return mask_of(_derived_steps(budget, num_steps, released), num_steps)


def _derived_steps(budget: int, num_steps: int, released: ReleasedMasks) -> list[int]:
    """Computed steps of a mask, in exact arithmetic so that rounding cannot merge two of them."""
    if num_steps == 1:
        return [0]
    scale = Fraction(released.num_steps - 1, num_steps - 1)
    counts = list(accumulate(_density((budget - 1) * scale, scale, released), initial=Fraction(0)))
    return [math.floor(_invert(counts, k * scale) / scale + Fraction(1, 2)) for k in range(budget)]


def _density(total: Fraction, scale: Fraction, released: ReleasedMasks) -> list[Fraction]:
    """Computed steps per step on each interval of the released axis, with sum `total`.

    Mixed from two neighbouring anchors: the even spacing at the longest released gap, the released masks with that
    gap as their sparsest place, and every step computed. Below the first anchor the spacing stays even.
    """
    intervals = released.num_steps - 1
    sparsest = min(scale / released.max_gap, Fraction(1))
    if total <= sparsest * intervals:
        return [total / intervals] * intervals
    between = ([max(d, sparsest) for d in _density_of(steps)] for _, steps in sorted(released.steps.items()))
    anchors = [[sparsest] * intervals, *between, [Fraction(1)] * intervals]
    low, high = next((a, b) for a, b in pairwise(anchors) if total <= sum(b))
    share = (total - sum(low)) / (sum(high) - sum(low))
    return [(1 - share) * a + share * b for a, b in zip(low, high, strict=True)]


def _density_of(steps: Sequence[int]) -> list[Fraction]:
    return [Fraction(1, b - a) for a, b in pairwise(steps) for _ in range(b - a)]


def _invert(counts: list[Fraction], target: Fraction) -> Fraction:
    """The position at which the strictly rising, piecewise linear curve through `counts` reaches `target`."""
    right = max(1, bisect_left(counts, target))
    return right - (counts[right] - target) / (counts[right] - counts[right - 1])


def balanced_mask(budget: int, num_steps: int, sigmas: Sequence[float]) -> StepMask:
    """`budget` computed steps spread evenly from the first step to the last, by step number and by noise crossed.

    Step i lies at (1 - q) i / (N - 1) + q c_i / c_{N-1}, q = ``NOISE_SHARE``, where c_i is the noise that the steps
    before i cross, the sum of |sigma_{k+1} - sigma_k|. The k-th computed step is the nearest to k / (budget - 1) that
    is after the one before and leaves a step for each to come; of two equally near the earlier. With a flow shift the
    last steps cross the most noise, so more of them are computed.

    It needs no calibration. q was chosen on three small models, one of them with three flow shifts.

    Args:
        budget: how many steps are computed.
        num_steps: of how many.
        sigmas: the noise levels, one per step at least. Where they do not change or are not finite, the step number
            alone counts.

    Raises ValueError if `budget` is not in 2..num_steps (1 for a single step), or noise levels are missing.

    Example:
        >>> computed_steps(balanced_mask(3, 9, [1, 0.98, 0.95, 0.92, 0.88, 0.83, 0.77, 0.69, 0.5]))
        (0, 5, 8)
    """
    _check_budget(budget, num_steps)
    if len(sigmas) < num_steps:
        raise ValueError(f"{num_steps} steps need as many noise levels, got {len(sigmas)}")
    if num_steps == 1:
        return (True,)
    crossed = list(accumulate((abs(b - a) for a, b in pairwise(sigmas[:num_steps])), initial=0.0))
    if not 0 < crossed[-1] < math.inf:
        crossed = [float(step) for step in range(num_steps)]
    last, q = num_steps - 1, NOISE_SHARE
    places = [(1 - q) * step / last + q * noise / crossed[-1] for step, noise in enumerate(crossed)]
    steps = [0]
    for k in range(1, budget - 1):
        free = range(steps[-1] + 1, num_steps - (budget - 1 - k))
        # A little before, so that rounding of the levels does not decide between two that are equally near.
        wanted = k / (budget - 1) - TIE
        steps.append(min(free, key=lambda step: abs(places[step] - wanted)))
    return mask_of([*steps, last], num_steps)


def _check_budget(budget: int, num_steps: int) -> None:
    if not min(2, num_steps) <= budget <= num_steps or num_steps < 1:
        raise ValueError(f"the budget must be from 2 to the number of steps, {num_steps}; got {budget}")


def read_mask(path: str | os.PathLike) -> Mask:
    """Read a mask file, "lemica-mask/2" or "lemica-mask/1".

    Raises ValueError with one line that names the file and the fault.
    """
    try:
        # As bytes, because JSON says itself which UTF it is, with or without a byte order mark.
        with open(path, "rb") as file:
            content = json.load(file)
    except OSError as error:
        raise ValueError(f"cannot read the mask file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the mask file {path} is not JSON: write one with lemica plan") from error
    try:
        return _mask_from(content)
    except ValueError as error:
        raise ValueError(f"the mask file {path} cannot be used: {error}") from error


def _mask_from(content) -> Mask:
    readers = {MASK_FORMAT: _read_2, "lemica-mask/1": _read_1}
    found = content.get("format") if isinstance(content, dict) else None
    if found not in list(readers):
        raise ValueError(f'its "format" is not "{MASK_FORMAT}": write one with lemica plan')
    return readers[found](content, _steps_from(content))


def _steps_from(content: dict) -> StepMask:
    num_steps, computed = content.get("num_steps"), content.get("computed_steps")
    if type(num_steps) is not int or not 1 <= num_steps <= MAX_NUM_STEPS:
        raise ValueError(f'"num_steps" must be a whole number from 1 to {MAX_NUM_STEPS}')
    if not isinstance(computed, list) or any(type(step) is not int for step in computed):
        raise ValueError('"computed_steps" must be a list of whole numbers')
    chosen = set(computed)
    if computed != sorted(chosen) or not chosen <= set(range(num_steps)):
        raise ValueError(f'"computed_steps" must rise from 0 to {num_steps - 1} without repeats')
    if computed[:1] != [0] or computed[-1:] != [num_steps - 1]:
        raise ValueError(f'"computed_steps" must begin with 0 and end with {num_steps - 1}')
    if content.get("budget", len(computed)) != len(computed):
        raise ValueError(f'"budget" says {content["budget"]!r} but {len(computed)} steps are computed')
    return mask_of(computed, num_steps)


def _read_2(content: dict, steps: StepMask) -> Mask:
    texts = {name: str(content.get(name, "")) for name in ("kept", "rule", "made_by")}
    return Mask(steps, **texts, weights=_weights_from(content), target=target_from(content.get("target", {})))


def _read_1(content: dict, steps: StepMask) -> Mask:
    """Version 1 names a rule, and has weights for the rule "fitted" only; without names it means residual + hold."""
    names = {"hold": "hold", "damped-sigma": "damped", "fitted": "fitted"}
    forecast = content.get("forecast", "hold")
    if forecast not in list(names):
        raise ValueError(f"forecast {forecast!r:.60} has no weights in it: plan the mask again with lemica plan")
    model, reuse = content.get("model"), content.get("reuse", "residual")
    if reuse not in KEPT:
        raise ValueError(
            f"it reuses {reuse!r:.60}, which is not supported any more: plan the mask again with lemica plan"
        )
    return Mask(
        steps,
        kept=reuse,
        weights=_weights_from(content) if forecast == "fitted" else None,
        rule=names[forecast],
        made_by=str(content.get("origin", "")),
        target=Target(None if model is None else str(model)),
    )


def _weights_from(content: dict) -> Weights:
    try:
        return tuple(tuple(map(float, row)) for row in content["weights"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError('"weights" must be a list with a list of numbers per step: plan it again') from error


def target_from(content) -> Target:
    """A Target of its JSON object; raises ValueError for one that is not as ``Target`` says."""
    known = {item.name for item in fields(Target)}
    values = {name: value for name, value in content.items() if name in known} if isinstance(content, dict) else None
    try:
        sigmas = None if values.get("sigmas") is None else tuple(map(float, values["sigmas"]))
        texts = {name: value and str(value) for name, value in values.items() if name != "sigmas"}
        return Target(**texts, sigmas=sigmas)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError('"target" must hold "model", "config", "sigmas" and "dtype"') from error


# ---- shared with the kit: end

NAMED_BUDGETS = {"slow": 25, "medium": 20, "fast": 15, "ultra": 10}
DEFAULT_BUDGET = 25


@dataclass(kw_only=True)
class InferState:
    """Inference switches of one run; the fields before ``lemica_step`` are upstream's, with upstream's defaults.

    `lemica_mask` is a mask of one's own, and brings what is kept and the weights. Without it `lemica_step` names a
    budget (None: ``default_budget``) and `lemica_spacing` one of ``SPACINGS``; `lemica_reuse` is what is kept and
    `lemica_forecast` one of ``RULES``, by default residual and hold with released steps, velocity and damped with
    balanced ones. `force_mask` uses a mask that belongs to another model, sampler or arithmetic.
    """

    enable_sageattn: bool = False
    sage_blocks_range: list[int] | None = None
    enable_torch_compile: bool = False

    enable_cache: bool = False
    cache_type: str = "deepcache"
    total_steps: int = 50
    cache_start_step: int = 11
    cache_step_interval: int = 4
    cache_end_step: int = 45
    no_cache_block_id: list[int] | None = None

    use_fp8_gemm: bool = False
    quant_type: str = "fp8-per-token-sgl"
    include_patterns: list[str] = field(default_factory=lambda: ["double_blocks"])

    lemica_step: int | None = None
    lemica_mask: Mask | None = None
    lemica_spacing: str = "released"
    lemica_reuse: str | None = None
    lemica_forecast: str | None = None
    force_mask: bool = False

    @property
    def uses_lemica(self) -> bool:
        return self.enable_cache and self.cache_type == "lemica"


_infer_state: InferState | None = None


def parse_range(value: str | None) -> list[int]:
    """Expand "0-3,7" to [0, 1, 2, 3, 7], sorted and without duplicates; an empty value gives an empty list."""
    indices: set[int] = set()
    for part in filter(None, (piece.strip() for piece in (value or "").split(","))):
        match = re.fullmatch(r"(\d{1,4})(?:\s*-\s*(\d{1,4}))?", part)
        if match is None:
            raise ValueError(f"blocks must be given like 0-5,9; got {value!r}")
        indices |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(indices)


def parse_patterns(value: str | list[str]) -> list[str]:
    """Split "double_blocks, final" into its patterns; a list passes through."""
    return [pattern.strip() for pattern in value.split(",") if pattern.strip()] if isinstance(value, str) else value


def parse_budget(value: str | int) -> int:
    """Turn "25" or "slow|medium|fast|ultra" into a budget; raises ValueError with what to type instead."""
    text = str(value).strip()
    if text in NAMED_BUDGETS:
        return NAMED_BUDGETS[text]
    if re.fullmatch(r"[0-9]{1,4}", text) and int(text) >= 2:
        return int(text)
    names = "|".join(NAMED_BUDGETS)
    raise ValueError(f"lemica_step must be a whole number from 2 to the number of steps, or {names}; got {value!r}")


def default_budget() -> int:
    """The budget when none is given: the environment variable LEMICA_STEP unless it is empty, else 25."""
    try:
        return parse_budget(os.environ.get("LEMICA_STEP") or DEFAULT_BUDGET)
    except ValueError as error:
        raise ValueError(f"the environment variable LEMICA_STEP: {error}") from error


# How an argument becomes a field, where it is not taken as it is.
_ARGUMENT_OF_FIELD = {"enable_sageattn": "use_sageattn"}
_FIELD_PARSERS = {
    "sage_blocks_range": parse_range,
    "no_cache_block_id": parse_range,
    "include_patterns": parse_patterns,
    "lemica_step": parse_budget,
    "lemica_mask": lambda mask: mask if isinstance(mask, Mask) else read_mask(mask),
}


def initialize_infer_state(args) -> InferState:
    """Build the run's InferState from parsed arguments and make it what ``get_infer_state`` returns.

    Arguments that are absent or None keep their field's default. ``lemica_mask`` may be the path of a mask file.
    Raises ValueError for a budget or mask file that cannot be used, and for a mask with a rule beside it.
    """
    global _infer_state
    values = {}
    for name in (item.name for item in fields(InferState)):
        value = getattr(args, _ARGUMENT_OF_FIELD.get(name, name), None)
        if value is not None:
            values[name] = _FIELD_PARSERS.get(name, lambda value: value)(value)
    rule_flags = [f"--{name}" for name in ("lemica_spacing", "lemica_reuse", "lemica_forecast") if name in values]
    if "lemica_mask" in values and rule_flags:
        raise ValueError(f"the mask says what is reused and how: leave out {' and '.join(rule_flags)}")
    _infer_state = InferState(**values)
    return _infer_state


def get_infer_state() -> InferState | None:
    """The state made by the last ``initialize_infer_state``, or None before it."""
    return _infer_state


def transformer_version(
    resolution: str, task: str, cfg_distilled: bool = False, step_distilled: bool = False, sparse_attn: bool = False
) -> str:
    """The model's name, as its folder under transformer/; sparse attention exists for CFG-distilled models only."""
    version = f"{resolution}_{task}"
    if step_distilled:
        return f"{version}_step_distilled"
    distilled = "_distilled" if cfg_distilled or sparse_attn else ""
    return version + distilled + ("_sparse" if sparse_attn else "")


def changed_model_name(version: str, *changes: str | None) -> str:
    """A model's name: its version, and the names of the checkpoint and the LoRA adapter that change it."""
    return " + ".join([version, *(os.path.basename(os.path.normpath(path)) for path in changes if path)])


def config_digest(folder: str) -> str | None:
    """A digest of a transformer's config.json, None if there is none: 16 hex digits that say which model it is."""
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
    except FileNotFoundError:
        return None
    # Keys with an underscore say by what the file was written.
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def resolve_mask(state: InferState | None, run: Target) -> Mask:
    """The mask, with its weights, of a run with the noise levels that `run` names; all is computed unless LeMiCa is on.

    Raises ValueError if the state's mask or budget does not fit the run; ``force_mask`` lets a mask pass that has the
    right number of steps.
    """
    num_steps = len(run.sigmas) - 1
    if state is None or not state.uses_lemica:
        # Upstream's caches decide within the transformer, which the loop enters at every step.
        origin = state.cache_type if state and state.enable_cache else "no cache"
        return Mask((True,) * num_steps, weights=((),) * num_steps, origin=origin)
    if state.lemica_mask is not None:
        _refuse_unfit(state.lemica_mask, run, state.force_mask)
        return state.lemica_mask.with_weights(run.sigmas, is_euler=True)
    budget = _budget(state.lemica_step, num_steps)
    return _mask_of_budget(state, budget, run.sigmas).with_weights(run.sigmas, is_euler=True)


def _mask_of_budget(state: InferState, budget: int, sigmas: Sequence[float]) -> Mask:
    """The mask without weights that the state's budget and spacing stand for with N + 1 noise levels."""
    num_steps = len(sigmas) - 1
    if state.lemica_spacing not in SPACINGS:
        raise ValueError(f"lemica_spacing must be one of {', '.join(SPACINGS)}; got {state.lemica_spacing!r:.60}")
    if state.lemica_spacing == "balanced":
        steps, kept, rule, origin = balanced_mask(budget, num_steps, sigmas), "velocity", "damped", "balanced"
    else:
        steps, kept, rule = step_mask(budget, num_steps), "residual", "hold"
        origin = "released" if is_released(budget, num_steps) else "derived"
    return Mask(steps, state.lemica_reuse or kept, rule=state.lemica_forecast or rule, origin=origin)


def _budget(asked: int | None, num_steps: int) -> int:
    """The budget that was asked for, else the default; the refusal says which flag to type."""
    if num_steps < 2:
        raise ValueError("one step leaves nothing to reuse: leave out --enable_cache true")
    if asked is None and (default := default_budget()) > num_steps:
        raise ValueError(
            f"the default budget {default} is above the {num_steps} steps: type --lemica_step B, B from 2 (the default "
            "is $LEMICA_STEP, else 25)"
        )
    if asked is not None and not 2 <= asked <= num_steps:
        raise ValueError(f"--lemica_step must be from 2 to the number of steps, {num_steps}; got {asked}")
    return default_budget() if asked is None else asked


def _refuse_unfit(mask: Mask, run: Target, force: bool) -> None:
    num_steps = len(run.sigmas) - 1
    if mask.num_steps != num_steps:
        raise ValueError(
            f"the mask is for {mask.num_steps} steps but the sampler runs {num_steps}: "
            f"pass --num_inference_steps {mask.num_steps} or plan a mask for {num_steps} steps"
        )
    if not force and (difference := mask.target.difference(run)):
        raise ValueError(
            f"the mask belongs to {difference}: plan one for this run, or type --force_mask true to use it all the same"
        )


@dataclass
class RunReport:
    """What one call did and how long it took: computed steps (0-based), seconds by step and by stage.

    `seed` and `prompt` are those that were used: drawn and rewritten, if that was asked for. `request` is all that
    decided the picture but the steps: runs that differ in it may not be compared. `reuse` is what was kept
    and `forecast` the rule that gave the weights, None where every step was computed. Stages sum to the whole; with
    offloading "offload moves" is one of them, the time to bring whole models to the device and back. What upstream's
    super-resolution pipeline moves counts as super-resolution, and blocks that are streamed as their step.
    """

    seed: int
    prompt: str | list[str]
    request: dict[str, object]
    num_steps: int
    computed_steps: list[int]
    mask_origin: str
    reuse: str | None
    forecast: str | None
    step_seconds: list[float]
    stage_seconds: dict[str, float]

    @property
    def dit_seconds(self) -> float:
        return sum(self.step_seconds)

    @property
    def computed_seconds(self) -> float:
        return sum(self.step_seconds[step] for step in self.computed_steps)

    @property
    def reused_seconds(self) -> float:
        return sum(seconds for step, seconds in enumerate(self.step_seconds) if step not in self.computed_steps)

    @property
    def total_seconds(self) -> float:
        return sum(self.stage_seconds.values())
