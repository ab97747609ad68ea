"""What a generation run shall do, and what it did: switches, step masks, reuse rules, report. Imports without torch.

A step mask has one boolean per denoising step: True runs the transformer blocks (a computed step), False reuses what
computed steps have left (a reused step). A reuse rule says what that is and how it is carried to a reused step
(``ReuseRule``). Masks come from three places, told apart by ``ResolvedMask.origin``:

released  the four masks that the LeMiCa authors published for HunyuanVideo-1.5 at 50 steps (arXiv 2511.00090)
derived   any other budget or step count, interpolated from the released ones by ``step_mask``
planned   a mask file written by ``python -m lemica plan``
"""

import json
import math
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import NamedTuple

# Computed steps of the released masks, by budget. Source: the LeMiCa authors' HunyuanVideo-1.5 release, 50 steps.
RELEASED_NUM_STEPS = 50
RELEASED_STEPS = {
    25: (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 19, 21, 24, 28, 33, 39, 45, 48, 49),
    20: (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 18, 22, 28, 36, 44, 49),
    15: (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 25, 33, 41, 49),
    10: (0, 1, 3, 5, 9, 17, 25, 33, 41, 49),
}
RELEASED_MAX_GAP = 8
NAMED_BUDGETS = {"slow": 25, "medium": 20, "fast": 15, "ultra": 10}
DEFAULT_BUDGET = 25

MASK_FORMAT = "lemica-mask/1"
# The scheduler knows 1000 time steps; more could not be told apart.
MAX_NUM_STEPS = 1000
# What can be reused, and how many tensors of it may be kept: three of the size of a residual. A velocity has as many
# numbers a token as the latents have channels (32), not as the transformer is wide (2048), so that one more is nothing.
MOST_KEPT = {"residual": 3, "output": 3, "velocity": 4}

StepMask = tuple[bool, ...]


@dataclass(frozen=True)
class ReuseRule:
    """What a reused step reuses, and how it is carried there from the computed steps before it.

    reuse: "residual", what the block stack adds to its input; "output", what it gives to the final layer; "velocity",
        what the transformer gives, before classifier-free guidance.
    forecast: a name in FORECASTS; "hold" takes the last computed step's tensor as it is.
    weights: those of the forecast "fitted", one tuple a step as in ``reuse_weights``, which belong to one mask. Two
        rules with the same names are the same rule.

    Raises ValueError, in one line, for unknown names and for a pair that would keep too many tensors.
    """

    reuse: str = "residual"
    forecast: str = "hold"
    weights: tuple[tuple[float, ...], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self):
        for name, known in (("reuse", MOST_KEPT), ("forecast", FORECASTS)):
            if getattr(self, name) not in list(known):
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r:.60}")
        if self.history > MOST_KEPT[self.reuse]:
            raise ValueError(
                f"forecast {self.forecast} keeps {self.history} tensors, which is too much memory for the {self.reuse}:"
                f" choose reuse velocity, or a forecast that keeps at most {MOST_KEPT[self.reuse]}"
            )

    @property
    def history(self) -> int:
        """How many tensors the forecast keeps at most."""
        return max(map(len, self.weights), default=FORECASTS[self.forecast].keeps)

    def __str__(self) -> str:
        return f"{self.reuse} + {self.forecast}"


class ResolvedMask(NamedTuple):
    """A step mask and where it comes from."""

    steps: StepMask
    origin: str


class PlannedMask(NamedTuple):
    """What a mask file holds: a step mask, the rule that it was planned for, and the model, None if it names none."""

    steps: StepMask
    rule: ReuseRule
    model: str | None


