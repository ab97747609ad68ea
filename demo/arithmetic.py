"""The arithmetic of a run: that of a GPU, bfloat16 autocast, on a CPU, too; or float32, where numbers are exact.

with arithmetic("bf16"):
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(folder, "480p_t2v")
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@contextmanager
def arithmetic(name: str) -> Iterator[None]:
    """Inside, pipelines are made that denoise in this arithmetic; they decode in float32, which adds nothing."""
    with patch.object(HunyuanVideo_1_5_Pipeline, "dtype_on", staticmethod(lambda _: DTYPES[name])):
        yield
