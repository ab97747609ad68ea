"""Encoding once: what a pipeline's call prepares before it denoises is the same in every replay of a sample."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from lemica.reuse.cache import copied
from lemica.reuse.watch import unwatch, watch

# Beginnings of the names that diffusers' pipelines give to what encodes texts and images and makes the first latents.
_NAMES = ("encode_", "_encode_", "prepare_latents", "prepare_image_latents", "prepare_cond_latents")


class Once:
    """The results of a pipeline's encoding methods, made in its first call and given again in later ones.

    Only for calls with the same arguments. Random generators go on as if the work had been done again.
    """

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self._results: dict[tuple[str, int], tuple[Any, list[torch.Tensor]]] = {}
        self._is_inside = False

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around one call of the pipeline."""
        self._counts: defaultdict[str, int] = defaultdict(int)
        names = [name for name in dir(type(self.pipe)) if name.startswith(_NAMES)]
        watch(self.pipe, {name: partial(self._remember, name) for name in names})
        try:
            yield
        finally:
            unwatch(self.pipe)
            self._is_inside = False

    def _remember(self, name: str, method: Callable, args: tuple, kwargs: dict) -> Any:
        if self._is_inside:
            # Part of what is remembered already.
            return method(*args, **kwargs)
        place = name, self._counts[name]
        self._counts[name] += 1
        generators = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Generator)]
        if place not in self._results:
            self._is_inside = True
            result = method(*args, **kwargs)
            self._is_inside = False
            self._results[place] = tree_map(copied, result), [generator.get_state() for generator in generators]
            return result
        result, states = self._results[place]
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        # Copies, because a pipeline may write into what it was given.
        return tree_map(copied, result)
