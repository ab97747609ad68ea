"""How each method was set: a file of what tune.py found on tuning pairs, and the authors' defaults."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lemica.files import write_text

SETTINGS = Path(__file__).with_name("settings.json")
TARGETS = (0.5, 0.4, 0.3, 0.2, 0.16)
DEFAULT = "default"


def tolerance(target: float) -> float:
    """How far from a target a cost may be: where costs are low, a step more or less means much."""
    return 0.02 if target >= 0.3 else 0.01


@dataclass(frozen=True)
class Setting:
    """A method with its knobs, and which cost it was set to meet, if not "default".

    Args:
        name: in tables.
        method: in benchmarks.rivals.methods.METHODS.
        cost: "0.5", "0.4" ... or "default".
        knobs: keywords of the method.
    """

    name: str
    method: str
    cost: str
    knobs: dict[str, Any]

    @property
    def key(self) -> str:
        """The setting in words, unique in the file."""
        return f"cost {self.cost}, {self.name}"


def read_settings(path: Path = SETTINGS) -> list[Setting]:
    """All settings of a file."""
    return [Setting(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def write_settings(settings: Sequence[Setting], path: Path = SETTINGS) -> None:
    """Write a file with a line per setting."""
    lines = (json.dumps(vars(setting)) for setting in settings)
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")
