"""Evaluate: what masks cost in quality and gain in time, on samples of one's own.

    >>> evaluation = lemica.evaluate(pipe, [dict(prompt="a red circle", seed=0)], {"mine": "mask20.json"}, budgets=[20])
    >>> print(evaluation)

Every sample is made without a cache and then with every method; a method's result is measured against the uncached one
as it leaves the decoder. Numbers are on disk as soon as they are there, so that the same call goes on after an
interruption. What is evaluated is a ``Model`` (models.py): any diffusers pipeline (pipelines.py), or HunyuanVideo-1.5
with the kit (hunyuan.py).
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lemica.errors import Refused, refusing, require
from lemica.files import write_text
from lemica.masks import Mask
from lemica.quality.costs import cost
from lemica.quality.evaluation import Evaluation, Measured, document, row_of
from lemica.quality.kept import Kept
from lemica.quality.metrics import HOW_TO_GET_LPIPS
from lemica.quality.models import UNCACHED, Method, Model, Tried, fewer, methods_of
from lemica.quality.ranks import Claims, EvaluationCrew, at_work
from lemica.quality.videos import NoVideos, Videos
from lemica.quality.wanted import Wanted, wanted_methods
from lemica.quality.work import Work, make_missing
from lemica.streams import tell
from lemica.versions import versions


@dataclass(frozen=True)
class Order:
    """What is asked of an evaluation, whatever the model.

    Args:
        wanted: masks and budgets by the names of their rows.
        fewer_steps: also sample with as few steps as each mask computes.
        saves_videos: keep an mp4 of each sample and method.
        show_progress: say what it costs and how far it is.
    """

    wanted: Mapping[str, Wanted]
    fewer_steps: bool = False
    saves_videos: bool = False
    show_progress: bool = True


def evaluate(
    pipe: Any,
    samples: Sequence[Mapping[str, Any]],
    masks: Mapping[str, Mask | str | os.PathLike] | None = None,
    budgets: Sequence[int] = (25, 20),
    num_inference_steps: int = 50,
    fewer_steps: bool = True,
    output: str | os.PathLike | None = None,
    *,
    spacings: Sequence[str] = ("released",),
    rules: Sequence[str] = (),
    show_progress: bool = True,
) -> Evaluation | None:
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
        spacings: where the steps of a budget lie, "released" and "balanced", as in ``lemica.enable``.
        rules: how a budget's kept outputs are carried on, "hold", "damped" and "taylor-step"; none: as each spacing has
            it by default.
        show_progress: a progress bar, and the cost before it.

    Per sample there is one call for no cache, for every mask, every budget and every number of fewer steps, and one for
    the noise floor: no cache, once more, with the initial noise moved by 1e-5 of itself. PSNR and SSIM are those of the
    decoded pictures or frames, and LPIPS where it is installed; seconds are those of the whole call.

    Under torchrun the ranks share the samples; give `output` in a folder that all see. Rank 0 gets the evaluation, the
    others None.

    Raises ``lemica.errors.Refused`` for samples, masks and budgets that do not fit the pipeline, and
    where `output` holds results of other samples or settings.

    Example:
        >>> samples = [dict(prompt=prompt, seed=0) for prompt in ("a red circle", "a blue square")]
        >>> evaluation = lemica.evaluate(pipe, samples, {"mine": "mask20.json"}, budgets=[20], output="evaluation")
        >>> evaluation.rows[1].method, evaluation.rows[1].steps
        ('mine', 20.0)
    """
    from lemica.quality.pipelines import PipelineCalls

    order = Order(
        wanted_methods(masks or {}, budgets, spacings, rules), fewer_steps=fewer_steps, show_progress=show_progress
    )
    model = PipelineCalls(pipe, num_inference_steps)
    with nullcontext(output) if output else tempfile.TemporaryDirectory() as folder:
        return evaluate_to(Path(folder), model, samples, order)


def evaluate_to(folder: Path, model: Model, samples: Sequence[Any], order: Order) -> Evaluation | None:
    """Measure what is not in `folder` yet; rank 0 writes table and document and gets them, once all ranks are done.

    Args:
        folder: for the numbers, the table and the videos.
        model: what makes the samples.
        samples: as the model takes them.
        order: what is asked for.

    Raises Refused for what does not fit the model or the folder, and where ranks are gone before they were done.
    """
    require("skimage.metrics", extra="quality", purpose="evaluating")
    if not samples:
        raise Refused("no samples: give a list of at least one dict(prompt=..., seed=0)")
    model.refuse(samples, order.wanted, order.fewer_steps)
    videos = Videos(folder) if order.saves_videos else NoVideos()
    made_with = versions()
    with at_work(folder, model) as crew:
        is_first, groups = crew.rank % model.group_size == 0, crew.world_size // model.group_size
        shown = order.show_progress and crew.rank == 0
        with refusing(OSError):
            kept = Kept(folder, model.settings(samples) | made_with)
        with model.ready():
            tried = model.try_out(samples[0], order.wanted)
            methods = methods_of(model.num_inference_steps, tried, order.fewer_steps)
            work = Work(model, samples, methods, kept, videos, Claims(folder))
            if shown:
                tell(cost(methods, work.missing(), groups), *tried.notes)
                tell(f"numbers are kept in {folder}: the same command goes on with them")
            make_missing(work, is_first, groups, shown)
        if crew.rank > 0:
            return None
        _wait_for_others(crew, work, shown)
        evaluation = _evaluation(work, tried, made_with)
        work.claims.remove()
    with refusing(OSError):
        write_text(folder / "table.md", f"{evaluation}\n")
        write_text(folder / "evaluate.json", json.dumps(document(evaluation), indent=1) + "\n")
    return evaluation


def _wait_for_others(crew: EvaluationCrew, work: Work, shown: bool) -> None:
    undone = sum(map(bool, work.missing()))
    if shown and undone and crew.others_at_work():
        tell(f"waiting for the other ranks: {undone} of {len(work.samples)} samples are not done")
    crew.wait_for_others()


def _evaluation(work: Work, tried: Tried, made_with: Mapping[str, str]) -> Evaluation:
    found = work.found()
    rows = []
    for method in work.methods:
        rival = found.get(fewer(method.steps), []) if method.mask else []
        rows.append(row_of(method.name, found[method.name], rival, found[UNCACHED]))
    requests = tuple(map(work.model.request, work.samples))
    notes = (*_notes(work.methods, found), *tried.notes)
    return Evaluation(tuple(rows), work.model.about(), made_with, notes, requests)


def _notes(methods: Sequence[Method], found: Mapping[str, Sequence[Measured]]) -> list[str]:
    notes = [f"{method.name}: {made_by(method.mask)}" for method in methods if method.mask]
    for method in methods:
        fallbacks = sum(sample.fallbacks for sample in found[method.name])
        if fallbacks:
            notes.append(f"{method.name}: {fallbacks} calls computed, for what they needed was not kept")
    if any(sample.lpips is None for samples in found.values() for sample in samples):
        notes.append(f"no LPIPS: {HOW_TO_GET_LPIPS}")
    return notes


def made_by(mask: Mask) -> str:
    """Where a mask comes from, and what its reused steps are made of."""
    return mask.made_by or f"{mask.origin} mask, {mask.method}"
