"""Other caches on a denoiser: two that skip work would each skip what the other counts on."""

import torch

from lemica.reuse.identity import class_name

# Parts of the names that the hooks of diffusers' caches have in its hook registries.
_HOOK_NAMES = ("faster_cache", "fbc_", "mag_cache", "sea_cache", "pyramid_attention_broadcast", "taylorseer")


def refuse_other_caches(denoisers: list[torch.nn.Module]) -> None:
    """Raises ValueError, in one line with the cache's name and how it is disabled, where one is enabled."""
    for module in denoisers:
        found = _enabled_cache(module)
        if found is not None:
            name, remedy = found
            raise ValueError(f"{name} is enabled on the {class_name(module)}: {remedy} first, one cache at a time")


def _enabled_cache(module: torch.nn.Module) -> tuple[str, str] | None:
    config = getattr(module, "_cache_config", None)
    if config is not None:
        return type(config).__name__.removesuffix("Config"), "call its disable_cache()"
    # Of the module, not of its pipeline: cache-dit marks the class of that one, and so all of its pipelines.
    if getattr(module, "_is_cached", False):
        return "cache-dit", "call cache_dit.disable_cache"
    registries = (vars(part).get("_diffusers_hook") for part in module.modules())
    names = (name for registry in registries if registry is not None for name in registry.hooks)
    hook = next((name for name in names if any(part in name for part in _HOOK_NAMES)), None)
    return None if hook is None else (f"the hook {hook} of another cache", "remove it by diffusers' HookRegistry")