@dataclass(kw_only=True)
class InferState:
    """Inference switches of one run; the fields before ``lemica_step`` are upstream's, with upstream's defaults.

    `lemica_mask_rule` and `lemica_mask_model` are the rule and the model that the mask was planned for, None where no
    mask file says so; the run obeys `lemica_reuse` and `lemica_forecast`.
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
    lemica_mask: StepMask | None = None
    lemica_mask_rule: ReuseRule | None = None
    lemica_mask_model: str | None = None
    lemica_reuse: str = "residual"
    lemica_forecast: str = "hold"
    lemica_weights: tuple[tuple[float, ...], ...] = ()

    @property
    def uses_lemica(self) -> bool:
        return self.enable_cache and self.cache_type == "lemica"

    @property
    def rule(self) -> ReuseRule:
        """What this run reuses and how; raises ValueError if its names are unknown."""
        return ReuseRule(self.lemica_reuse, self.lemica_forecast, self.lemica_weights)


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


def default_budget() -> str | int:
    """The budget when none is given: the environment variable LEMICA_STEP unless it is empty, else 25."""
    return os.environ.get("LEMICA_STEP") or DEFAULT_BUDGET


# How an argument becomes a field, where it is not taken as it is.
_ARGUMENT_OF_FIELD = {"enable_sageattn": "use_sageattn"}
_FIELD_PARSERS = {
    "sage_blocks_range": parse_range,
    "no_cache_block_id": parse_range,
    "include_patterns": parse_patterns,
    "lemica_step": lambda value: None if value is None else parse_budget(value),
}
# Fields that depend on each other, and are set together.
_RULE_FIELDS = ("lemica_reuse", "lemica_forecast", "lemica_weights")
_MASK_FIELDS = ("lemica_mask", "lemica_mask_rule", "lemica_mask_model")


def initialize_infer_state(args) -> InferState:
    """Build the run's InferState from parsed arguments and make it what ``get_infer_state`` returns.

    Arguments that are absent keep their field's default. ``lemica_mask`` may be the path of a mask file; unless
    ``lemica_reuse`` and ``lemica_forecast`` say otherwise, its rule is used.
    Raises ValueError for a budget, rule or mask file that cannot be used, and for a mask planned for another rule than
    the one asked for, unless ``force_mask`` is true.
    """
    global _infer_state
    values = {}
    for name in (item.name for item in fields(InferState) if item.name not in _MASK_FIELDS + _RULE_FIELDS):
        argument = _ARGUMENT_OF_FIELD.get(name, name)
        if hasattr(args, argument):
            parse = _FIELD_PARSERS.get(name)
            values[name] = parse(getattr(args, argument)) if parse else getattr(args, argument)
    _infer_state = InferState(**values, **_mask_and_rule(args))
    return _infer_state


def _mask_and_rule(args) -> dict:
    mask = getattr(args, "lemica_mask", None)
    planned = read_mask(mask) if isinstance(mask, str) else (mask and tuple(map(bool, mask)), None, None)
    asked = (getattr(args, name, None) for name in ("lemica_reuse", "lemica_forecast"))
    rule = chosen_rule(*asked, planned[1], force=getattr(args, "force_mask", False))
    values = (*planned, rule.reuse, rule.forecast, rule.weights)
    return dict(zip(_MASK_FIELDS + _RULE_FIELDS, values, strict=True))


def chosen_rule(
    reuse: str | None, forecast: str | None, planned: ReuseRule | None = None, force: bool = False
) -> ReuseRule:
    """The rule of a run: what is asked for, else what the mask was `planned` for, else residual + hold.

    Raises ValueError, saying what to type, if that is not the mask's own rule; not with `force`. The forecast "fitted"
    is refused without a mask that brings its weights.
    """
    own = planned or ReuseRule()
    names = (reuse or own.reuse, forecast or own.forecast)
    if names == (own.reuse, own.forecast):
        return own
    if names[1] == FITTED == own.forecast:
        raise ValueError(
            f"the mask's weights are for the {own.reuse}: leave out --lemica_reuse, or choose another "
            "--lemica_forecast, with --force_mask true"
        )
    if names[1] == FITTED:
        raise ValueError(
            f"forecast {FITTED} takes its weights from a mask file: type --lemica_mask MASK, written by "
            f"python -m lemica plan GRAPH --forecast {FITTED}"
        )
    rule = ReuseRule(*names)
    if planned and not force:
        raise ValueError(
            f"the mask was planned for {planned}, not for {rule}: type --lemica_reuse {planned.reuse} "
            f"--lemica_forecast {planned.forecast}, or --force_mask true to use it all the same"
        )
    return rule


def get_infer_state() -> InferState | None:
    """The state made by the last ``initialize_infer_state``, or None before it."""
    return _infer_state


def is_released(budget: int, num_steps: int) -> bool:
    """Whether ``step_mask(budget, num_steps)`` is one of the authors' masks rather than a derived one."""
    return num_steps == RELEASED_NUM_STEPS and budget in RELEASED_STEPS


