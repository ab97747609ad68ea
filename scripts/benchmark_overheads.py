"""Count and time what a run does besides computing blocks: upstream's own pipeline beside this kit's, in one process.

    PYTHONPATH=tests python scripts/benchmark_overheads.py                 # tables for text- and image-to-video

Both run the same request on the same tiny random models with offloading on, in turn, and give the same video to the
bit; the kit runs a second time with step caching. Counts hold for the real model too, seconds only for the tiny one.
"Host reads" are values and sizes that Python waits for (item, a tensor as a condition, indexing with a mask): on a GPU
each stops the host until the device has caught up. They are counted on a CPU, so some outside the loop are of tensors
that live there on any machine; those inside attention are left out, because the fused kernel has none. As in the tests,
tests/conftest.py makes a tree with the kit, and tests/upstream.py loads the released file beside it.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import conftest  # noqa: F401  before anything imports hyvideo: puts the tree with the kit first on the path
import torch
from demo_attention import fused_attention
from hyvideo.commons.infer_state import InferState
from hyvideo.pipelines.hunyuan_video_pipeline import (
    HunyuanVideo_1_5_Pipeline,
    Stopwatch,
    initialize_sequence_parallel,
)
from loguru import logger
from make_tiny_checkpoint import TinyConfig, write_checkpoint
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from upstream import upstream_twin

MODELS = {
    "text_encoder": "text encoder",
    "byt5_model": "glyph encoder",
    "vae": "VAE",
    "vision_encoder": "vision encoder",
    "transformer": "transformer",
}
PHASES = ("before the loop", "in the loop", "after the loop")
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class HostReads(TorchDispatchMode):
    """Calls `note` for every operation after which the host knows something of a tensor's values."""

    def __init__(self, note: Callable[[], None]):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = []
        if func is torch.ops.aten.index.Tensor:
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
        for _ in range(int(func in READS) + len(masks)):
            self.note()
        return func(*args, **(kwargs or {}))


class Watch:
    """Counts of one run, and the seconds inside and outside its denoising loop."""

    def __init__(self, pipe, num_steps: int):
        self.pipe, self.num_steps = pipe, num_steps
        self.counts: Counter[str] = Counter()
        self.loop: list[float] = []
        self.seconds: dict[str, float] = {}

    @property
    def phase(self) -> str:
        if not self.counts["transformer forwards"]:
            return PHASES[0]
        return PHASES[1 + (self.counts["scheduler steps"] == self.num_steps)]

    def note_read(self) -> None:
        self.counts[f"host reads {self.phase}"] += 1

    def _before(self, stack: ExitStack, owner: type, method: str, note: Callable) -> None:
        """Until `stack` ends, call `note` with the arguments before every call of a method."""
        original = getattr(owner, method)

        def wrapper(*args, **kwargs):
            note(*args)
            return original(*args, **kwargs)

        stack.enter_context(patch.object(owner, method, wrapper))

    def _count(self, stack: ExitStack, owner: type, method: str, name: str) -> None:
        self._before(stack, owner, method, lambda *_: self.counts.update([name]))

    @contextmanager
    def watching(self, reads: bool):
        """Inside, everything is counted; host reads, which slow the run down, only if asked for."""
        pipe, net = self.pipe, self.pipe.transformer
        names = {id(getattr(pipe, attribute)): name for attribute, name in MODELS.items()}

        def moved(model, *_):
            if id(model) in names:
                self.counts.update([f"moves of the {names[id(model)]}", "moves in all"])

        with ExitStack() as stack:
            self._before(stack, torch.nn.Module, "to", moved)
            for owner, method in ((type(net), "forward"), (type(pipe.scheduler), "step")):
                self._before(stack, owner, method, lambda *_: self.loop.append(time.perf_counter()))
            for owner, method, name in (
                (type(net), "forward", "transformer forwards"),
                (type(net.double_blocks[0]), "forward", "block forwards"),
                (type(net.txt_in), "forward", "text path runs"),
                (type(pipe.scheduler), "step", "scheduler steps"),
                (type(pipe.text_encoder), "encode", "text encoder runs"),
                (type(pipe.byt5_model), "forward", "glyph encoder runs"),
                (type(pipe.vision_encoder), "encode_images", "vision encoder runs"),
                (type(pipe.vae), "encode", "VAE encodings"),
                (type(pipe.vae), "decode", "VAE decodings"),
                (Stopwatch, "_wait", "waits of the run report's stopwatch"),
            ):
                self._count(stack, owner, method, name)
            if reads:
                for method in ("tolist", "cpu", "numpy"):
                    self._before(stack, torch.Tensor, method, lambda *_: self.note_read())
            start = time.perf_counter()
            with HostReads(self.note_read) if reads else nullcontext():
                yield
            inside = self.loop[-1] - self.loop[0]
            self.seconds = {"outside": time.perf_counter() - start - inside, "inside": inside}


