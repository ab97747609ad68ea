"""What an evaluation costs, in words: runs before it starts, hours once the first of them have been timed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lemica.quality.models import Made, Method

# What is missing: the methods of each sample.
Missing = Sequence[Sequence[Method]]


def cost(methods: Sequence[Method], missing: Missing, groups: int = 1) -> str:
    """What it costs, in a sentence.

    Args:
        methods: all of them, the uncached one first.
        missing: of each sample, those that are not done yet.
        groups: how many groups of ranks share the samples.
    """
    names = ", ".join(method.name for method in methods)
    steps, runs = sum(method.steps for method in methods), len(methods) * len(missing)
    done = runs - sum(map(len, missing))
    return (
        f"{len(methods)} runs per sample, as long as {steps / methods[0].steps:.1f} uncached ones: {names}; "
        f"{runs} for {len(missing)} sample{'s' * (len(missing) > 1)}"
        + (f", {done} of them done" if done else "")
        + (f", shared by {groups} groups of ranks" if groups > 1 else "")
    )


def to_run(uncached: Method, missing: Sequence[Method]) -> list[Method]:
    """The runs of a sample: the uncached one comes first also where its numbers are known, to measure against it."""
    return [uncached, *(method for method in missing if method != uncached)] if missing else []


class Timing(NamedTuple):
    """What is kept of a run, which would else keep its frames: a gigabyte a video at 720p."""

    seconds: float
    steps: int
    dit_seconds: float | None


class Pace:
    """Says once how long the rest will take: when one run has been timed, and one measured against it.

    Args:
        runs: all runs that there are to make.
        groups: how many groups of ranks share them.
        say: is given the line.
    """

    def __init__(self, runs: Sequence[Method], groups: int, say: Callable[[str], object]):
        self._steps, self._runs, self._groups, self._say = sum(run.steps for run in runs), len(runs), groups, say
        self._noted: list[tuple[Timing, float]] = []

    def note(self, made: Made, seconds: float) -> None:
        """A run, and the seconds that it took to measure and to save what it made; the first run is uncached."""
        if len(self._noted) < 2:
            self._noted.append((Timing(made.seconds, made.steps, made.dit_seconds), seconds))
            if len(self._noted) == 2 and self._runs > 2:
                self._say(self._line())

    def _line(self) -> str:
        (first, _), (second, measuring) = self._noted
        loop = first.seconds if first.dit_seconds is None else first.dit_seconds
        per_step = loop / first.steps
        # Texts, decoding and measuring take as long whatever the method.
        around = first.seconds - loop + measuring
        steps = self._steps - first.steps - second.steps
        left = steps * per_step + (self._runs - 2) * around
        return (
            f"about {duration(left / self._groups)} to go: {per_step:.2f} s per computed step, and {around:.1f} s per "
            "run for decoding and measuring"
        )


def duration(seconds: float) -> str:
    """Hours, or minutes below two of them.

    >>> duration(20000), duration(600), duration(20)
    ('5.6 hours', '10 minutes', 'a minute')
    """
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} hours"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes > 1 else "a minute"
