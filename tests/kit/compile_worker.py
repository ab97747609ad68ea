"""Run by test_compile.py with compilation on: prints, as JSON, what compiling the blocks did to a cached run.

usage: compile_worker.py CHECKPOINT BACKEND
"""

import dataclasses
import functools
import json
import sys

import torch
from hyvideo.commons.infer_state import InferState, Mask
from hyvideo.models.transformers import hunyuanvideo_1_5_transformer
from hyvideo.pipelines import hunyuan_video_pipeline as kit
from torch._dynamo.utils import counters

from demo.attention import joint_attention

MASK = Mask((True, False, True))
REQUEST = dict(prompt="a star", aspect_ratio="1:1", video_length=1, num_inference_steps=3, seed=3)
OPTIONS = dict(enable_sr=False, prompt_rewrite=False, output_type="latent")


def cached_run(checkpoint):
    """Eager and compiled videos, and the number of graphs after each step of the compiled runs."""
    pipe = kit.HunyuanVideo_1_5_Pipeline.create_pipeline(checkpoint, "480p_t2v")
    state = InferState(enable_cache=True, cache_type="lemica", lemica_mask=MASK)
    pipe.apply_infer_optimization(state)
    eager = pipe(**REQUEST, **OPTIONS).videos
    graphs = []
    note_progress(graphs)
    pipe.apply_infer_optimization(dataclasses.replace(state, enable_torch_compile=True))
    compiled = pipe(**REQUEST, **OPTIONS).videos
    again = pipe(**REQUEST, **OPTIONS).videos
    return dict(
        blocks=len(pipe.transformer.double_blocks),
        largest_difference=(compiled - eager).abs().max().item(),
        repeatable=torch.equal(compiled, again),
        graphs_after_each_step=graphs,
        graph_breaks=list(counters["graph_break"]),
        limits=limits_reached(),
    )


def note_progress(graphs):
    """From now on the number of compiled graphs joins `graphs` at the end of every step."""
    step = kit.FlowMatchDiscreteScheduler.step

    def noting(scheduler, *args, **kwargs):
        graphs.append(counters["stats"]["unique_graphs"])
        return step(scheduler, *args, **kwargs)

    kit.FlowMatchDiscreteScheduler.step = noting


def limits_reached():
    """Where dynamo gave up compiling anew, and went on without compiling."""
    return [reason for kind in counters.values() for reason in kind if "recompile_limit" in str(reason)]


def main(checkpoint, backend):
    torch.set_num_threads(1)
    # The same graphs whatever becomes of them; inductor takes ten times as long.
    torch.compile = functools.partial(torch.compile, backend=backend)
    kit.initialize_sequence_parallel()
    # Outside of the graphs, as upstream's is, which would be compiled on its own.
    hunyuanvideo_1_5_transformer.parallel_attention = torch.compiler.disable(joint_attention)
    counters.clear()
    print(json.dumps(cached_run(checkpoint)))


if __name__ == "__main__":
    main(*sys.argv[1:])
