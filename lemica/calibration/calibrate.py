"""Calibrate: measure every sample, on all ranks, with what is done kept on disk; then average.

Under torchrun every rank holds the whole model and works alone on samples of its own, or on a part of one where there
are more ranks than samples left.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lemica.calibration.checkpoints import Checkpoints, Unit, units_of_rank
from lemica.calibration.edges import Work, sample_graph
from lemica.calibration.hunyuan import HunyuanVideo
from lemica.calibration.locks import Crew
from lemica.calibration.samples import Sample
from lemica.errors import Refused, RefusedHere, in_words
from lemica.planning.graph import ErrorGraph, merge_graphs
from lemica.planning.paths import feasible_budgets
from lemica.streams import Unfailing, tell


@dataclass(frozen=True)
class Workload:
    """What a calibration measures: all replays of `work` on every sample.

    Args:
        samples: prompts with their seeds.
        work: the replays of one sample.
        mode: "fast" or "exact" edges.
        num_steps, max_gap: denoising steps N, and the longest gap D.
    """

    samples: list[Sample]
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


def measure_units(
    plan: Workload, model: HunyuanVideo, units: list[Unit], checkpoints: Checkpoints, show_progress: bool
) -> None:
    """Measure this rank's units; each is on disk as soon as it is done."""
    from tqdm import tqdm

    total = sum(plan.share(unit).forwards(plan.num_steps) for unit in units)
    with tqdm(total=total, unit="forward", disable=not show_progress, file=Unfailing()) as progress:
        for unit in units:
            progress.set_description(f"sample {unit.sample + 1} of {len(plan.samples)}")
            measure_unit(plan, model, unit, checkpoints, progress.update)


def measure_unit(
    plan: Workload, model: HunyuanVideo, unit: Unit, checkpoints: Checkpoints, on_forward: Callable[[], None]
) -> None:
    from lemica.calibration.replays import measure

    run, target = model.prepare(plan.samples[unit.sample])
    with model.on_device():
        errors = measure(run, plan.share(unit), plan.max_gap, on_forward)
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
    return merge_graphs(graphs)


def _missing(plan: Workload, checkpoints: Checkpoints) -> list[int]:
    return [sample for sample in range(len(plan.samples)) if checkpoints.measured(sample) is None]


def next_command(graph: ErrorGraph, output: Path) -> str:
    """What to type after a calibration: a plan with about half of the steps, or as few as the gaps allow."""
    budget = max((graph.num_steps + 1) // 2, feasible_budgets(graph.num_steps, graph.max_gap)[0])
    return f"lemica plan {shlex.quote(str(output))} --budget {budget}"
