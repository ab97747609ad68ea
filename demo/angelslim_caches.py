"""Make angelslim's cache helpers importable on a machine without triton, for tests and comparisons.

`import angelslim` needs triton, which has no build for machines without a GPU; the cache helpers do not. They are
loaded from the installed package (pip install --no-deps angelslim==0.2.2), unmodified, past its `__init__`.
"""

import importlib
import importlib.metadata
import sys
import types

PACKAGES = ("angelslim", "angelslim.compressor", "angelslim.compressor.diffusion")


def import_angelslim_caches() -> types.ModuleType:
    """The module `angelslim.compressor.diffusion` with its cache helpers; raises PackageNotFoundError if missing."""
    try:
        return importlib.import_module(PACKAGES[-1])
    except Exception:
        # Whatever the rest of angelslim is missing or trips over: the caches do not need it.
        root = importlib.metadata.distribution("angelslim")
    for name in PACKAGES:
        package = sys.modules[name] = types.ModuleType(name)
        package.__path__ = [str(root.locate_file(name.replace(".", "/")))]
    caches = importlib.import_module(f"{PACKAGES[-1]}.cache")
    vars(sys.modules[PACKAGES[-1]]).update({name: getattr(caches, name) for name in caches.__all__})
    return sys.modules[PACKAGES[-1]]
