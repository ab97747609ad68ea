"""The kit's side of demo/framework.py: its videos of some pairs, uncached and by every mask of a folder.

    python -m demo.framework_kit TASK FOLDER PAIR...       # takes FOLDER/NAME.json, masks; writes FOLDER/PAIR.npz

For a process of its own, without the newer diffusers and transformers: under transformers 5 the kit's text encoder
takes the demo's tokenizer for another, and its embeddings are not the prompt's.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline, initialize_sequence_parallel

from demo.attention import fused_attention
from demo.calibrations import CHECKPOINT
from demo.framework import UNCACHED
from demo.methods import Method
from demo.pairs import Batch, Pair
from lemica.masks import read_mask


def write_videos(task: str, folder: Path, pairs: Sequence[int]) -> None:
    """Write a file per pair with frames (F, H, W, 3) in [0, 1] by the name of the mask."""
    masks = {path.stem: read_mask(path) for path in sorted(folder.glob("*.json"))}
    num_steps = next(iter(masks.values())).num_steps
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(CHECKPOINT), f"480p_{task}")
    pipe.set_progress_bar_config(disable=True)
    for index in pairs:
        batch = Batch([Pair(pipe, index)])
        videos = {name: batch.videos(Method(name, mask))[0] for name, mask in masks.items()}
        np.savez(folder / f"{index}.npz", **videos, **{UNCACHED: batch.reference(num_steps)[0]})


if __name__ == "__main__":
    torch.set_num_threads(1)
    initialize_sequence_parallel()
    with fused_attention(), torch.no_grad():
        write_videos(sys.argv[1], Path(sys.argv[2]), [int(index) for index in sys.argv[3:]])
