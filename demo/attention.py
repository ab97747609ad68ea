"""Upstream's joint attention through PyTorch's fused kernel: for training, and for many small runs on a CPU.

Without flash-attention upstream calls flex_attention, which has no backward pass on a CPU and, uncompiled, is slow.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from hyvideo.models.transformers import hunyuanvideo_1_5_transformer
from torch import Tensor


def joint_attention(query, key, value, img_q_len, img_kv_len, text_mask: Tensor | None = None, **_) -> Tensor:
    """Attention of image and text tokens to all image tokens and all valid text tokens.

    Args:
        query, key, value: pairs (image, text) of tensors (B, L, heads, channels a head).
        text_mask: (B, text tokens), nonzero where a token is valid; None: all are.

    Returns (B, image + text tokens, hidden). Equal to upstream's on valid tokens; nothing reads the others.
    """
    joined = [torch.cat(pair, dim=1).transpose(1, 2) for pair in (query, key, value)]
    mask = None
    if text_mask is not None:
        mask = F.pad(text_mask.bool(), (img_q_len, 0), value=True)[:, None, None]
    return F.scaled_dot_product_attention(*joined, attn_mask=mask).transpose(1, 2).flatten(2)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, upstream's transformers use `joint_attention`; sequence parallelism is not supported."""
    upstreams = hunyuanvideo_1_5_transformer.parallel_attention
    hunyuanvideo_1_5_transformer.parallel_attention = joint_attention
    try:
        yield
    finally:
        hunyuanvideo_1_5_transformer.parallel_attention = upstreams
