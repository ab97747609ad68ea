"""What the studies on pairs compare: a mask, or sampling with as few steps."""

from dataclasses import dataclass

from lemica.masks import Mask


@dataclass(frozen=True)
class Method:
    """One way to generate.

    Args:
        name: of the method.
        mask: the computed steps, what is kept and how it is used.
        sampler: whether to sample with as few steps instead, and reuse nothing.
    """

    name: str
    mask: Mask
    sampler: bool = False

    @property
    def key(self) -> str:
        """The method in words, unique in a study."""
        rule = "" if self.sampler else f", {self.mask.kept} + {self.mask.rule}"
        return f"{self.mask.num_steps} steps, B = {self.mask.budget}, {self.name}{rule}"
