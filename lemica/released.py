"""The LeMiCa authors' masks by model, and which of these models a denoiser is. Standard library only.

All facts stand in released_masks.json, with their sources. What the authors did not release is derived from what they
did (``lemica.masks.step_mask``), and said to be.

    >>> mask = mask_for_budget("Wan2.1-T2V-1.3B", 20, 50)
    >>> mask.budget, mask.origin, mask.made_by
    (20, 'released', "the LeMiCa authors' mask for Wan2.1-T2V-1.3B")
    >>> mask_for_budget(None, 12, 30).made_by
    "derived from the LeMiCa authors' masks for HunyuanVideo-1.5: none are known for this model"
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lemica.masks import Mask, ReleasedMasks, hold, is_released, step_mask

FILE = Path(__file__).with_name("released_masks.json")
# Whose masks are taken for a model that has none of its own.
STAND_IN = "HunyuanVideo-1.5"


@dataclass(frozen=True)
class ReleasedModel:
    """A model that the authors released masks for, and how it is recognised.

    Args:
        name: the model's name.
        num_steps: the number of steps that the masks are for.
        masks: the computed steps, counted from 0, by budget.
        denoiser: the class of the denoiser in diffusers.
        config: values of the denoiser's config, or of the pipeline's, that set the model apart.
        names: what a folder or repository of the model is called.
        others: names of other models whose denoisers have the same values.
        config_decides: whether the values alone say which model it is; where not, only a name does.
    """

    name: str
    num_steps: int
    masks: dict[int, tuple[int, ...]]
    denoiser: str
    config: Mapping[str, Any]
    names: tuple[str, ...]
    others: tuple[str, ...]
    config_decides: bool

    @property
    def released(self) -> ReleasedMasks:
        """The masks as ``step_mask`` takes them."""
        return ReleasedMasks(self.num_steps, self.masks)

    def allows(self, config: Mapping[str, Any]) -> bool:
        """Whether no value of `config` is another than the model's; what is missing may be anything."""
        return all(config.get(key, value) == value for key, value in self.config.items())


@cache
def released_models() -> dict[str, ReleasedModel]:
    """The models that the authors released masks for, by name."""
    entries = json.loads(FILE.read_text(encoding="utf-8"))["models"]
    return {name: _model_of(name, entry) for name, entry in entries.items()}


def _model_of(name: str, entry: Mapping[str, Any]) -> ReleasedModel:
    how = entry["recognised_by"]
    return ReleasedModel(
        name,
        entry["num_steps"],
        {int(budget): tuple(steps) for budget, steps in entry["masks"].items()},
        how["denoiser"],
        how["config"],
        tuple(how["names"]),
        tuple(how["others"]),
        how["config_decides"],
    )


def recognise(denoiser_class: str, config: Mapping[str, Any], name: str = "") -> str | None:
    """Which of the authors' models a denoiser is; None where that is not certain.

    A name decides among the models that class and config allow: that of the last folder or repository on the path
    that the denoiser was loaded from, then on the pipeline's path, that is known. Without one the config decides,
    where no other known model has the same.

    Args:
        denoiser_class: the name of the denoiser's class.
        config: the denoiser's config, and what the pipeline's config has beside it: ``{**pipe.config,
            **denoiser.config}``. Without the pipeline's, Wan2.1's 14B models and FLUX.2 klein need a name.
        name: the name or path that the pipeline was loaded from.

    >>> recognise("ZImageTransformer2DModel", {"n_layers": 30, "dim": 3840}, "Tongyi-MAI/Z-Image-Turbo")
    'Z-Image-Turbo'
    >>> recognise("ZImageTransformer2DModel", {"n_layers": 30, "dim": 3840}, "my-model") is None
    True
    """
    possible = [
        model for model in released_models().values() if model.denoiser == denoiser_class and model.allows(config)
    ]
    known: dict[str, str | None] = {other.lower(): None for model in possible for other in model.others}
    known |= {own.lower(): model.name for model in possible for own in model.names}
    for part in (*_parts(config.get("_name_or_path")), *_parts(name)):
        if part in known:
            return known[part]
    certain = [model.name for model in possible if model.config_decides and model.config.keys() <= config.keys()]
    return certain[0] if len(certain) == 1 else None


def _parts(path: Any) -> list[str]:
    """The folders of a path, the last one first; "models--OWNER--NAME" is how the hub's cache writes a repository."""
    return re.split(r"[/\\]|--", str(path or "").lower())[::-1]


def mask_for_budget(model: str | None, budget: int, num_steps: int) -> Mask:
    """The authors' mask for a model, or one derived from theirs; it keeps velocities and holds the newest.

    Args:
        model: a name of ``released_models``; None for a model that has none, which gets HunyuanVideo-1.5's.
        budget: how many steps are computed, from 2 to `num_steps`.
        num_steps: how many steps there are.

    Raises ValueError, in one line, for a model that is not known and for a budget that cannot be.
    """
    models = released_models()
    if model is not None and model not in models:
        raise ValueError(f"the LeMiCa authors released no masks for {model!r:.60}; known are {', '.join(models)}")
    if not 2 <= budget <= num_steps:
        raise ValueError(f"budget must be from 2 to the number of steps, {num_steps}; got {budget}")
    released = models[model or STAND_IN].released
    steps = step_mask(budget, num_steps, released)
    to_the_letter = model is not None and is_released(budget, num_steps, released)
    return Mask(
        steps,
        kept="velocity",
        weights=hold(steps),
        origin="released" if to_the_letter else "derived",
        made_by=_made_by(model, to_the_letter),
    )


def _made_by(model: str | None, to_the_letter: bool) -> str:
    if model is None:
        return f"derived from the LeMiCa authors' masks for {STAND_IN}: none are known for this model"
    if to_the_letter:
        return f"the LeMiCa authors' mask for {model}"
    return f"derived from the LeMiCa authors' masks for {model}"
