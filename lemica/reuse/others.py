"""Other caches on a denoiser: two that skip work would each skip what the other counts on."""

from typing import Any

import torch

# Parts of the names that the hooks of diffusers' caches have in its hook registries.
_HOOK_NAMES = ("cache", "fbc_", "pyramid_attention_broadcast", "taylorseer")


def refuse_other_caches(pipe: Any, denoisers: list[torch.nn.Module]) -> None:
    """Raises ValueError, in one line with the cache's name, where one is enabled."""
    for module in denoisers:
        name = _enabled_cache(module)
        if name is not None:
            raise ValueError(
                f"{name} is enabled on the {type(module).__name__}: call its disable_cache() first, one cache at a time"
            )
    if any(getattr(part, "_is_cached", False) for part in (pipe, *denoisers)):
        raise ValueError(
            "cache-dit is enabled on this pipeline: call cache_dit.disable_cache first, one cache at a time"
        )


def _enabled_cache(module: torch.nn.Module) -> str | None:
    config = getattr(module, "_cache_config", None)
    if config is not None:
        return type(config).__name__.removesuffix("Config")
    registries = (getattr(part, "_diffusers_hook", None) for part in module.modules())
    hooks = (name for registry in registries if registry is not None for name in registry.hooks)
    return next((name for name in hooks if any(part in name for part in _HOOK_NAMES)), None)
