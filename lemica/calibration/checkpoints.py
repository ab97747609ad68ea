"""What an unfinished calibration has measured so far: a folder beside its output, from which it goes on.

Every part of a sample is a file of its own, written in one move when it is done, so that ranks need not wait for each
other and a run killed anywhere leaves only whole files. Numbers are kept to the bit.
"""

import json
import os
import re
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from lemica.calibration.edges import Errors, joined
from lemica.errors import Refused
from lemica.files import write_text
from lemica.masks import Target, target_from
from lemica.streams import warn

_PART_FILE = re.compile(r"sample(\d+)\.part(\d+)of(\d+)\.json")


@dataclass(frozen=True)
class Unit:
    """The work of one rank on one sample: part `part` (from 0) of `parts`."""

    sample: int
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Measured:
    """What the replays of a sample gave, and what it belongs to."""

    errors: Errors
    target: Target


def units_of_rank(num_samples: int, world_size: int, rank: int) -> list[Unit]:
    """This rank's share: whole samples while there is one for every rank, then parts of those that are left."""
    whole = num_samples - num_samples % world_size
    units = [Unit(sample) for sample in range(rank, whole, world_size)]
    left = num_samples - whole
    if left:
        units.append(Unit(whole + rank % left, rank // left, len(range(rank % left, world_size, left))))
    return units


def folder_for(output: Path) -> Path:
    """The folder of unfinished work beside an output; beside what it links to, if it is a link."""
    output = output.resolve() if output.is_symlink() else output
    return output.with_name(f"{output.name}.partial")


class Checkpoints:
    """The finished parts of a calibration's samples; `settings` are the arguments that decide its numbers.

    Raises Refused, saying what to type, if the folder was begun with other settings.
    """

    def __init__(self, output: Path, settings: dict):
        self.folder = folder_for(output)
        self._refuse_other_settings(json.loads(json.dumps(settings)))
        write_text(self._settings_path, json.dumps(settings, indent=1))

    def save(self, unit: Unit, errors: Errors, target: Target) -> None:
        """Raises ValueError for errors that are no numbers, before they can spoil a mean."""
        name = f"sample{unit.sample}.part{unit.part}of{unit.parts}.json"
        write_text(self.folder / name, json.dumps(asdict(Measured(errors, target)), allow_nan=False))

    def measured(self, sample: int) -> Measured | None:
        """All errors of a sample, or None while a part is missing."""
        for count, parts in self._parts(sample).items():
            if len(parts) == count:
                found = [_read_part(parts[part]) for part in range(count)]
                if None not in found:
                    return Measured(joined(part.errors for part in found), found[0].target)
        return None

    def has(self, unit: Unit) -> bool:
        """Whether a unit need not be measured: it is done, or its sample is, in other parts."""
        part = self._parts(unit.sample)[unit.parts].get(unit.part)
        return (part is not None and _read_part(part) is not None) or self.measured(unit.sample) is not None

    def remove(self) -> None:
        """Remove the folder, the settings last: samples without settings could be taken for those of other ones."""
        for name in os.listdir(self.folder):
            if _PART_FILE.fullmatch(name):
                (self.folder / name).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _settings_path(self) -> Path:
        return self.folder / "arguments.json"

    def _parts(self, sample: int) -> dict[int, dict[int, Path]]:
        """Files of a sample, by number of parts and part: two numbers of parts if the number of ranks has changed."""
        found = defaultdict(dict)
        for name in sorted(os.listdir(self.folder)):
            match = _PART_FILE.fullmatch(name)
            if match and int(match[1]) == sample:
                found[int(match[3])][int(match[2])] = self.folder / name
        return found

    def _refuse_other_settings(self, settings: dict) -> None:
        begun = self._settings_begun_with()
        for name in begun | settings if begun is not None else ():
            if begun.get(name) != settings.get(name):
                raise Refused(
                    f"{self.folder} was begun with {_typed(name, begun)}, not {_typed(name, settings)}: pass the "
                    "former to go on with it, or another --output to begin anew; it is a folder, which may be deleted"
                )

    def _settings_begun_with(self) -> dict | None:
        try:
            return json.loads(self._settings_path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if not any(map(_PART_FILE.fullmatch, os.listdir(self.folder) if self.folder.exists() else ())):
                return None
            cause = error
        except ValueError as error:
            cause = error
        raise Refused(
            f"{self.folder} does not say with which arguments it was begun: it is a folder, which may be deleted; "
            "delete it, or give another --output"
        ) from cause


def _read_part(path: Path) -> Measured | None:
    """What a part's file holds; None, with a note, for a file that the disk has spoilt, which is measured again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Measured(Errors(**content["errors"]), target_from(content["target"]))
    except (ValueError, KeyError, TypeError):
        warn(f"{path} cannot be read: that part is measured again")
        return None


def _typed(name: str, settings: dict) -> str:
    """A setting as it stands on the command line."""
    value = settings.get(name)
    if value is None:
        return f"no --{name}"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"--{name} {text:.60}"