def watched(pipe, request: dict, reads: bool) -> tuple[Watch, torch.Tensor]:
    """The watch of one run, and its video."""
    watch = Watch(pipe, request["num_inference_steps"])
    # Upstream prints what it is about to do.
    with redirect_stdout(None), watch.watching(reads):
        return watch, pipe(**request).videos


def compare(pipe, request: dict, budget: int, repeats: int) -> dict[str, dict[str, float]]:
    """Counts and median seconds of upstream, the kit, and the kit with `budget` computed steps."""
    twin = upstream_twin(pipe)
    twin.enable_offloading = pipe.enable_offloading = True
    cached = InferState(enable_cache=True, cache_type="lemica", lemica_step=budget)
    ways = {"upstream": (twin, None), "kit": (pipe, None), f"kit, B = {budget}": (pipe, cached)}

    def run(way: str, reads: bool):
        model, pipe.infer_state = ways[way]
        return watched(model, request, reads)

    # Also the warm-up.
    counted = {way: run(way, reads=True) for way in ways}
    if not torch.equal(counted["upstream"][1], counted["kit"][1]):
        raise RuntimeError("upstream and the kit gave different videos: their counts cannot be compared")
    timed = [{way: run(way, reads=False)[0] for way in ways} for _ in range(repeats)]
    for way, (watch, _) in counted.items():
        for where in ("outside", "inside"):
            seconds = statistics.median(repeat[way].seconds[where] for repeat in timed)
            watch.counts[f"seconds {where} the loop"] = round(seconds, 3)
    return {way: watch.counts for way, (watch, _) in counted.items()}


def print_table(title: str, figures: dict[str, dict[str, float]]) -> None:
    rows = [f"moves of the {name}" for name in MODELS.values()] + ["moves in all"]
    rows += ["text encoder runs", "glyph encoder runs", "vision encoder runs", "VAE encodings", "VAE decodings"]
    rows += ["scheduler steps", "block forwards", "text path runs", *(f"host reads {phase}" for phase in PHASES)]
    rows += ["waits of the run report's stopwatch", "seconds outside the loop", "seconds inside the loop"]
    print(f"\n| {title} | {' | '.join(figures)} |\n|---|{'---|' * len(figures)}")
    for row in rows:
        print(f"| {row} | {' | '.join(str(counts[row]) for counts in figures.values())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=["t2v", "i2v"], default=["t2v", "i2v"])
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (default: 50)")
    parser.add_argument("--budget", type=int, default=10, help="computed steps of the cached run (default: 10)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default: 5)")
    args = parser.parse_args()
    logger.remove()
    initialize_sequence_parallel()
    request = dict(prompt="a red circle moves left", aspect_ratio="16:9", video_length=5, seed=3)
    request |= dict(num_inference_steps=args.steps, enable_sr=False, prompt_rewrite=False)
    with tempfile.TemporaryDirectory() as folder, fused_attention():
        write_checkpoint(Path(folder), [f"480p_{task}" for task in args.tasks], TinyConfig(ideal_resolution="96p"))
        for task in args.tasks:
            pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(folder, f"480p_{task}")
            pipe.set_progress_bar_config(disable=True)
            image = {"reference_image": Image.linear_gradient("L").convert("RGB")} if task == "i2v" else {}
            figures = compare(pipe, request | image, args.budget, args.repeats)
            print_table(f"{task}, one run of {args.steps} steps", figures)


if __name__ == "__main__":
    main()
