"""What a pipeline is, as far as a mask depends on it: its denoisers, their configs, their arithmetic."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from lemica.masks import Target

# The attributes under which diffusers' pipelines keep what they call at every step.
DENOISERS = ("transformer", "transformer_2", "unet")


def denoisers_of(pipe: Any) -> list[torch.nn.Module]:
    """The denoisers of a pipeline, in the order in which they take turns; raises ValueError where there is none."""
    found = [getattr(pipe, name, None) for name in DENOISERS]
    denoisers = [module for module in found if isinstance(module, torch.nn.Module)]
    if not denoisers:
        raise ValueError(
            f"{type(pipe).__name__} has none of {', '.join(DENOISERS)}: give a diffusers pipeline that has one, or use "
            "lemica.reuse.loops.reusing in a loop of your own"
        )
    return denoisers


def target_of(pipe: Any) -> Target:
    """What a mask for this pipeline belongs to, but for the noise levels, which each run sets."""
    denoisers = denoisers_of(pipe)
    names = sorted({name for module in denoisers for name in getattr(module, "peft_config", {})})
    model = type(pipe).__name__ + "".join(f" with LoRA {name}" for name in names)
    return Target(model=model, config=_digest(denoisers), dtype=_dtype_name(denoisers[0]))


def config_of(module: torch.nn.Module) -> Mapping[str, Any]:
    """A denoiser's config; empty where the module has none."""
    return getattr(_original(module), "config", None) or {}


def class_name(module: torch.nn.Module) -> str:
    return type(_original(module)).__name__


def _original(module: torch.nn.Module) -> torch.nn.Module:
    """The module that a compiled one was made of."""
    return getattr(module, "_orig_mod", module)


def _digest(denoisers: list[torch.nn.Module]) -> str | None:
    """A digest of all configs; what begins with an underscore says where a model came from, not what it is."""
    configs = [{key: value for key, value in config_of(module).items() if key[0] != "_"} for module in denoisers]
    if not any(configs):
        return None
    text = json.dumps([[class_name(module) for module in denoisers], configs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _dtype_name(module: torch.nn.Module) -> str | None:
    dtype = getattr(module, "dtype", None) or next((p.dtype for p in module.parameters()), None)
    return None if dtype is None else str(dtype).removeprefix("torch.")
