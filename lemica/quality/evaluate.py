"""Evaluate: what masks cost in quality and gain in time, on samples of one's own.

    >>> evaluation = lemica.evaluate(pipe, [dict(prompt="a red circle", seed=0)], {"mine": "mask20.json"}, budgets=[20])
    >>> print(evaluation)

Every sample is made without a cache and then with every method; a method's result is measured against the uncached one
as it leaves the decoder. Numbers are on disk as soon as they are there, so that the same call goes on after an
interruption. What is evaluated is a ``Model``: any diffusers pipeline (pipelines.py).
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lemica.errors import Refused, refusing, require
from lemica.files import write_text
from lemica.masks import Mask, read_mask
from lemica.quality.evaluation import Evaluation, Measured, document, row_of
from lemica.quality.kept import Kept
from lemica.quality.metrics import Quality, means_of, psnr, ssim
from lemica.streams import Unfailing, tell
from lemica.versions import versions

UNCACHED, NOISE_FLOOR = "no cache", "noise floor"


@dataclass(frozen=True)
class Method:
    """One way to make a sample.

    Args:
        name: for people.
        num_inference_steps: as in the call.
        steps: how many steps are computed, but for fallbacks.
        mask: which ones; None for all.
        moves_noise: whether the initial noise is moved by as much as rounding would.
    """

    name: str
    num_inference_steps: int
    steps: int
    mask: Mask | None = None
    moves_noise: bool = False

    @property
    def digest(self) -> str:
        """What tells this method from others of the same name."""
        mask = self.mask and [self.mask.steps, self.mask.kept, self.mask.weights]
        text = json.dumps([self.name, self.num_inference_steps, mask, self.moves_noise])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Made:
    """What a method made of a sample.

    Args:
        frames: (F, H, W, 3), float RGB in [0, 1], of all pictures or videos of the call.
        seconds: of the whole call.
        steps: steps on which the denoiser ran.
        fallbacks: denoiser calls that were computed though the mask reuses.
    """

    frames: np.ndarray
    seconds: float
    steps: int
    fallbacks: int


@dataclass(frozen=True)
class Tried:
    """What a model's short first run tells.

    Args:
        num_steps: steps of the sampler: more than ``num_inference_steps`` for one of second order.
        masks: what was wanted, by name, with weights.
        can_move_noise: whether the initial noise can be moved.
    """

    num_steps: int
    masks: Mapping[str, Mask]
    can_move_noise: bool


class Model(Protocol):
    """What can be evaluated."""

    num_inference_steps: int

    def ready(self) -> AbstractContextManager:
        """Around all runs."""

    def settings(self, samples: Sequence[Any]) -> dict[str, Any]:
        """What decides the numbers but for the methods: results of other settings are not gone on with."""

    def about(self) -> dict[str, Any]:
        """What the figures are of, for people."""

    def refuse(self, sample: Any, fewer_steps: bool) -> None:
        """Raises Refused for a sample that cannot be made."""

    def try_out(self, sample: Any, wanted: Mapping[str, Mask | int]) -> Tried:
        """A short run, and the masks and budgets that are wanted; raises Refused for those that do not fit."""

    def make(self, sample: Any, method: Method) -> Made:
        """The decoded result of one sample."""


def evaluate(
    pipe: Any,
    samples: Sequence[Mapping[str, Any]],
    masks: Mapping[str, Mask | str | os.PathLike] | None = None,
    budgets: Sequence[int] = (25, 20),
    num_inference_steps: int = 50,
    fewer_steps: bool = True,
    output: str | os.PathLike | None = None,
    *,
    show_progress: bool = True,
) -> Evaluation:
    """Measure what masks cost on a pipeline, and what time they save.

    Args:
        pipe: a diffusers pipeline, as it will be run.
        samples: keyword arguments of one call of the pipeline each, and ``seed`` for its noise (default 0).
        masks: masks, or files of masks, by the names that they shall have in the table.
        budgets: numbers of computed steps, for which the authors' masks are taken, or derived ones, as
            ``lemica.enable(pipe, budget=...)`` does.
        num_inference_steps: as in the pipeline's call.
        fewer_steps: also sample with as few steps as each mask computes: what a cache has to beat.
        output: a folder for the numbers and the table. The same call goes on with what is in it, and may have other
            masks and budgets.
        show_progress: a progress bar, and the cost before it.

    Per sample there is one call for no cache, for every mask, every budget and every number of fewer steps, and one for
    the noise floor: no cache, once more, with the initial noise moved by 1e-5 of itself. PSNR and SSIM are those of the
    decoded pictures or frames, seconds those of the whole call.

    Raises ``lemica.errors.Refused`` for samples, masks and budgets that do not fit the pipeline, and
    where `output` holds results of other samples or settings.

    Example:
        >>> samples = [dict(prompt=prompt, seed=0) for prompt in ("a red circle", "a blue square")]
        >>> evaluation = lemica.evaluate(pipe, samples, {"mine": "mask20.json"}, budgets=[20], output="evaluation")
        >>> evaluation.rows[1].method, evaluation.rows[1].steps
        ('mine', 20.0)
    """
    from lemica.quality.pipelines import PipelineCalls

    wanted = wanted_methods(masks or {}, budgets)
    model = PipelineCalls(pipe, num_inference_steps)
    with nullcontext(output) if output else tempfile.TemporaryDirectory() as folder:
        evaluation = evaluate_to(Path(folder), model, samples, wanted, fewer_steps, show_progress)
        with refusing(OSError):
            write_text(Path(folder, "table.md"), f"{evaluation}\n")
            write_text(Path(folder, "evaluate.json"), json.dumps(document(evaluation), indent=1) + "\n")
    return evaluation


def wanted_methods(masks: Mapping[str, Mask | str | os.PathLike], budgets: Sequence[int]) -> dict[str, Mask | int]:
    """Masks and budgets by name; raises Refused for files that are no masks, and where there is neither."""
    of_budgets = {f"budget {budget}": budget for budget in budgets}
    for name in masks:
        if name in (UNCACHED, NOISE_FLOOR, *of_budgets) or name.startswith("fewer steps ("):
            raise Refused(f"{name!r} is the name of another row of the table: give the mask another one")
    for budget in budgets:
        if budget < 2:
            raise Refused(f"a budget is at least 2, the first step and the last; got {budget}")
    if not (masks or budgets):
        raise Refused("there is nothing to evaluate: give masks or budgets")
    with refusing(ValueError):
        read = {name: mask if isinstance(mask, Mask) else read_mask(mask) for name, mask in masks.items()}
    return {**read, **of_budgets}


def evaluate_to(
    folder: Path,
    model: Model,
    samples: Sequence[Any],
    wanted: Mapping[str, Mask | int],
    fewer_steps: bool,
    show_progress: bool,
) -> Evaluation:
    """Measure what is not in `folder` yet; the arguments are those of ``evaluate``, for any model."""
    require("skimage.metrics", extra="quality", purpose="evaluating")
    if not samples:
        raise Refused("no samples: give a list of at least one dict(prompt=..., seed=0)")
    for sample in samples:
        model.refuse(sample, fewer_steps)
    made_with = versions()
    with refusing(OSError):
        kept = Kept(folder, model.settings(samples) | made_with)
    with model.ready():
        tried = model.try_out(samples[0], wanted)
        methods = _methods(model.num_inference_steps, tried, fewer_steps)
        missing = [[method for method in methods if kept.read(at, method) is None] for at in range(len(samples))]
        if show_progress:
            tell(_cost(methods, missing), f"numbers are kept in {folder}: the same command goes on with them")
        measure(model, samples, methods[0], missing, kept, show_progress)
    return _evaluation(model, methods, tried, kept, len(samples), made_with)


def _methods(num_inference_steps: int, tried: Tried, fewer_steps: bool) -> list[Method]:
    """All methods, the uncached one first."""
    uncached = Method(UNCACHED, num_inference_steps, tried.num_steps)
    methods = [
        uncached,
        *(Method(name, num_inference_steps, mask.budget, mask) for name, mask in tried.masks.items()),
    ]
    if fewer_steps:
        counts = sorted({mask.budget for mask in tried.masks.values()} - {tried.num_steps}, reverse=True)
        # A sampler of second order has more steps than it is asked for.
        share = num_inference_steps / tried.num_steps
        methods += [Method(_fewer(count), max(1, round(count * share)), count) for count in counts]
    if tried.can_move_noise:
        methods.append(Method(NOISE_FLOOR, num_inference_steps, tried.num_steps, moves_noise=True))
    return methods


def _fewer(count: int) -> str:
    return f"fewer steps ({count})"


def _cost(methods: Sequence[Method], missing: Sequence[Sequence[Method]]) -> str:
    """What it costs, in a sentence."""
    names = ", ".join(method.name for method in methods)
    steps, runs = sum(method.steps for method in methods), len(methods) * len(missing)
    done = runs - sum(map(len, missing))
    return (
        f"{len(methods)} runs per sample, as long as {steps / methods[0].steps:.1f} uncached ones: {names}; "
        f"{runs} for {len(missing)} sample{'s' * (len(missing) > 1)}" + (f", {done} of them done" if done else "")
    )


def measure(
    model: Model,
    samples: Sequence[Any],
    uncached: Method,
    missing: Sequence[Sequence[Method]],
    kept: Kept,
    show_progress: bool,
) -> None:
    """Make what is missing, sample by sample; each number is on disk as soon as it is there."""
    tqdm = require("tqdm", extra="quality", purpose="evaluating").tqdm
    total = sum(method.steps for methods in missing for method in methods)
    with tqdm(total=total, unit="step", disable=not show_progress, file=Unfailing()) as progress:
        for at, methods in enumerate(missing):
            progress.set_description(f"sample {at + 1} of {len(samples)}")
            # Made again where its numbers are known: the others are measured against it.
            reference = model.make(samples[at], uncached) if methods else None
            for method in methods:
                made = reference if method == uncached else model.make(samples[at], method)
                kept.save(at, method, measured(reference, made, method.name))
                progress.update(method.steps)


def measured(reference: Made, made: Made, name: str) -> Measured:
    """The figures of what was made; raises Refused where there are values that are no numbers."""
    if not np.isfinite(made.frames).all():
        raise Refused(f"the result of {name} has values that are no numbers: run it in another arithmetic")
    quality, similarity = math.inf, 1.0
    if made is not reference:
        pairs = list(zip(reference.frames, made.frames, strict=True))
        means = means_of(Quality(*(tuple(metric(*pair) for pair in pairs) for metric in (psnr, ssim))))
        quality, similarity = means.psnr, means.ssim
    return Measured(quality, similarity, made.seconds, made.steps, made.fallbacks)


def _evaluation(
    model: Model,
    methods: Sequence[Method],
    tried: Tried,
    kept: Kept,
    num_samples: int,
    made_with: Mapping[str, str],
) -> Evaluation:
    found = {method.name: [kept.read(index, method) for index in range(num_samples)] for method in methods}
    rows = []
    for method in methods:
        rival = found.get(_fewer(method.steps), []) if method.mask else []
        rows.append(row_of(method.name, found[method.name], rival, found[UNCACHED]))
    return Evaluation(tuple(rows), model.about(), made_with, tuple(_notes(methods, tried, found)))


def _notes(methods: Sequence[Method], tried: Tried, found: Mapping[str, Sequence[Measured]]) -> list[str]:
    notes = [f"{method.name}: {method.mask.made_by}" for method in methods if method.mask and method.mask.made_by]
    for method in methods:
        fallbacks = sum(sample.fallbacks for sample in found[method.name])
        if fallbacks:
            notes.append(f"{method.name}: {fallbacks} calls computed, for what they needed was not kept")
    if not tried.can_move_noise:
        notes.append("no noise floor: the pipeline has no prepare_latents, whose result is what would be moved")
    return notes