def step_mask(budget: int, num_steps: int) -> StepMask:
    """The step mask with exactly `budget` computed steps of `num_steps`; step 0 and the last are always computed.

    At 50 steps, budgets 25, 20, 15 and 10 give the released masks to the letter. Every other mask is derived: the
    released masks are read as densities of computed steps along the normalised step axis, densities of neighbouring
    budgets are mixed linearly, and the mixture is inverted at whole counts. It follows that for every `num_steps`
    the masks of `budget` and `budget` + 1 interlace (no prefix and no suffix loses a computed step when the budget
    grows) and that no gap exceeds ceil(max(8 / 49, 1 / (budget - 1)) * (num_steps - 1)): the longest released gap
    as a share of the trajectory, or the even spacing where the budget is too small for it.

    Raises ValueError if `budget` is not in 2..num_steps (1 for a single step).
    """
    if num_steps < 1 or not min(2, num_steps) <= budget <= num_steps:
        raise ValueError(f"lemica_step must be from 2 to the number of steps, {num_steps}; got {budget}")
    computed = set(_derived_steps(budget, num_steps))
    return tuple(step in computed for step in range(num_steps))


def _derived_steps(budget: int, num_steps: int) -> list[int]:
    """Computed steps of a mask, in exact arithmetic so that rounding cannot merge two of them."""
    if num_steps == 1:
        return [0]
    scale = Fraction(RELEASED_NUM_STEPS - 1, num_steps - 1)
    counts = list(accumulate(_density((budget - 1) * scale, scale), initial=Fraction(0)))
    return [math.floor(_invert(counts, k * scale) / scale + Fraction(1, 2)) for k in range(budget)]


def _density(total: Fraction, scale: Fraction) -> list[Fraction]:
    """Computed steps per step on each of the 49 intervals of the released axis, with sum `total`.

    Mixed from two neighbouring anchors: the even spacing at the longest released gap, the released masks with that
    gap as their sparsest place, and every step computed. Below the first anchor the spacing stays even.
    """
    intervals = RELEASED_NUM_STEPS - 1
    sparsest = min(scale / RELEASED_MAX_GAP, Fraction(1))
    if total <= sparsest * intervals:
        return [total / intervals] * intervals
    released = ([max(d, sparsest) for d in _released_density(budget)] for budget in sorted(RELEASED_STEPS))
    anchors = [[sparsest] * intervals, *released, [Fraction(1)] * intervals]
    low, high = next((a, b) for a, b in pairwise(anchors) if total <= sum(b))
    weight = (total - sum(low)) / (sum(high) - sum(low))
    return [(1 - weight) * a + weight * b for a, b in zip(low, high, strict=True)]


def _released_density(budget: int) -> list[Fraction]:
    return [Fraction(1, b - a) for a, b in pairwise(RELEASED_STEPS[budget]) for _ in range(b - a)]


def _invert(counts: list[Fraction], target: Fraction) -> Fraction:
    """The position at which the strictly rising, piecewise linear curve through `counts` reaches `target`."""
    right = max(1, bisect_left(counts, target))
    return right - (counts[right] - target) / (counts[right] - counts[right - 1])


def resolve_mask(state: InferState | None, num_steps: int) -> ResolvedMask:
    """The mask for the `num_steps` that the sampler really runs; every step is computed unless LeMiCa is on.

    Raises ValueError if the state's mask or budget does not fit `num_steps`.
    """
    if state is None or not state.uses_lemica:
        # Upstream's caches decide within the transformer, which the loop enters at every step.
        return ResolvedMask((True,) * num_steps, state.cache_type if state and state.enable_cache else "no cache")
    if state.lemica_mask is not None:
        return ResolvedMask(_fitting(state.lemica_mask, num_steps), "planned")
    budget = parse_budget(default_budget() if state.lemica_step is None else state.lemica_step)
    origin = "released" if is_released(budget, num_steps) else "derived"
    return ResolvedMask(step_mask(budget, num_steps), origin)


def _fitting(mask: StepMask, num_steps: int) -> StepMask:
    if len(mask) != num_steps:
        raise ValueError(
            f"the mask is for {len(mask)} steps but the sampler runs {num_steps}: "
            f"pass --num_inference_steps {len(mask)} or plan a mask for {num_steps} steps"
        )
    if not (mask[0] and mask[-1]):
        raise ValueError("the mask must compute the first and the last step: plan it again")
    return mask


