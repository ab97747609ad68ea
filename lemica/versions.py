"""The versions of what numbers come from. Standard library only."""

import importlib.metadata

PACKAGES = ("torch", "diffusers", "transformers", "lemica")


def versions() -> dict[str, str]:
    """Versions by package, of those that are installed.

    >>> "lemica" in versions()
    True
    """
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
