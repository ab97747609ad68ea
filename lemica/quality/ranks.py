"""The ranks that evaluate together: who is at work on a folder, and who makes which sample.

Samples are taken one by one, so that a slow rank holds nobody up: a lock on a sample is held by whoever makes it, and
ends with its process. Ranks exchange nothing but the folder once all of them are at work.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lemica.calibration.locks import Crew, Lock
from lemica.errors import RefusedHere, in_words
from lemica.quality.kept import GOES_ON
from lemica.quality.models import Model

# In the evaluation's folder.
_LOCKS = "locks"


class EvaluationCrew(Crew):
    """The ranks that are at work on an evaluation."""

    def _taken(self, path: Path) -> str:
        holder = path.read_text(encoding="utf-8", errors="replace") or "another process"
        return (
            f"another lemica evaluate is at work on {self.folder.parent} ({holder}): wait for its table, or give "
            "another --output"
        )


@contextmanager
def at_work(folder: Path, model: Model) -> Iterator[EvaluationCrew]:
    """Inside, this rank is at work on the folder. All ranks enter together; all refuse where one has to.

    Args:
        folder: the evaluation's; it is made if it is missing.
        model: says which ranks there are.

    Raises Refused, on every rank, where another evaluation is at work on the folder, and where a rank does not see it.
    """
    with ExitStack() as held:
        with model.ranks_together() as (rank, world_size, exchange):
            crew = EvaluationCrew(folder / _LOCKS, rank, world_size)
            held.enter_context(crew.at_work(exchange))
        yield crew


class Claims:
    """Which samples are being made.

    Args:
        folder: the evaluation's.
    """

    def __init__(self, folder: Path):
        self.folder = folder / _LOCKS / "samples"

    def free(self, count: int) -> Iterator[int]:
        """Those of `count` samples that nobody is making, each held until the next one is asked for."""
        for sample in range(count):
            try:
                lock = Lock(self.folder / f"{sample}.lock")
            except BlockingIOError:
                continue
            except OSError as error:
                raise RefusedHere(in_words(error) + GOES_ON) from error
            try:
                yield sample
            finally:
                lock.release()

    def remove(self) -> None:
        """Leave nothing behind, once nobody is at work any more."""
        shutil.rmtree(self.folder, ignore_errors=True)
