"""Calibrate: measure every sample, on all ranks, with what is done kept on disk; then average and write the graph.

What is calibrated is a ``Model``: HunyuanVideo-1.5 with the kit (hunyuan.py), or any diffusers pipeline (pipelines.py).

Under torchrun every rank holds the whole model and works alone on samples of its own, or on a part of one where there
are more ranks than samples left.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lemica.calibration.checkpoints import Checkpoints, Unit, folder_for, units_of_rank
from lemica.calibration.edges import Work, sample_graph
from lemica.calibration.locks import Crew, Exchange
from lemica.errors import Refused, RefusedHere, in_words, refusing
from lemica.files import try_name
from lemica.masks import Target
from lemica.planning.graph import ErrorGraph, merge_graphs, write_graph
from lemica.planning.paths import feasible_budgets
from lemica.streams import Unfailing, say, tell
from lemica.versions import versions

if TYPE_CHECKING:
    from lemica.calibration.replays import Sampling


class Model(Protocol):
    """What can be calibrated."""

    def prepare(self, sample: Any) -> "tuple[Sampling, Target]":
        """What denoises one sample, its texts and images encoded, and what it belongs to."""

    def on_device(self) -> AbstractContextManager:
        """Around the replays of a sample: the denoiser need not be moved between them."""

    def ranks_together(self) -> AbstractContextManager[tuple[int, int, Exchange]]:
        """This rank, the number of ranks, and how they exchange values; all ranks leave together.

        From then on each works alone. So all have read what is done before one adds to it, and no collective can time
        out while one rank waits for another that has hours of work left.
        """


@dataclass(frozen=True)
class Workload:
    """What a calibration measures: all replays of `work` on every sample.

    Args:
        samples: what the model prepares.
        work: the replays of one sample.
        mode: "fast" or "exact" edges.
        num_steps, max_gap: denoising steps N, and the longest gap D.
    """

    samples: Sequence[Any]
    work: Work
    mode: str
    num_steps: int
    max_gap: int

    def cost(self, world_size: int = 1) -> str:
        """What it costs, in a sentence."""
        sample, count = self.work.forwards(self.num_steps), len(self.samples)
        text = f"{self.mode} edges: {sample} forwards per sample ({sample / self.num_steps:.1f} full runs)"
        text += f", {sample * count} for {count} samples" if count > 1 else ""
        busiest = max(self.rank_forwards(world_size))
        return text + (f", at most {busiest} on one of {world_size} ranks" if world_size > 1 else "")

    def rank_forwards(self, world_size: int) -> list[int]:
        """Forwards of every rank; ranks that share a sample make its uncached run each."""
        return [
            sum(
                self.share(unit).forwards(self.num_steps) for unit in units_of_rank(len(self.samples), world_size, rank)
            )
            for rank in range(world_size)
        ]

    def share(self, unit: Unit) -> Work:
        return self.work.part(unit.part, unit.parts)


def calibrate_to(
    output: Path,
    plan: Workload,
    model: Model,
    settings: dict[str, Any],
    show_progress: bool = True,
    is_kept: bool = True,
) -> None:
    """Measure on this rank; rank 0 writes the graph once all are done.

    Args:
        output: the graph's file; what is unfinished is kept in a folder beside it, from which the same call goes on.
        settings: what decides the numbers: other ones do not go on from that folder.
        show_progress: print the cost and where the graph is, and show a progress bar.
        is_kept: whether `output` stays: where it is temporary, it is not named.

    Raises Refused where `output` is there already, where another calibration is at work on it, and where ranks are
    gone.
    """
    refuse_output(output)
    with ExitStack() as at_work:
        with model.ranks_together() as (rank, world_size, exchange):
            crew = Crew(folder_for(output), rank, world_size)
            at_work.enter_context(crew.at_work(exchange))
            # Again, because the one that was at work until now may have written it.
            refuse_output(output)
            with refusing(OSError):
                checkpoints = Checkpoints(output, settings)
            units = [unit for unit in units_of_rank(len(plan.samples), world_size, rank) if not checkpoints.has(unit)]
        shown = show_progress and rank == 0
        if rank == 0:
            # By one rank, and after the others have looked: for a moment there is a file of that name.
            with refusing(OSError):
                try_name(output)
        if shown:
            kept = f"unfinished work is kept in {checkpoints.folder}: after an interruption the same command goes on"
            tell(plan.cost(world_size), *([kept] if is_kept else []))
        if units:
            measure_units(plan, model, units, checkpoints, shown)
        if rank == 0:
            graph = write_averaged(plan, checkpoints, crew, output)
            if shown and is_kept:
                say(f"{output}: {len(plan.samples)} samples; next: {next_command(graph, output)}")


def write_averaged(plan: Workload, checkpoints: Checkpoints, crew: Crew, output: Path) -> ErrorGraph:
    """Write the mean graph of all samples, and remove what was kept of them."""
    graph = averaged(plan, checkpoints, crew)
    kept = f"; all samples are kept in {checkpoints.folder}: type the same command again once that is mended"
    refuse_output(output, kept)
    with refusing(OSError, hint=kept):
        write_graph(graph, output)
    checkpoints.remove()
    return graph


def refuse_output(output: Path, hint: str = "") -> None:
    """Raises Refused, in one line that ends with `hint`, where there is something already."""
    if os.path.exists(output) and not os.path.isfile(output):
        raise Refused(f"--output {output} is no file: name a file, beside which unfinished work can be kept")
    if os.path.exists(output):
        raise Refused(f"--output {output} is there already: give another name, or delete it first{hint}")


def measure_units(
    plan: Workload, model: Model, units: list[Unit], checkpoints: Checkpoints, show_progress: bool
) -> None:
    """Measure this rank's units; each is on disk as soon as it is done."""
    from tqdm import tqdm

    total = sum(plan.share(unit).forwards(plan.num_steps) for unit in units)
    with tqdm(total=total, unit="forward", disable=not show_progress, file=Unfailing()) as progress:
        for unit in units:
            progress.set_description(f"sample {unit.sample + 1} of {len(plan.samples)}")
            measure_unit(plan, model, unit, checkpoints, progress.update)


