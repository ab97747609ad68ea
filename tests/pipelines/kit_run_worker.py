"""One run of the kit on the demo checkpoint, written to a file: its inputs, what some forwards took and gave, its end.

And a small calibration by the kit: the error graph of the steps and samples that are named below.

    python kit_run_worker.py TASK PAIR OUTPUT

For a process of its own, without the newer diffusers and transformers: under transformers 5 the kit's text encoder
takes the demo's tokenizer for another, and its embeddings are not the prompt's.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline, initialize_sequence_parallel

from demo.attention import fused_attention
from demo.calibrations import CHECKPOINT, Calibration, calibrate
from demo.data import prompt_of
from demo.pairs import FIRST_SEED, Pair
from lemica.planning.graph import ErrorGraph, read_graph

NUM_STEPS = 50
# Forwards whose arguments and output are kept.
NOTED_STEPS = (0, 1, 10, 25, 40, 49)
FEW_STEPS = 8


def kit_run(task: str, index: int) -> dict[str, Any]:
    """Everything about the run of one pair of demo.pairs: tensors, the prompt, the picture or None."""
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(CHECKPOINT), f"480p_{task}")
    pipe.set_progress_bar_config(disable=True)
    pair = Pair(pipe, index)
    inputs = pair.inputs(NUM_STEPS)
    calls: list[Mapping[str, Any]] = []
    pipe.transformer.register_forward_hook(
        lambda _module, _args, arguments, output: calls.append(arguments | {"velocity": output[0]}), with_kwargs=True
    )
    with fused_attention():
        latents = pipe.denoise(inputs)
    noted = ("hidden_states", "timestep", "velocity")
    conditions = ("text_states", "encoder_attention_mask", "vision_states")
    return dict(
        prompt=prompt_of(pair.spec),
        image=pair.image,
        seed=FIRST_SEED + index,
        sigmas=inputs.scheduler.sigmas,
        **{name: inputs.transformer_kwargs[name] for name in conditions},
        forwards=[{name: calls[step][name] for name in noted} for step in NOTED_STEPS],
        latents=latents,
        frames=pipe.decode(latents),
    )


def kit_graph(task: str) -> ErrorGraph:
    """A calibration of few steps on one sample, as demo.calibrations makes its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "few.json")
        calibrate(Calibration(task, FEW_STEPS, samples=1), path)
        return read_graph(path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    initialize_sequence_parallel()
    chosen, pair_index, output_file = sys.argv[1:]
    with torch.no_grad():
        torch.save(kit_run(chosen, int(pair_index)) | {"graph": kit_graph(chosen)}, output_file)
