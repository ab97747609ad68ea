"""Calibrate the demo model: the error graphs that its masks are planned on.

    python -m demo.calibrations t2v_50 i2v_50      # any of CALIBRATIONS; writes assets/calibrations/NAME.json

Every graph is what `lemica calibrate` makes of the same arguments, on one thread, on prompts of the training set. Only
attention runs in PyTorch's fused kernel, which on a CPU is faster. What each took is kept in
assets/measurements/calibrations.json: seconds of one CPU core, in which a busy machine is left out.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lemica.calibration.edges import work_for
from lemica.files import write_text
from lemica.planning.graph import ErrorGraph, read_graph

if TYPE_CHECKING:
    from demo.data import Spec

ASSETS = Path(__file__).resolve().parents[1] / "assets"
CHECKPOINT = ASSETS / "demo_checkpoint"
GRAPHS = ASSETS / "calibrations"
TIMES = ASSETS / "measurements" / "calibrations.json"
FRAMES = 9
IMAGE_SIZE = (64, 64)


@dataclass(frozen=True)
class Calibration:
    """One graph: its task, steps and arithmetic, how edges are measured, and on which prompts, with a seed each."""

    task: str
    num_steps: int
    dtype: str = "fp32"
    edges: str = "fast"
    samples: int = 8
    first_sample: int = 0
    max_gap: int = 12
    shift: float | None = None

    @property
    def forwards(self) -> int:
        """Forwards of one sample."""
        return work_for(self.edges, self.num_steps, self.max_gap).forwards(self.num_steps)


CALIBRATIONS = {
    "t2v_50": Calibration("t2v", 50),
    "t2v_30": Calibration("t2v", 30),
    "i2v_50": Calibration("i2v", 50),
    "i2v_30": Calibration("i2v", 30),
    # In a GPU's arithmetic.
    "t2v_50_bf16": Calibration("t2v", 50, "bf16"),
    "t2v_30_bf16": Calibration("t2v", 30, "bf16"),
    "i2v_50_bf16": Calibration("i2v", 50, "bf16"),
    "i2v_30_bf16": Calibration("i2v", 30, "bf16"),
    # Exact edges are dear: two samples, and fast edges of the same two beside them.
    "t2v_50_same": Calibration("t2v", 50, samples=2, max_gap=8),
    "t2v_30_same": Calibration("t2v", 30, samples=2, max_gap=8),
    "t2v_50_exact": Calibration("t2v", 50, edges="exact", samples=2, max_gap=8),
    "t2v_30_exact": Calibration("t2v", 30, edges="exact", samples=2, max_gap=8),
}


@cache
def calibration(name: str) -> ErrorGraph:
    """The stored graph of a calibration."""
    return read_graph(GRAPHS / f"{name}.json")


def calibrate(wanted: Calibration, output: Path, checkpoint: Path = CHECKPOINT) -> float:
    """Write a graph; returns the CPU seconds that it took."""
    import torch

    from demo.arithmetic import arithmetic
    from demo.attention import fused_attention
    from demo.data import spec_of
    from lemica.cli.main import main as lemica

    torch.set_num_threads(1)
    specs = [spec_of(wanted.first_sample + index) for index in range(wanted.samples)]
    with tempfile.TemporaryDirectory() as folder, fused_attention(), arithmetic(wanted.dtype):
        arguments = {
            "--model_path": [checkpoint],
            "--output": [output],
            "--resolution": ["480p"],
            "--aspect_ratio": ["1:1"],
            "--video_length": [FRAMES],
            "--num_inference_steps": [wanted.num_steps],
            "--max_gap": [wanted.max_gap],
            "--edges": [wanted.edges],
            **sample_files(Path(folder), wanted.task, specs),
        }
        if wanted.shift is not None:
            arguments["--flow_shift"] = [wanted.shift]
        begin = time.process_time()
        lemica(["calibrate", *(str(word) for flag, values in arguments.items() for word in (flag, *values))])
        return time.process_time() - begin


def sample_files(folder: Path, task: str, specs: Sequence["Spec"]) -> dict[str, list[Path]]:
    """Prompts, and first frames for image-to-video, as files; by the flag of lemica that names them."""
    from demo.data import first_frame, prompt_of

    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"{prompt_of(spec)}\n" for spec in specs))
    if task == "t2v":
        return {"--prompts": [prompts]}
    images = [folder / f"first_{index}.png" for index in range(len(specs))]
    for spec, image in zip(specs, images, strict=True):
        first_frame(spec, IMAGE_SIZE, FRAMES).save(image)
    return {"--prompts": [prompts], "--image_path": images}


def note_seconds(name: str, seconds: float, path: Path = TIMES) -> None:
    """Put the seconds of a calibration into the table of all of them."""
    times = json.loads(path.read_text()) if path.exists() else {}
    times[name] = {"samples": CALIBRATIONS[name].samples, "cpu_seconds": round(seconds, 1)}
    ordered = (f"{json.dumps(each)}: {json.dumps(times[each])}" for each in CALIBRATIONS if each in times)
    write_text(path, "{\n" + ",\n".join(ordered) + "\n}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(CALIBRATIONS), metavar="NAME", help=", ".join(CALIBRATIONS))
    for name in parser.parse_args(arguments).names:
        note_seconds(name, calibrate(CALIBRATIONS[name], GRAPHS / f"{name}.json"))


if __name__ == "__main__":
    main()
