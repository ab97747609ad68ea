"""Run by torchrun from test_sequence_parallel.py: generates with and without reuse, every rank saves what happened.

usage: sequence_parallel_worker.py TREE CHECKPOINT OUTPUT
"""

import os
import sys
from itertools import pairwise

os.environ["TORCHDYNAMO_DISABLE"] = "1"
tree, checkpoint, output = sys.argv[1:]
sys.path.insert(0, tree)

import numpy as np
import torch
from hyvideo.commons.infer_state import InferState
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
MASK = (True, False, False, True)


class MeasuredCache(kit.StepCache):
    """Remembers how many tokens were held."""

    held_tokens = 0

    def compute(self, inputs, keep):
        result = super().compute(inputs, keep)
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


def generate(pipe, mask, reuse="residual", forecast="hold", **request):
    CountingStopwatch.at_marks = []
    pipe.infer_state = InferState(
        enable_cache=mask is not None,
        cache_type="lemica",
        lemica_mask=mask,
        lemica_reuse=reuse,
        lemica_forecast=forecast,
    )
    settings = dict(num_inference_steps=len(MASK), enable_sr=False, prompt_rewrite=False, seed=3, output_type="latent")
    latents = pipe(prompt="a red circle moves left", **settings, **request).videos
    collectives = [after - before for before, after in pairwise(CountingStopwatch.at_marks)]
    happened = dict(mask=mask, collectives=collectives, held_tokens=MeasuredCache.held_tokens)
    return happened | {"latents": latents}


def main():
    torch.set_num_threads(1)
    kit.initialize_sequence_parallel()
    kit.StepCache, kit.Stopwatch = MeasuredCache, CountingStopwatch
    for name in COLLECTIVES:
        setattr(dist, name, counting(name))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    cases = {
        "even": ("480p_t2v", dict(aspect_ratio="1:1", video_length=1)),
        "uneven": ("480p_t2v", dict(aspect_ratio="9:7", video_length=1)),
        "image": ("480p_i2v", dict(aspect_ratio="1:1", video_length=5, reference_image=image)),
    }
    results = {}
    for case, (version, request) in cases.items():
        pipe = kit.HunyuanVideo_1_5_Pipeline.create_pipeline(checkpoint, version)
        results[case] = {
            "uncached": generate(pipe, None, **request),
            "cached": generate(pipe, MASK, **request),
            "output": generate(pipe, MASK, "output", "linear-sigma", **request),
            "velocity": generate(pipe, MASK, "velocity", "linear-sigma", **request),
        }
    torch.save(results, f"{output}.{os.environ['RANK']}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
