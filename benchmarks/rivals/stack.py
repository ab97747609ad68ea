"""The transformer's blocks as one module, which a rule may skip: what methods stand on that have no package."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.rivals.bench import Bench

# What a rule is given: the image tokens (1, tokens, width) before the blocks, the embedding of the time step, and what
# runs the blocks. It gives the image tokens after them.
Rule = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]


class Stack(torch.nn.Module):
    """All blocks, behind a rule."""

    def __init__(self, blocks: torch.nn.ModuleList, rule: Rule):
        super().__init__()
        self.blocks, self.rule = blocks, rule

    def forward(self, image: Tensor, text: Tensor, temb: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        # Behind the blocks the model reads the image tokens only.
        return self.rule(image, temb, lambda: self._run(image, text, temb, *others)), text

    def _run(self, image: Tensor, text: Tensor, *others: Any) -> Tensor:
        for block in self.blocks:
            image, text = block(image, text, *others)
        return image


@contextmanager
def behind(bench: Bench, rule: Rule) -> Iterator[None]:
    """Inside, the bench's transformer asks the rule."""
    transformer = bench.transformer
    blocks = transformer.transformer_blocks
    transformer.transformer_blocks = torch.nn.ModuleList([Stack(blocks, rule)])
    try:
        yield
    finally:
        transformer.transformer_blocks = blocks
