"""Step masks as files (format "lemica-mask/1"), as lines of text, and the two that plans are compared with. No torch.

The file is JSON: "format", "model", "num_steps", "budget", "computed_steps" from 0 to num_steps - 1, "origin", "reuse",
"forecast"; and for fitted forecasts "weights", a list a step: of a reused step a number for each kept tensor.
Generation reads the same files with infer_state.py, whose reader is used here too: what is read here, runs there.
"""

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from lemica.files import write_text

COMPUTED_CELL, REUSED_CELL = "■", "·"

# Where infer_state.py stands, seen from the folder that holds lemica/: in the kit, and in a tree that it is copied to.
_INFER_STATE_PATHS = ("infer_state.py", "hyvideo/commons/infer_state.py")


def _load_infer_state() -> ModuleType:
    """The kit's infer_state.py, by its path: as a part of hyvideo it could not be imported without torch."""
    folder = Path(__file__).resolve().parents[1]
    path = next((folder / name for name in _INFER_STATE_PATHS if (folder / name).is_file()), None)
    if path is None:
        raise ImportError(f"{folder} has no infer_state.py: keep lemica/ beside the kit's three files")
    spec = importlib.util.spec_from_file_location("lemica_infer_state", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_infer_state = _load_infer_state()
FORMAT = _infer_state.MASK_FORMAT
ReuseRule, step_mask = _infer_state.ReuseRule, _infer_state.step_mask
REUSED, FITTED = tuple(_infer_state.MOST_KEPT), _infer_state.FITTED
FITTED_KEEPS = _infer_state.FORECASTS[FITTED].keeps
# The fitted forecast is not among them: it belongs to a mask, and there is none yet when a graph is measured.
FORECASTS = tuple(name for name in _infer_state.FORECASTS if name != FITTED)


@dataclass(frozen=True)
class Mask:
    """A step mask and what its file says about it: computed steps ascending from 0 to num_steps - 1.

    weights: of the forecast "fitted", a tuple a step: for a reused one a number for each kept tensor, oldest first.
    """

    model: str
    num_steps: int
    computed_steps: tuple[int, ...]
    origin: str
    reuse: str = ReuseRule.reuse
    forecast: str = ReuseRule.forecast
    weights: tuple[tuple[float, ...], ...] = ()

    @property
    def budget(self) -> int:
        return len(self.computed_steps)

    @property
    def steps(self) -> tuple[bool, ...]:
        """One boolean a step, True where it is computed."""
        return tuple(step in self.computed_steps for step in range(self.num_steps))

    @property
    def rule(self) -> ReuseRule:
        """The rule that the mask was planned for."""
        return ReuseRule(self.reuse, self.forecast, self.weights)


def read_mask(path: str | os.PathLike) -> Mask:
    """Read a mask file; raises ValueError with one line for whatever generate.py would refuse."""
    steps, rule, model = _infer_state.read_mask(os.fspath(path))
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return Mask(
        model="unknown" if model is None else model,
        num_steps=len(steps),
        computed_steps=computed_steps(steps),
        reuse=rule.reuse,
        forecast=rule.forecast,
        weights=rule.weights,
        origin=str(content.get("origin", "unknown")),
    )


def write_mask(mask: Mask, path: str | os.PathLike) -> None:
    """Write a mask file for ``generate.py --lemica_mask``, in one move."""
    document = {
        "format": FORMAT,
        "model": mask.model,
        "num_steps": mask.num_steps,
        "budget": mask.budget,
        "computed_steps": list(mask.computed_steps),
        "origin": mask.origin,
        "reuse": mask.reuse,
        "forecast": mask.forecast,
        **({"weights": mask.weights} if mask.weights else {}),
    }
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def computed_steps(steps: Sequence[bool]) -> tuple[int, ...]:
    """The indices of the computed steps of a mask given as one boolean a step."""
    return tuple(index for index, computed in enumerate(steps) if computed)


def uniform_mask(budget: int, num_steps: int) -> tuple[bool, ...]:
    """`budget` computed steps spread evenly from the first to the last step, halves rounded up.

    Raises ValueError if `budget` is not in 2..num_steps.
    """
    if not 2 <= budget <= num_steps:
        raise ValueError(f"no uniform mask of budget {budget} for {num_steps} steps; choose 2 to {num_steps}")
    gaps = budget - 1
    computed = {(2 * k * (num_steps - 1) + gaps) // (2 * gaps) for k in range(budget)}
    return tuple(step in computed for step in range(num_steps))


def static_mask(num_steps: int, start: int = 11, end: int = 45, interval: int = 4) -> tuple[bool, ...]:
    """Upstream's rule for its own caches, with its defaults: every `interval`-th step from `start` to before `end`.

    All steps before `start` and from `end` on are computed, and, as in every mask of this kit, the last one: upstream
    reuses it where `end` lies beyond `num_steps`.
    """
    between = set(range(start, end, interval))
    return tuple(not start <= step < end or step in between or step == num_steps - 1 for step in range(num_steps))


def strip(steps: Sequence[bool]) -> str:
    """A mask as a line with one character a step."""
    return "".join(COMPUTED_CELL if computed else REUSED_CELL for computed in steps)
