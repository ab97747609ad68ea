"""Run by test_compile.py with compilation on: prints, as JSON, what compiling the blocks did to cached runs.

usage: compile_worker.py TREE CHECKPOINT DEEPER_CHECKPOINT
"""

import dataclasses
import json
import sys

sys.path.insert(0, sys.argv[1])

import torch
from hyvideo.commons.infer_state import InferState
from hyvideo.pipelines import hunyuan_video_pipeline as kit
from torch._dynamo.utils import counters

MASK = (True, True, False, False, True, True)
REQUEST = dict(prompt="a star", aspect_ratio="1:1", video_length=1, num_inference_steps=6, seed=3)
OPTIONS = dict(enable_sr=False, prompt_rewrite=False, output_type="latent")


def cached_run(checkpoint):
    """Eager and compiled videos of one model, and the number of graphs after each step of the first compiled run."""
    pipe = kit.HunyuanVideo_1_5_Pipeline.create_pipeline(checkpoint, "480p_t2v")
    state = InferState(enable_cache=True, cache_type="lemica", lemica_mask=MASK)
    pipe.apply_infer_optimization(state)
    eager = pipe(**REQUEST, **OPTIONS).videos
    graphs = []
    original = pipe.denoise
    note = lambda *_: graphs.append(counters["stats"]["unique_graphs"])  # noqa: E731
    pipe.denoise = lambda inputs, clock: original(inputs, clock, on_step=note)
    pipe.apply_infer_optimization(dataclasses.replace(state, enable_torch_compile=True))
    compiled = pipe(**REQUEST, **OPTIONS).videos
    again = pipe(**REQUEST, **OPTIONS).videos
    return dict(
        blocks=len(pipe.transformer.double_blocks),
        largest_difference=(compiled - eager).abs().max().item(),
        repeatable=torch.equal(compiled, again),
        graphs_after_each_step=graphs,
    )


def main():
    torch.set_num_threads(1)
    kit.initialize_sequence_parallel()
    counters.clear()
    runs = [cached_run(checkpoint) for checkpoint in sys.argv[2:]]
    print(json.dumps(dict(runs=runs, graph_breaks=list(counters["graph_break"]), limits=limits_reached())))


def limits_reached():
    """Where dynamo gave up compiling anew, and went on without compiling."""
    return [reason for kind in counters.values() for reason in kind if "recompile_limit" in str(reason)]


if __name__ == "__main__":
    main()
