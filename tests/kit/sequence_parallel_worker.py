"""Run by torchrun from test_sequence_parallel.py: generates with and without reuse, every rank saves what happened.

usage: sequence_parallel_worker.py CHECKPOINT OUTPUT
"""

import os
import sys
from itertools import pairwise

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from hyvideo.commons.infer_state import InferState, Mask
from hyvideo.pipelines import hunyuan_video_pipeline as kit
from PIL import Image
from torch import distributed as dist

COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "reduce_scatter_tensor",
    "scatter",
)
STEPS = (True, True, False, False, True)
# Image tokens of both ranks: as many, one more on the first, and with a picture before them.
CASES = {
    "even": ("480p_t2v", dict(aspect_ratio="1:1", video_length=1)),
    "uneven": ("480p_t2v", dict(aspect_ratio="9:7", video_length=1)),
    "image": ("480p_i2v", dict(aspect_ratio="1:1", video_length=5, reference_image=Image.linear_gradient("L"))),
}
RUNS = {
    "uncached": None,
    "residual": Mask(STEPS, "residual", rule="damped"),
    "velocity": Mask(STEPS, "velocity", rule="damped"),
}


def generate(pipe, case, mask):
    """Latents of one request, as both sides of the comparison make them."""
    pipe.infer_state = InferState(enable_cache=mask is not None, cache_type="lemica", lemica_mask=mask)
    _, request = CASES[case]
    if "reference_image" in request:
        request = request | {"reference_image": request["reference_image"].convert("RGB")}
    settings = dict(num_inference_steps=len(STEPS), enable_sr=False, prompt_rewrite=False, seed=3)
    return pipe(prompt="a red circle moves left", output_type="latent", **settings, **request).videos


class MeasuredCache(kit.StepCache):
    """Remembers how many tokens were held."""

    held_tokens = 0

    def compute(self, step, inputs):
        result = super().compute(step, inputs)
        for residual in self.kept:
            assert residual.untyped_storage().nbytes() == residual.nbytes
            MeasuredCache.held_tokens = residual.shape[1]
        return result


class CountingStopwatch(kit.Stopwatch):
    """Notes at both ends of every step how many collectives there were, in the cache and around it."""

    at_marks: list

    def mark(self):
        super().mark()
        CountingStopwatch.at_marks.append(sum(counts.values()))


counts = dict.fromkeys(COLLECTIVES, 0)
depth = 0


def counting(name):
    original = getattr(dist, name)

    def counted(*args, **kwargs):
        # An object collective is made of others: only the outermost call counts.
        global depth
        counts[name] += depth == 0
        depth += 1
        try:
            return original(*args, **kwargs)
        finally:
            depth -= 1

    return counted


def traced(pipe, case, mask):
    CountingStopwatch.at_marks = []
    latents = generate(pipe, case, mask)
    collectives = [after - before for before, after in pairwise(CountingStopwatch.at_marks)]
    return dict(latents=latents, collectives=collectives, held_tokens=MeasuredCache.held_tokens)


def main(checkpoint, output):
    torch.set_num_threads(1)
    kit.initialize_sequence_parallel()
    kit.StepCache, kit.Stopwatch = MeasuredCache, CountingStopwatch
    for name in COLLECTIVES:
        setattr(dist, name, counting(name))
    versions = {version for version, _ in CASES.values()}
    pipes = {version: kit.HunyuanVideo_1_5_Pipeline.create_pipeline(checkpoint, version) for version in versions}
    results = {
        case: {run: traced(pipes[version], case, mask) for run, mask in RUNS.items()}
        for case, (version, _) in CASES.items()
    }
    torch.save(results, f"{output}.{os.environ['RANK']}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
