"""What one loading for many prompts saves: generate.py --prompts against as many single commands, on the demo model.

    python -m benchmarks.many assets/measurements/many.json

Both make the same videos, which are compared byte by byte. Seconds are of the whole commands, one process on one
thread, from the start of Python to its end.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.steps import provenance
from demo.calibrations import CHECKPOINT, FRAMES
from demo.data import prompt_of, spec_of
from lemica.files import write_text

VIDEOS = 16
TREE = Path(sys.prefix) / "HunyuanVideo-1.5"
COMMON = ("--resolution", "480p", "--model_path", str(CHECKPOINT), "--video_length", str(FRAMES), "--sr", "false")
COMMON += ("--aspect_ratio", "1:1", "--enable_cache", "true", "--cache_type", "lemica")


def generate(*arguments: object) -> float:
    """Seconds of a command; raises RuntimeError with what it said where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    command = [sys.executable, "-W", "ignore", "generate.py", *COMMON, *map(str, arguments)]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return time.perf_counter() - begin


def compare(budget: int, folder: Path) -> dict[str, float]:
    """Seconds per video of both ways, and how many videos are equal."""
    prompts = [prompt_of(spec_of(index, held_out=True)) for index in range(VIDEOS)]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    own = ("--lemica_step", budget)
    together = generate(*own, "--prompts", folder / "prompts.txt", "--output_path", folder / "together")
    videos = sorted((folder / "together").glob("*.mp4"))
    seconds, equal = [], 0
    for prompt, video in zip(prompts, videos, strict=True):
        seconds.append(generate(*own, "--prompt", prompt, "--output_path", folder / "alone.mp4"))
        equal += (folder / "alone.mp4").read_bytes() == video.read_bytes()
    return {"together": together / VIDEOS, "alone": sum(seconds) / VIDEOS, "equal": equal, "videos": VIDEOS}


def table(found: dict) -> Iterator[str]:
    """A Markdown table of what was found."""
    yield "| 16 prompts, 50 steps | seconds a video, one command each | one for all | the one / each | equal videos |"
    yield "|---|---|---|---|---|"
    for budget, row in found["budgets"].items():
        share = row["together"] / row["alone"]
        figures = f"{row['alone']:.1f} | {row['together']:.1f} | {share:.2f} | {row['equal']} of {row['videos']}"
        yield f"| B = {budget} | {figures} |"


def main(output: Path, budgets: Sequence[int] = (25, 10)) -> None:
    """Measure and write."""
    found = {}
    for budget in budgets:
        with tempfile.TemporaryDirectory() as folder:
            found[str(budget)] = compare(budget, Path(folder))
    result = {"budgets": found, **provenance()}
    write_text(output, json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
