"""Any diffusers pipeline, to calibrate: each sample is a call of it.

>>> graph = lemica.calibrate(pipe, [dict(prompt="a red circle", seed=0)], num_inference_steps=50)
>>> mask = lemica.plan(graph, budget=20)
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lemica.calibration.calibrate import Workload, calibrate_to
from lemica.calibration.edges import EXACT, FAST, work_for
from lemica.calibration.locks import Exchange
from lemica.calibration.once import Once
from lemica.calibration.replays import RunEnds, Sampling
from lemica.errors import Refused, refusing
from lemica.masks import Target
from lemica.planning.graph import ErrorGraph, read_graph
from lemica.reuse.hook import Interceptor, Run
from lemica.reuse.identity import class_name, denoisers_of, digest_of, target_of
from lemica.reuse.others import refuse_other_caches


def calibrate(
    pipe: Any,
    samples: Sequence[Mapping[str, Any]],
    num_inference_steps: int = 50,
    *,
    max_gap: int = 12,
    edges: str = "fast",
    output: str | os.PathLike | None = None,
    show_progress: bool = True,
) -> ErrorGraph | None:
    """Measure what each stretch of reused steps costs: the error graph of a pipeline and its sampler.

    Args:
        pipe: a diffusers pipeline, as it will be run: its scheduler and arithmetic belong to the graph.
        samples: keyword arguments of one call of the pipeline each, and ``seed`` for its noise (default 0). All calls
            have the same number of steps and begin with noise.
        num_inference_steps: as in the pipeline's call.
        max_gap: the longest gap D to measure; at most one less than the steps.
        edges: "fast" measures where a stretch ends and costs about 2 runs per sample; "exact" measures the result, as
            LeMiCa (arXiv 2511.00090) does, and costs 210 runs at 50 steps and gaps to 12.
        output: a file for the graph. What is measured is kept beside it, so that the same call goes on after an
            interruption.
        show_progress: a progress bar, and the cost before it.

    Under torchrun the ranks share the samples; give `output` in a folder that all see. Rank 0 gets the graph, the
    others None where it is not done yet.

    Texts and images are encoded once per sample, and nothing is decoded. Raises ``lemica.errors.Refused`` for
    samples that cannot be calibrated, and where `output` is there already or was begun with others.

    Example:
        >>> samples = [dict(prompt=prompt, seed=0) for prompt in ("a red circle", "a blue square")]
        >>> graph = lemica.calibrate(pipe, samples, num_inference_steps=50, output="graph.json")
    """
    if not samples or isinstance(samples, Mapping):
        raise Refused("no samples: give a list of at least one dict(prompt=..., seed=0)")
    if edges not in (FAST, EXACT):
        raise Refused(f'edges are "{FAST}" or "{EXACT}", got {edges!r:.60}')
    with refusing(ValueError):
        refuse_other_caches(denoisers_of(pipe))
    model = PipelineModel(pipe, num_inference_steps)
    with quiet(pipe):
        num_steps = model.num_steps(samples[0])
        if num_steps < 3:
            raise Refused(f"the scheduler makes {num_steps} steps: calibrate with at least 3")
        gap = min(max_gap, num_steps - 1)
        work = Workload(list(samples), work_for(edges, num_steps, gap), edges, num_steps, gap)
        settings = model.settings(samples) | {"edges": edges, "max_gap": gap}
        with nullcontext(output) if output else tempfile.TemporaryDirectory() as place:
            path = Path(place) if output else Path(place) / "graph.json"
            calibrate_to(path, work, model, settings, show_progress, is_kept=bool(output))
            # Under torchrun rank 0 alone writes it, when all are done.
            return read_graph(path) if path.exists() else None


class PipelineModel:
    """A pipeline whose calls are samples.

    Args:
        pipe: the diffusers pipeline.
        num_inference_steps: as in its call.
    """

    def __init__(self, pipe: Any, num_inference_steps: int):
        self.pipe, self.num_inference_steps = pipe, num_inference_steps
        self._prepared: tuple[Mapping[str, Any], Sampling] | None = None

    def prepare(self, sample: Mapping[str, Any]) -> tuple[Sampling, Target]:
        """What denoises one sample, and what it belongs to but for the noise levels."""
        # The same again for the same sample, so that what it has encoded is encoded once.
        if self._prepared is None or self._prepared[0] is not sample:
            self._prepared = sample, self._sampling(sample)
        return self._prepared[1], target_of(self.pipe)

    def _sampling(self, sample: Mapping[str, Any]) -> Sampling:
        if "generator" in sample:
            raise Refused("a sample has a seed, not a generator: every replay begins with the same noise")
        if "num_inference_steps" in sample:
            raise Refused("a sample has num_inference_steps: leave it out, all have those of the calibration")
        once = Once(self.pipe)
        call = {name: value for name, value in sample.items() if name != "seed"}

        def start() -> None:
            generator = torch.Generator().manual_seed(sample.get("seed", 0))
            with once.calling():
                self.pipe(**call, generator=generator, num_inference_steps=self.num_inference_steps)

        return Sampling(start, denoisers_of(self.pipe), self.pipe.scheduler)

    def num_steps(self, sample: Mapping[str, Any]) -> int:
        """The number of the scheduler's steps: more than ``num_inference_steps`` for Heun's and some others."""
        counting = _Counting()
        # The pipeline says in its own words what is wrong with an argument.
        with refusing(ValueError, TypeError, hint=f" (said by {type(self.pipe).__name__}'s call)"):
            self.prepare(sample)[0].obeying(counting)
        if counting.num_steps is None:
            raise Refused(f"{type(self.pipe).__name__} did not call its scheduler's set_timesteps")
        return counting.num_steps

    def settings(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What decides the numbers, for the folder of unfinished work."""
        target = target_of(self.pipe)
        return {
            "pipeline": target.model,
            "config": target.config,
            "scheduler": f"{class_name(self.pipe.scheduler)} {digest_of([self.pipe.scheduler])}",
            "dtype": target.dtype,
            "num_inference_steps": self.num_inference_steps,
            "prompts": f"of digest {_digest(samples)}",
        }

    def on_device(self) -> nullcontext:
        """Replays end before a pipeline would move its denoiser away."""
        return nullcontext()

    @contextmanager
    def ranks_together(self) -> Iterator[tuple[int, int, Exchange]]:
        """This rank, the number of ranks, and how they exchange values, by torch.distributed where it is launched."""
        from torch import distributed as dist

        launched = "RANK" in os.environ and dist.is_available()
        if not (launched or (dist.is_available() and dist.is_initialized())):
            yield 0, 1, lambda value: [value]
            return
        joined_before = dist.is_initialized()
        if not joined_before:
            dist.init_process_group("gloo")

        def exchange(value: Any) -> list[Any]:
            values = [None] * dist.get_world_size()
            dist.all_gather_object(values, value)
            return values

        yield dist.get_rank(), dist.get_world_size(), exchange
        dist.barrier()
        if not joined_before:
            dist.destroy_process_group()


class _Counting(Interceptor):
    """Looks how many steps a run has, and ends it before the first."""

    num_steps: int | None = None

    def begin_run(self, run: Run, scheduler: Any) -> None:
        self.num_steps = run.num_steps

    def call(self, call: Any) -> Any:
        raise RunEnds


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """No progress bar of the pipeline's for each replay; offloaded models go back in the end."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe._progress_bar_config = {**(before or {}), "disable": True}
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
        getattr(pipe, "maybe_free_model_hooks", lambda: None)()


def _digest(samples: Sequence[Mapping[str, Any]]) -> str:
    """What tells these samples from others; tensors and pictures count by what is in them."""
    digest = hashlib.sha256()
    for sample in samples:
        for name, value in sorted(sample.items()):
            digest.update(name.encode())
            digest.update(_content(value))
    return digest.hexdigest()[:16]


def _content(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().double().numpy().tobytes()
    return np.asarray(value).tobytes() if hasattr(value, "__array_interface__") else repr(value).encode()
