"""Times at which things were done, on the device that does them: a GPU runs behind the program that drives it."""

import time
from itertools import pairwise

import torch


class Clock:
    """Marks, in the order in which they are made; nothing waits for the GPU until they are read.

    Args:
        device: whose work is timed.

        >>> clock = Clock(torch.device("cpu"))
        >>> for _ in range(3):
        ...     clock.mark()
        >>> len(clock.seconds())
        2
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[float | torch.cuda.Event] = []

    def mark(self) -> None:
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Seconds from each mark to the next."""
        if self._device.type != "cuda":
            return [after - before for before, after in pairwise(self._marks)]
        torch.cuda.synchronize(self._device)
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(self._marks)]


def working_device(scheduler: object) -> torch.device:
    """The device that a run is on: that of the time steps, or the current GPU, where they wait on the CPU."""
    device = getattr(scheduler.timesteps, "device", torch.device("cpu"))
    if device.type == "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device
