"""What each method calibrates, all on the same samples; made when it is first asked for."""

from collections.abc import Sequence
from functools import cache, cached_property

import torch
from torch import Tensor

from benchmarks.rivals.bench import BRANCHES, Bench
from benchmarks.rivals.papers import dpcache, l2p, mean_cache, teacache
from benchmarks.rivals.trajectories import Trajectory, trajectories
from demo.calibrations import calibration
from lemica.planning.graph import ErrorGraph

NUM_STEPS = 50


class Fitted:
    """Of a bench, for runs of 50 steps."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.dpcache_costs = cache(self._dpcache_costs)
        self.l2p_kept_only = cache(self._l2p_kept_only)

    @cached_property
    def runs(self) -> list[Trajectory]:
        """Uncached runs of the calibration samples."""
        return trajectories(self.bench, NUM_STEPS)

    @cached_property
    def graph(self) -> ErrorGraph:
        """LeMiCa's error graph of the same samples, in the bench's arithmetic."""
        return calibration("t2v_50_bf16" if self.bench.dtype == torch.bfloat16 else "t2v_50")

    @cached_property
    def mag_ratios(self) -> list[float]:
        """MagCache's: how the blocks' residual grows from step to step, mean over tokens, branches and samples.

        What its calibration mode prints for one run and branch, which takes one list for both.
        """
        norms = torch.stack(
            [
                torch.stack([(after - before).norm(dim=-1).flatten() for before, after in zip(*kept, strict=True)])
                for run in self.runs
                for kept in ((run.inputs[branch], run.outputs[branch]) for branch in BRANCHES)
            ]
        )
        return [1.0, *(norms[:, 1:] / norms[:, :-1]).mean(dim=(0, 2)).tolist()]

    @cached_property
    def teacache_polynomial(self) -> list[float]:
        """TeaCache's polynomial."""
        return teacache.fit(self.runs)

    @cached_property
    def l2p_weights(self) -> Tensor:
        """L2P's weights."""
        return l2p.fit(self.runs)

    def _l2p_kept_only(self, steps: Sequence[bool]) -> Tensor:
        return l2p.kept_only(self.runs, steps)

    @cached_property
    def mean_cache_costs(self) -> dict[tuple[int, int], tuple[float, int]]:
        """MeanCache's edges."""
        return mean_cache.edge_costs(self.runs)

    def _dpcache_costs(self, order: int):
        return dpcache.costs(self.runs, order)
