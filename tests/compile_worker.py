"""Run by test_compile.py with compilation on: prints, as JSON, what compiling the blocks did to a cached run.

usage: compile_worker.py TREE CHECKPOINT
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


def main():
    torch.set_num_threads(1)
    kit.initialize_sequence_parallel()
    pipe = kit.HunyuanVideo_1_5_Pipeline.create_pipeline(sys.argv[2], "480p_t2v")
    state = InferState(enable_cache=True, cache_type="lemica", lemica_mask=MASK)
    pipe.apply_infer_optimization(state)
    eager = pipe(**REQUEST, **OPTIONS).videos
    counters.clear()

    graphs = []
    original = pipe.denoise
    note = lambda *_: graphs.append(counters["stats"]["unique_graphs"])  # noqa: E731
    pipe.denoise = lambda inputs, clock: original(inputs, clock, on_step=note)
    pipe.apply_infer_optimization(dataclasses.replace(state, enable_torch_compile=True))
    compiled = pipe(**REQUEST, **OPTIONS).videos
    again = pipe(**REQUEST, **OPTIONS).videos
    print(
        json.dumps(
            dict(
                largest_difference=(compiled - eager).abs().max().item(),
                repeatable=torch.equal(compiled, again),
                graphs_after_each_step=graphs,
                graph_breaks=list(counters["graph_break"]),
            )
        )
    )


if __name__ == "__main__":
    main()
