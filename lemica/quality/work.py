"""The runs of an evaluation: take a sample, make what is missing of it, keep its numbers, take the next."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lemica.errors import Refused, require
from lemica.quality.costs import Missing, Pace, to_run
from lemica.quality.evaluation import Measured
from lemica.quality.kept import Kept
from lemica.quality.measuring import measured
from lemica.quality.metrics import Metric, load_lpips
from lemica.quality.models import Made, Method, Model
from lemica.quality.ranks import Claims
from lemica.quality.videos import NoVideos, Videos
from lemica.streams import Unfailing, tell


@dataclass(frozen=True)
class Unit:
    """A sample by its number, and those of its methods that are not done."""

    sample: int
    missing: Sequence[Method]


@dataclass(frozen=True)
class Work:
    """All that is to be made, and where it goes.

    Args:
        model, samples: what makes, and of what.
        methods: all of them, the uncached one first.
        kept: the numbers.
        videos: the videos.
        claims: who makes which sample.
    """

    model: Model
    samples: Sequence[Any]
    methods: Sequence[Method]
    kept: Kept
    videos: Videos | NoVideos
    claims: Claims

    def missing(self) -> Missing:
        """Of each sample, the methods that are not done."""
        return [self.missing_of(at) for at in range(len(self.samples))]

    def missing_of(self, at: int) -> list[Method]:
        return [method for method in self.methods if not self._is_done(at, method)]

    def _is_done(self, at: int, method: Method) -> bool:
        found = self.kept.read(at, method)
        return found is not None and self.videos.has(found)

    def found(self) -> dict[str, list[Measured]]:
        """The numbers of each method, by sample; raises Refused where some are missing."""
        undone = sum(map(bool, self.missing()))
        if undone:
            raise Refused(
                f"ranks are gone before their work was done, {undone} of {len(self.samples)} samples: type the same "
                f"command again, which goes on from what is kept in {self.kept.folder.parent}"
            )
        return {method.name: [self.kept.read(at, method) for at in range(len(self.samples))] for method in self.methods}


def make_missing(work: Work, is_first: bool, groups: int, show_progress: bool) -> None:
    """Make what is missing, on all ranks of this rank's group; each number is on disk as soon as it is there.

    Args:
        work: what there is to do.
        is_first: whether this is the first rank of its group, which takes the samples and keeps the numbers.
        groups: how many groups of ranks share the samples.
        show_progress: whether this rank says how far it is.
    """
    tqdm = require("tqdm", extra="quality", purpose="evaluating").tqdm
    runs = [run for methods in work.missing() for run in to_run(work.methods[0], methods)]
    pace = Pace(runs, groups, tell if show_progress else _unsaid)
    desk = Desk(work, pace, load_lpips()) if is_first else Helper()
    own = desk.units()
    # What the first rank takes, all of its group make.
    units = iter(lambda: work.model.share(next(own, None)), None)
    total = sum(run.steps for run in runs) // groups
    with tqdm(total=total, unit="step", disable=not show_progress, file=Unfailing()) as progress:
        for number, unit in enumerate(units):
            if number == 0:
                work.model.warm_up(work.samples[unit.sample])
            progress.set_description(f"sample {unit.sample + 1} of {len(work.samples)}")
            for method in _make(work, desk, unit):
                progress.update(method.steps)


def _unsaid(line: str) -> None:
    """For ranks that say nothing."""


def _make(work: Work, desk: "Desk | Helper", unit: Unit) -> Iterator[Method]:
    """The runs of a sample; gives the method of each when its numbers are kept."""
    uncached, sample = work.methods[0], work.samples[unit.sample]
    # Made again where its numbers are known: the others are measured against it.
    reference = work.model.make(sample, uncached)
    for method in to_run(uncached, unit.missing):
        made = reference if method == uncached else work.model.make(sample, method)
        desk.keep(unit, method, reference, made)
        yield method


@dataclass(frozen=True)
class Desk:
    """The first rank of a group: it takes samples, measures what is made of them, and keeps the numbers."""

    work: Work
    pace: Pace
    lpips: Metric | None

    def units(self) -> Iterator[Unit]:
        """The samples that nobody is making and that are not done."""
        for sample in self.work.claims.free(len(self.work.samples)):
            # Looked for now that it is ours: another rank may have made it meanwhile.
            unit = Unit(sample, self.work.missing_of(sample))
            if unit.missing:
                yield unit

    def keep(self, unit: Unit, method: Method, reference: Made, made: Made) -> None:
        """Measure what was made, save it and keep its numbers, where they are not kept already."""
        start = time.perf_counter()
        if method in unit.missing:
            found = measured(reference, made, method.name, self.lpips)
            request = self.work.model.request(self.work.samples[unit.sample])
            video = self.work.videos.save(unit.sample, request, method, made.frames)
            self.work.kept.save(unit.sample, method, replace(found, video=video))
        self.pace.note(made, time.perf_counter() - start)


class Helper:
    """Another rank of a group: it makes what the first one takes."""

    def units(self) -> Iterator[Unit]:
        return iter(())

    def keep(self, unit: Unit, method: Method, reference: Made, made: Made) -> None:
        """The first rank does it."""
