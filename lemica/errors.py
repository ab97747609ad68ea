"""How the library refuses, and how it asks for packages that only some of its commands need."""

import importlib
from types import ModuleType

# Packages that the extras of pyproject.toml install.
EXTRAS = {
    "quality": "scikit-image imageio imageio-ffmpeg tqdm",
    "report": "jinja2",
    "plot": "matplotlib",
}


class Refused(Exception):
    """What was asked for cannot be done. The message is one line that says what was wrong and what to type."""


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
