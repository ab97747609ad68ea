"""The numbers of an evaluation on disk, from which it goes on after an interruption."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lemica.errors import Refused, RefusedHere, in_words
from lemica.files import write_text
from lemica.quality.evaluation import Measured, finite
from lemica.quality.models import Method
from lemica.streams import warn

GOES_ON = ": make room there, and type the same command again, which goes on from what is kept"


class Kept:
    """The numbers of an evaluation on disk: a file for each sample and method, and one that says of which settings.

    Args:
        folder: the evaluation's.
        settings: what decides the numbers.

    Raises Refused, in one line, where the folder was begun with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder / "samples"
        self._spoilt: set[Path] = set()
        path, own = self.folder / "settings.json", json.loads(json.dumps(settings))
        # Looked for first: another rank writes its settings before its numbers.
        has_results = any(self.folder.glob("sample*.json"))
        begun = _settings_in(path)
        if begun is None and has_results:
            raise Refused(f"{folder} does not say what its results are of: give another folder, or delete it")
        for name in begun | own if begun is not None else ():
            if begun.get(name) != own.get(name):
                raise Refused(
                    f"{folder} holds results of {name} {begun.get(name)}, not {own.get(name)}: give another folder, or "
                    "delete it"
                )
        write_text(path, json.dumps(own, indent=1))

    def save(self, sample: int, method: Method, measured: Measured) -> None:
        """Write one figure of the table; raises RefusedHere, saying what to do, where the disk does not take it."""
        content = {"method": method.name, **finite(asdict(measured))}
        try:
            write_text(self._path(sample, method), json.dumps(content, allow_nan=False))
        except OSError as error:
            raise RefusedHere(in_words(error) + GOES_ON) from error

    def read(self, sample: int, method: Method) -> Measured | None:
        """What is kept; None where there is nothing, and, with a note, for a file that the disk has spoilt."""
        path = self._path(sample, method)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            del content["method"]
            content["psnr"] = math.inf if content["psnr"] is None else content["psnr"]
            return Measured(**content)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            if path not in self._spoilt:
                warn(f"{path} cannot be read: that run is made again")
            self._spoilt.add(path)
            return None

    def _path(self, sample: int, method: Method) -> Path:
        return self.folder / f"sample{sample}.{method.digest}.json"


def _settings_in(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise Refused(f"{path} cannot be read: give another folder for the output, or delete this one") from error
