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

from collections.abc import Callable
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
