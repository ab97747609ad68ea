"""What each method keeps from step to step, in bytes of tensors, at cost 0.3 on one pair.

PYTHONPATH=.venv/diffusers python -m benchmarks.rivals.memory assets/measurements/rivals_memory.json
"""

import gc
import json
import sys
from pathlib import Path

import torch

from benchmarks.rivals.bench import Bench, Request
from benchmarks.rivals.fitted import NUM_STEPS, Fitted
from benchmarks.rivals.measure import available
from benchmarks.rivals.methods import FLOOR, METHODS
from benchmarks.rivals.settings import Setting, read_settings
from lemica.files import write_text

COST, PAIR = "0.3", 200


def kept_bytes(bench: Bench, fitted: Fitted, setting: Setting, request: Request) -> int:
    """The most that a setting keeps at the end of a step beside the latents, in bytes of tensors."""
    most = 0
    with METHODS[setting.method](bench, fitted, **setting.knobs):
        # What a cache that was taken off has left in reference cycles.
        gc.collect()
        before = _alive()

        def look() -> None:
            nonlocal most
            most = max(most, _alive() - before)

        bench.run(request, NUM_STEPS, each_step=look)
    return most


def _alive() -> int:
    """Bytes of all tensors, a storage once."""
    storages = {}
    for each in gc.get_objects():
        if type(each) is torch.Tensor:
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def main(output: Path) -> None:
    """Measure all settings of one cost; the uncached loop's own tensors are taken off."""
    torch.set_num_threads(1)
    bench = Bench("bf16")
    fitted, request = Fitted(bench), bench.request(PAIR)
    settings = [setting for setting in available(read_settings()) if setting.cost == COST]
    found = {}
    uncached = kept_bytes(bench, fitted, Setting("", FLOOR, COST, {}), request)
    for setting in settings:
        # Run once before, so that what is calibrated is there and does not count.
        with METHODS[setting.method](bench, fitted, **setting.knobs):
            bench.run(request, NUM_STEPS)
        found[setting.name] = kept_bytes(bench, fitted, setting, request) - uncached
    write_text(output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
