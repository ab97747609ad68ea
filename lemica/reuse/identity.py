"""What a pipeline is, as far as a mask depends on it: its denoisers, their configs, their arithmetic."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lemica.masks import Target

# The attributes under which diffusers' pipelines keep what they call at every step.
DENOISERS = ("transformer", "transformer_2", "unconditional_transformer", "unet")


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
    parts = [type(pipe).__name__, class_name(pipe.scheduler)]
    parts += [f"LoRA {name}" for name in sorted(_adapters(pipe, denoisers))]
    return Target(model=", ".join(parts), config=digest_of(denoisers), dtype=_dtype_name(denoisers[0]))


def _adapters(pipe: Any, denoisers: list[torch.nn.Module]) -> set[str]:
    """The LoRA adapters at work: active ones, and ones that are fused into the weights, loaded still or not."""
    layers = (layer for module in denoisers if getattr(module, "peft_config", None) for layer in module.modules())
    # Diffusers' models have methods of peft's names.
    tuned = [layer for layer in layers if isinstance(getattr(type(layer), "disable_adapters", None), property)]
    active = {name for layer in tuned if not layer.disable_adapters for name in layer.active_adapters}
    return active | set(getattr(pipe, "fused_loras", ()))


def config_of(module: torch.nn.Module) -> Mapping[str, Any]:
    """A denoiser's config; empty where the module has none."""
    return getattr(_original(module), "config", None) or {}


def class_name(module: torch.nn.Module) -> str:
    """The name of a denoiser's class; of the model's own where torch has made one of it, as FSDP does."""
    kinds = type(_original(module)).__mro__
    models = (kind for kind in kinds if issubclass(kind, torch.nn.Module) and not kind.__module__.startswith("torch."))
    return next(models, kinds[0]).__name__


def _original(module: torch.nn.Module) -> torch.nn.Module:
    """The module that a compiled one was made of."""
    return getattr(module, "_orig_mod", module)


def digest_of(parts: Sequence[Any]) -> str | None:
    """A digest of classes and configs, None without any; names with an underscore say where a part is from."""
    configs = [{key: value for key, value in config_of(part).items() if key[0] != "_"} for part in parts]
    if not any(configs):
        return None
    text = json.dumps([[class_name(part) for part in parts], configs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _dtype_name(module: torch.nn.Module) -> str | None:
    """The dtype of the weights, but for those that diffusers keeps in float32 whatever the model's."""
    # Not module.dtype, which looks through all modules.
    in_float32 = getattr(_original(module), "_keep_in_fp32_modules", None) or ()
    dtypes = (
        weight.dtype
        for name, weight in module.named_parameters()
        if weight.is_floating_point() and not any(part in name for part in in_float32)
    )
    dtype = next(dtypes, None) or getattr(module, "dtype", None)
    return None if dtype is None else str(dtype).removeprefix("torch.")
