"""Every call of a module, seen before all else, while its class stays as it is.

Torch's modules keep in one attribute what ``module.compile()`` has made of their call, and look there before they run
hooks and ``forward``. The watcher takes that place, and hands calls on to what was there. So it comes before diffusers'
and accelerate's hooks, whenever these come. Copies of the module, which torch makes without that attribute, are not
watched. The class must stay: diffusers' ``from_pipe`` asks for it, and compiled code is made anew for another.

    >>> module = torch.nn.Linear(2, 2)
    >>> calls = WatchedCalls(module, lambda call, args, kwargs: call(*args, **kwargs).shape)
    >>> calls.take_place()
    >>> module(torch.ones(3, 2))
    torch.Size([3, 2])
    >>> calls.give_back()
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_PLACE = "_compiled_call_impl"


class WatchedCalls:
    """The calls of one module.

    Args:
        module: whose.
        watcher: from (call, args, kwargs) to what the call returns; ``call(*args, **kwargs)`` runs the module.
    """

    def __init__(self, module: torch.nn.Module, watcher: Callable[[Callable, tuple, dict], Any]):
        self._module, self._watcher, self._found = module, watcher, None

    @property
    def is_free(self) -> bool:
        """Whether nobody else watches the module."""
        found = vars(self._module).get(_PLACE)
        return found is self or not isinstance(found, WatchedCalls)

    def take_place(self) -> None:
        """From now on calls are seen; again, where the module has been compiled since."""
        found = vars(self._module).get(_PLACE)
        if found is not self:
            self._found = found
            # Past __setattr__: a compiled module hands on to its original what is set on it.
            object.__setattr__(self._module, _PLACE, self)

    def give_back(self) -> None:
        """The module as it was; it stays compiled if it has been compiled since."""
        if vars(self._module).get(_PLACE) is not self:
            return
        object.__delattr__(self._module, _PLACE)
        if self._found is not None:
            object.__setattr__(self._module, _PLACE, self._found)

    def __call__(self, *args, **kwargs) -> Any:
        return self._watcher(self._call, args, kwargs)

    def __bool__(self) -> bool:
        # So peft sees whether a module is compiled.
        return bool(self._found)

    def _call(self, *args, **kwargs) -> Any:
        call = self._module._call_impl if self._found is None else self._found
        return call(*args, **kwargs)


class WatchedNames:
    """The name that a pipeline gives to a module's call, "cond" or "uncond", by diffusers' ``cache_context``.

    Args:
        module: whose; one without such a method has no names.

    `current` is the name of the call that is being made, "" where it has none.
    """

    def __init__(self, module: torch.nn.Module):
        self._module, self._original, self.current = module, None, ""

    def take_place(self) -> None:
        if self._original is None and hasattr(self._module, "cache_context"):
            self._original = self._module.cache_context
            object.__setattr__(self._module, "cache_context", self)

    def give_back(self) -> None:
        if vars(self._module).get("cache_context") is self:
            object.__delattr__(self._module, "cache_context")
        self._original = None

    @contextmanager
    def __call__(self, name: str, *args, **kwargs) -> Iterator[None]:
        with self._original(name, *args, **kwargs):
            before, self.current = self.current, name
            try:
                yield
            finally:
                self.current = before

    def __deepcopy__(self, memo: dict) -> Any:
        # A copy of the module names its calls by itself.
        copy = memo.get(id(self._module))
        return self if copy is None else types.MethodType(type(copy).cache_context, copy)
