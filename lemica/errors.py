"""How the library refuses, and how it asks for packages that only some of its commands need."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# Packages that the extras of pyproject.toml install.
EXTRAS = {
    "quality": "scikit-image imageio imageio-ffmpeg tqdm",
    "report": "jinja2",
    "plot": "matplotlib",
}


class Refused(Exception):
    """What was asked for cannot be done. The message is one line that says what was wrong and what to type."""


class RefusedHere(Refused):
    """A refusal of one rank that the others do not share: that rank says it itself."""


class NotMoved(Exception):
    """A file is finished and cannot take its name. The message is one line that says where it is."""


@contextmanager
def refusing(*kinds: type[Exception], hint: str = "") -> Iterator[None]:
    """Turn errors that a wrong argument or file causes into a refusal.

    To be put around the one call that reads an input or uses an argument, never around more: what else is raised there
    is an error of the program, and its traceback would be lost.

    Args:
        kinds: ValueError for wrong values, OSError for files.
        hint: what to add to the line.

    Example:
        >>> with refusing(OSError, hint=": give a file of prompts"):
        ...     open("no_prompts.txt")
        Traceback (most recent call last):
        lemica.errors.Refused: no_prompts.txt: No such file or directory: give a file of prompts
    """
    try:
        yield
    except kinds as error:
        raise Refused(in_words(error) + hint) from error


def in_words(error: Exception) -> str:
    """An error as one line; one of the file system begins with the file."""
    file = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return f"{file}: {error.strerror}" if file and isinstance(error, OSError) else " ".join(str(error).split())


def require(name: str, extra: str, purpose: str) -> ModuleType:
    """Import a module that only some commands need.

    Args:
        name: the module, such as "imageio.v2".
        extra: the extra of pyproject.toml that installs it.
        purpose: what needs it, the beginning of the refusal: "comparing videos".

    Raises Refused where a package of the extra is missing.

        >>> require("lemica.no_such_module", "plot", "--plot")
        Traceback (most recent call last):
        lemica.errors.Refused: --plot needs lemica.no_such_module: pip install matplotlib (the extra "plot" of lemica)
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        packages = f'pip install {EXTRAS[extra]} (the extra "{extra}" of lemica)'
        raise Refused(f"{purpose} needs {error.name}: {packages}") from error
