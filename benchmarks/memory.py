"""Bytes that tensors take: those of a list, and the most alive at once while a block of code runs."""

import weakref
from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def unique_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the storages behind `tensors`, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


class PeakMemory(TorchDispatchMode):
    """Counts the storages that operations inside the block make, as long as they live; those that they get are free.

    peak: bytes. What an operation allocates and frees by itself is not seen.
    """

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._note((args, kwargs), counts=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, counts=True)
        return result

    def _note(self, tensors, counts: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage(), counts)

    def _watch(self, storage: torch.UntypedStorage, counts: bool) -> None:
        if storage._cdata in self._known:
            return
        size = storage.nbytes() if counts else 0
        self._known.add(storage._cdata)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.alive -= size


class DevicePeak:
    """As PeakMemory, by the count of CUDA's own allocator, which sees everything."""

    peak = 0

    def __enter__(self):
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_):
        self.peak = torch.cuda.max_memory_allocated() - self._before


def peak_memory(device: torch.device) -> PeakMemory | DevicePeak:
    """A context with `peak`: bytes that were alive at once beside those from before it."""
    return DevicePeak() if device.type == "cuda" else PeakMemory()
