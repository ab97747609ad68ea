"""What can be evaluated: a model that makes samples, each by several methods."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lemica.calibration.locks import Exchange
from lemica.masks import Mask
from lemica.quality.evaluation import Request
from lemica.quality.wanted import Wanted

UNCACHED, NOISE_FLOOR = "no cache", "noise floor"


@dataclass(frozen=True)
class Method:
    """One way to make a sample.

    Args:
        name: for people.
        num_inference_steps: as in the call.
        steps: how many steps are computed, but for fallbacks.
        mask: which ones; None for all.
        moves_noise: whether the initial noise is moved by as much as rounding would.
    """

    name: str
    num_inference_steps: int
    steps: int
    mask: Mask | None = None
    moves_noise: bool = False

    @property
    def digest(self) -> str:
        """What tells this method from others of the same name."""
        mask = self.mask and [self.mask.steps, self.mask.kept, self.mask.weights]
        text = json.dumps([self.name, self.num_inference_steps, mask, self.moves_noise])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Made:
    """What a method made of a sample.

    Args:
        frames: (F, H, W, 3), float RGB in [0, 1], of all pictures or videos of the call; (0, 0, 0, 3) on a rank that
            has helped to make them and does not hold them.
        seconds: of the whole call, texts and decoding included.
        steps: steps on which the denoiser ran.
        fallbacks: denoiser calls that were computed though the mask reuses.
        dit_seconds: of the denoising loop; None where the model cannot tell.
    """

    frames: np.ndarray
    seconds: float
    steps: int
    fallbacks: int = 0
    dit_seconds: float | None = None


@dataclass(frozen=True)
class Tried:
    """What a model knows of its methods before it makes anything.

    Args:
        num_steps: steps of the sampler: more than ``num_inference_steps`` for one of second order.
        masks: what was wanted, by name, with weights.
        can_move_noise: whether the initial noise can be moved.
        notes: what to know about single masks.
    """

    num_steps: int
    masks: Mapping[str, Mask]
    can_move_noise: bool
    notes: tuple[str, ...] = ()


class Model(Protocol):
    """What can be evaluated.

    Args:
        num_inference_steps: steps that are asked for.
        group_size: how many ranks make a sample together.
    """

    num_inference_steps: int
    group_size: int

    def ranks_together(self) -> AbstractContextManager[tuple[int, int, Exchange]]:
        """This rank, the number of ranks, and how they exchange values; from then on groups work alone."""

    def share(self, value: Any) -> Any:
        """The value of the first rank of this rank's group, on every rank of it."""

    def ready(self) -> AbstractContextManager:
        """Around all runs."""

    def settings(self, samples: Sequence[Any]) -> dict[str, Any]:
        """What decides the numbers but for the methods: results of other settings are not gone on with."""

    def about(self) -> dict[str, Any]:
        """What the figures are of, for people."""

    def request(self, sample: Any) -> Request:
        """A sample in words."""

    def refuse(self, samples: Sequence[Any], wanted: Mapping[str, Wanted], fewer_steps: bool) -> None:
        """Raises Refused for samples, masks and budgets that can be seen not to fit before anything runs."""

    def try_out(self, sample: Any, wanted: Mapping[str, Wanted]) -> Tried:
        """The masks that are wanted; raises Refused for those that do not fit. May take a short run."""

    def warm_up(self, sample: Any) -> None:
        """Before the first result is made: load what is not loaded, and do what is slow in a first run."""

    def make(self, sample: Any, method: Method) -> Made:
        """The decoded result of one sample."""


def methods_of(num_inference_steps: int, tried: Tried, fewer_steps: bool) -> list[Method]:
    """All methods, the uncached one first.

    Args:
        num_inference_steps: as in the call.
        tried: what the model knows of its masks.
        fewer_steps: whether to sample with as few steps as each mask computes, too.
    """
    uncached = Method(UNCACHED, num_inference_steps, tried.num_steps)
    methods = [
        uncached,
        *(Method(name, num_inference_steps, mask.budget, mask) for name, mask in tried.masks.items()),
    ]
    if fewer_steps:
        counts = sorted({mask.budget for mask in tried.masks.values()} - {tried.num_steps}, reverse=True)
        # A sampler of second order has more steps than it is asked for.
        share = num_inference_steps / tried.num_steps
        methods += [Method(fewer(count), max(1, round(count * share)), count) for count in counts]
    if tried.can_move_noise:
        methods.append(Method(NOISE_FLOOR, num_inference_steps, tried.num_steps, moves_noise=True))
    return methods


def fewer(count: int) -> str:
    """The name of sampling with so many steps.

    >>> fewer(25)
    'fewer steps (25)'
    """
    return f"fewer steps ({count})"
