"""A subclass for the time being: how an object's methods are watched, and left as they were.

The object changes its class to a subclass that hands every call of the watched methods to a watcher. A copy of a
watched object is watched, too: pipelines copy their schedulers. For the calls of modules there is
``lemica.reuse.calls``, which leaves their class alone.

    >>> class Greeter:
    ...     def greet(self, name):
    ...         return f"hello {name}"
    >>> greeter = Greeter()
    >>> watch(greeter, {"greet": lambda greet, args, kwargs: greet(*args, **kwargs).upper()})
    >>> greeter.greet("you")
    'HELLO YOU'
    >>> unwatch(greeter)
    >>> type(greeter) is Greeter, vars(greeter)
    (True, {})
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

_WATCHERS = "_lemica_watchers"

Watcher = Callable[[Callable, tuple, dict], Any]


class Watchers:
    """The watchers of an object, by method, and whose they are. Copies of the object share the watchers: nobody's."""

    def __init__(self, methods: Mapping[str, Watcher], owner: Any = None):
        self.methods, self.owner = methods, owner

    def __deepcopy__(self, _memo):
        return Watchers(self.methods)


def watch(watched: Any, watchers: Mapping[str, Watcher], owner: Any = None) -> None:
    """From now on ``watched.name(*args, **kwargs)`` is ``watchers[name](method, args, kwargs)``, `method` bound."""
    # Past __setattr__, in which pipelines register what they have.
    object.__setattr__(watched, _WATCHERS, Watchers(dict(watchers), owner))
    object.__setattr__(watched, "__class__", _watched_class(type(watched), tuple(watchers)))


def unwatch(watched: Any) -> None:
    """The object as it was; nothing happens to one that is not watched."""
    own = vars(watched).pop(_WATCHERS, None)
    if own is None:
        return
    # Copies that are still about lose them, too.
    own.methods.clear()
    # A class that somebody has made of the watched one stays, and watches no more.
    original = vars(type(watched)).get("_lemica_original")
    if original is not None:
        object.__setattr__(watched, "__class__", original)


def owner_of(watched: Any) -> Any:
    """Whose watchers an object has; None if it is not watched, or a copy of a watched one."""
    return _watchers_of(watched).owner


def _watchers_of(watched: Any) -> Watchers:
    return getattr(watched, "__dict__", {}).get(_WATCHERS, Watchers({}))


def _watched_class(original: type, names: tuple[str, ...]) -> type:
    """A subclass of the object's own, because cache-dit writes into the class of a pipeline.

    The class itself, if it is watched already: a call must not be seen twice.
    """
    if all(hasattr(getattr(original, name), "_lemica_is_watched") for name in names):
        return original
    # The name is the original's, which diffusers writes into configs and looks up in its tables.
    members = {"__module__": original.__module__, "__qualname__": original.__qualname__, "_lemica_original": original}
    members |= {name: _through_watcher(original, name) for name in names}
    return types.new_class(original.__name__, (original,), exec_body=lambda namespace: namespace.update(members))


def _through_watcher(original: type, name: str) -> Callable:
    # Pipelines look at the signature of the scheduler's methods to see which arguments they take.
    @functools.wraps(getattr(original, name))
    def through(self, *args, **kwargs):
        # Looked up now: programs patch classes.
        bound = functools.partial(getattr(original, name), self)
        watcher = _watchers_of(self).methods.get(name)
        return bound(*args, **kwargs) if watcher is None else watcher(bound, args, kwargs)

    through._lemica_is_watched = True
    return through