def read_mask(path: str) -> PlannedMask:
    """Read a mask file (format lemica-mask/1); one that names no rule was planned for residual + hold.

    Raises ValueError with one line that names the file and the fault.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise ValueError(f"cannot read the mask file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the mask file {path} is not JSON: write one with python -m lemica plan") from error
    try:
        mask = _mask_of(content)
        model = content.get("model")
        return PlannedMask(mask, _rule_of(content, mask), None if model is None else str(model))
    except ValueError as error:
        raise ValueError(f"the mask file {path} cannot be used: {error}") from error


def _mask_of(content) -> StepMask:
    if not isinstance(content, dict) or content.get("format") != MASK_FORMAT:
        raise ValueError(f'its "format" is not "{MASK_FORMAT}": write one with python -m lemica plan')
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
    return tuple(step in chosen for step in range(num_steps))


def _rule_of(content: dict, mask: StepMask) -> ReuseRule:
    rule = ReuseRule(**{name: content[name] for name in ("reuse", "forecast") if name in content})
    return replace(rule, weights=_weights_of(content, mask, rule)) if rule.forecast == FITTED else rule


def _weights_of(content: dict, mask: StepMask, rule: ReuseRule) -> tuple[tuple[float, ...], ...]:
    try:
        weights = tuple(tuple(map(float, row)) for row in content.get("weights", ()))
    except (TypeError, ValueError, OverflowError):
        weights = ()
    kept = min(rule.history, max(map(len, weights), default=0))
    wanted = [0 if computed else min(kept, sum(mask[:step])) for step, computed in enumerate(mask)]
    fits = kept > 0 or all(mask)
    if not fits or [len(row) for row in weights] != wanted:
        raise ValueError(f'"weights" must hold a number for each tensor that forecast {FITTED} reads: plan it again')
    if not all(abs(sum(row) - 1) < 1e-6 for row in weights if row):
        raise ValueError('the "weights" of every reused step must sum to 1: plan it again')
    return weights


# From positions of kept tensors, oldest first, and the position of a reused step, to one weight for each tensor.
Weights = Callable[[Sequence[float], float], tuple[float, ...]]


def polynomial(degree: int) -> Weights:
    """The polynomial of `degree` through the kept tensors, by least squares where there are more than it needs.

    With tensors F_k at positions p_k the value at x is sum_k w_k F_k with w_k = sum_d q_d(x) q_d(p_k) / |q_d|^2, where
    q_0 ... q_degree are the polynomials orthogonal on the p_k (three-term recurrence; G. Forsythe, 1957). With two
    tensors, degree 1 is TaylorSeer's first order (arXiv 2503.06923). With fewer tensors than it needs the degree falls.
    """

    def weights(positions: Sequence[float], target: float) -> tuple[float, ...]:
        here, there = [1.0] * len(positions), 1.0
        here_before, there_before, norm_before = [0.0] * len(positions), 0.0, math.inf
        total = [0.0] * len(positions)
        for _ in range(min(degree, len(positions) - 1) + 1):
            norm = sum(q * q for q in here)
            total = [w + there * q / norm for w, q in zip(total, here, strict=True)]
            centre = sum(p * q * q for p, q in zip(positions, here, strict=True)) / norm
            ratio = norm / norm_before
            triples = zip(positions, here, here_before, strict=True)
            here, here_before = [(p - centre) * q - ratio * before for p, q, before in triples], here
            there, there_before, norm_before = (target - centre) * there - ratio * there_before, there, norm
        return tuple(total)

    return weights


def series(*terms: Callable[[float], float]) -> Weights:
    """F + sum_n term_n(x - p) F[n], where p is the newest position and F[n] the n-th divided difference, F' / n!.

    With term_n(d) = d^n it is TaylorSeer (arXiv 2503.06923), whose derivatives are backward differences too. With
    fewer tensors than terms the last terms are left out.
    """

    def weights(positions: Sequence[float], target: float) -> tuple[float, ...]:
        distance = target - positions[-1]
        total = [0.0] * (len(positions) - 1) + [1.0]
        for order, term in enumerate(terms[: len(positions) - 1], start=1):
            first = len(positions) - 1 - order
            for k in range(first, len(positions)):
                others = (positions[k] - p for p in (*positions[first:k], *positions[k + 1 :]))
                total[k] += term(distance) / math.prod(others)
        return tuple(total)

    return weights


def _hermite(order: int) -> Callable[[float], float]:
    """The scaled Hermite polynomial s^n H_n(s d), with H_1(x) = 2x, H_2(x) = 4x^2 - 2 and s = 0.5."""
    scale = 0.5
    polynomials = {1: lambda x: 2 * x, 2: lambda x: 4 * x * x - 2}
    return lambda distance: scale**order * polynomials[order](scale * distance)


def undamped(_: int) -> float:
    return 1.0


def halved(_: int) -> float:
    return 0.5


def decaying(distance: int) -> float:
    """1 / (1 + d), d steps after the last computed one: a line in step index never goes farther than one step."""
    return 1 / (1 + distance)


@dataclass(frozen=True)
class Forecast:
    """How kept tensors become the tensor of a reused step: a linear combination, so that it is known by its weights.

    keeps: how many tensors it wants at most, of the last computed steps.
    weights: from their positions and the reused step's to a weight each; they sum to 1.
    coordinate: what a position is, the noise level "sigma" (1 to 0) or the "step" index.
    damping: how much of the way from the newest tensor to the forecast is gone, by distance in steps.
    """

    keeps: int
    weights: Weights
    coordinate: str = "step"
    damping: Callable[[int], float] = undamped

    def at(self, positions: Sequence[float], target: float, distance: int) -> tuple[float, ...]:
        """Weights of the tensors kept at `positions`, oldest first, `distance` steps after the last of them."""
        share = self.damping(distance)
        *older, newest = (share * weight for weight in self.weights(positions, target))
        return (*older, newest + (1 - share))


# Halfway between newest and line is the line's mean over the way: as a velocity, an average velocity, which is the view
# that MeanCache (arXiv 2601.19961) takes.
_IN_BOTH_COORDINATES = {
    "linear": Forecast(2, polynomial(1)),
    "damped": Forecast(2, polynomial(1), damping=halved),
    "decaying": Forecast(2, polynomial(1), damping=decaying),
    "quadratic": Forecast(3, polynomial(2)),
    "damped-quadratic": Forecast(3, polynomial(2), damping=halved),
    "line-fit": Forecast(3, polynomial(1)),
    "parabola-fit": Forecast(4, polynomial(2)),
}
# Weights that no formula gives: `python -m lemica plan --forecast fitted` fits them to a model's own trajectories.
FITTED = "fitted"


def _of_a_mask_file(_positions: Sequence[float], _target: float) -> tuple[float, ...]:
    raise ValueError(f"forecast {FITTED} has weights only together with a mask file")


# HiCache (arXiv 2508.16984) puts Hermite polynomials in the place of the powers; with this scale its first order is
# damped-step. Both it and TaylorSeer count in steps.
FORECASTS: dict[str, Forecast] = {
    "hold": Forecast(1, polynomial(0)),
    **{
        f"{name}-{coordinate}": replace(forecast, coordinate=coordinate)
        for name, forecast in _IN_BOTH_COORDINATES.items()
        for coordinate in ("sigma", "step")
    },
    "taylor-step": Forecast(3, series(lambda d: d, lambda d: d * d)),
    "hermite1-step": Forecast(2, series(_hermite(1))),
    "hermite2-step": Forecast(3, series(_hermite(1), _hermite(2))),
    FITTED: Forecast(4, _of_a_mask_file),
}


def kept_steps(mask: StepMask, history: int) -> tuple[bool, ...]:
    """Which steps leave a tensor: computed ones that a reused one follows before `history` more are computed."""
    return tuple(computed and not all(mask[step + 1 : step + 1 + history]) for step, computed in enumerate(mask))


def reuse_weights(mask: StepMask, sigmas: Sequence[float], rule: ReuseRule) -> tuple[tuple[float, ...], ...]:
    """For every reused step the weights of the tensors kept by then, oldest first; for a computed one none.

    `sigmas` holds every step's noise level. Step 0 must be computed.
    """
    if rule.weights:
        return rule.weights
    chosen = FORECASTS[rule.forecast]
    positions = {"sigma": sigmas, "step": range(len(mask))}[chosen.coordinate]
    weights: list[tuple[float, ...]] = []
    sources: list[int] = []
    for step, computed in enumerate(mask):
        if computed:
            sources = [*sources, step][-chosen.keeps :]
            weights.append(())
        else:
            weights.append(chosen.at([positions[k] for k in sources], positions[step], step - sources[-1]))
    return tuple(weights)


@dataclass
class RunReport:
    """What one call did and how long it took: computed steps (0-based), seconds by step and by stage.

    `seed` and `prompt` are those that were used: drawn and rewritten, if that was asked for. `reuse` and `forecast`
    are the rule of the reused steps, None where every step was computed. Stages sum to the whole; with offloading
    "offload moves" is one of them, the time to bring whole models to the device and back. What upstream's
    super-resolution pipeline moves counts as super-resolution, and blocks that are streamed as their step.
    """

    seed: int
    prompt: str | list[str]
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