def measure_unit(
    plan: Workload, model: Model, unit: Unit, checkpoints: Checkpoints, on_forward: Callable[[], None]
) -> None:
    from lemica.calibration.replays import measure

    sampling, target = model.prepare(plan.samples[unit.sample])
    with model.on_device():
        errors = measure(sampling, plan.share(unit), plan.max_gap, on_forward)
    target = replace(target, sigmas=tuple(errors.sigmas))
    try:
        checkpoints.save(unit, errors, target)
    except OSError as error:
        raise RefusedHere(
            f"{in_words(error)}: make room there, and type the same command again, which goes on from what is kept"
        ) from error


def averaged(plan: Workload, checkpoints: Checkpoints, crew: Crew) -> ErrorGraph:
    """The mean graph of all samples, in their order, once every rank is done.

    Raises Refused, saying what to type, where a rank was gone before its work was done.
    """
    if crew.others_at_work() and (missing := _missing(plan, checkpoints)):
        tell(
            f"waiting for the other ranks: {len(missing)} of {len(plan.samples)} samples are not done in "
            f"{checkpoints.folder}"
        )
    crew.wait_for_others()
    missing = _missing(plan, checkpoints)
    if missing:
        raise Refused(
            f"ranks are gone before their work was done, {len(missing)} of {len(plan.samples)} samples: type the same "
            f"command again, which goes on from what is kept in {checkpoints.folder}"
        )
    graphs = []
    for sample in range(len(plan.samples)):
        measured = checkpoints.measured(sample)
        graphs.append(sample_graph(measured.errors, plan.mode, measured.target, plan.max_gap))
    made_with = ", ".join(f"{package} {version}" for package, version in versions().items() if package != "lemica")
    return replace(merge_graphs(graphs), made_by=f"lemica calibrate, {made_with}")


def _missing(plan: Workload, checkpoints: Checkpoints) -> list[int]:
    return [sample for sample in range(len(plan.samples)) if checkpoints.measured(sample) is None]


def next_command(graph: ErrorGraph, output: Path) -> str:
    """What to type after a calibration: a plan with about half of the steps, or as few as the gaps allow."""
    budget = max((graph.num_steps + 1) // 2, feasible_budgets(graph.num_steps, graph.max_gap)[0])
    return f"lemica plan {shlex.quote(str(output))} --budget {budget}"
