"""Would a forecast gain from weighing the two branches of classifier-free guidance apart? Measured, not assumed.

    python scripts/measure_branches.py        # PYTHONPATH = a HunyuanVideo-1.5 tree with the kit, the kit, its scripts

A forecast that is linear in the kept velocities, with the same weights for both branches, commutes with guidance: kept
apart or guided, they give the same video. Only other weights for each branch can make a difference. For every reused
step of a planned mask, both are fitted to uncached runs of some prompts by least squares (weights of a branch sum to 1)
and judged on runs of other prompts: how much smaller is the root mean square error of the guided velocity?
"""

import argparse
import statistics
from pathlib import Path

import torch
from demo_attention import fused_attention
from demo_data import prompt_of, spec_of
from hyvideo.pipelines.hunyuan_video_pipeline import (
    HunyuanVideo_1_5_Pipeline,
    StepCache,
    initialize_sequence_parallel,
)
from torch import Tensor

from lemica.masks import read_mask
from lemica.moments import RIDGE
from lemica.replay import prepare

ASSETS = Path(__file__).resolve().parents[1] / "assets"
FIT, JUDGE = range(8), range(8, 16)


class VelocityRecorder(StepCache):
    """Keeps every step's velocity, both branches."""

    def __init__(self, transformer):
        super().__init__(transformer)
        self.recorded: list[Tensor] = []

    def compute(self, inputs, keep: bool) -> Tensor:
        velocity = super().compute(inputs, keep)
        self.recorded.append(velocity.double())
        return velocity


def velocities(pipe: HunyuanVideo_1_5_Pipeline, index: int, num_steps: int) -> Tensor:
    """(N, 2, elements) of one uncached run: what the negative and the positive branch add to the guided velocity."""
    spec = spec_of(index)
    inputs = prepare(
        pipe, prompt=prompt_of(spec), seed=0, num_steps=num_steps, aspect_ratio="1:1", video_length=9
    )  # fmt: skip
    recorder = VelocityRecorder(pipe.transformer)
    pipe.denoise(inputs, mask=(True,) * num_steps, cache=recorder)
    scale = pipe.guidance_scale
    branches = torch.stack(recorder.recorded).flatten(2)
    return branches * torch.tensor([1 - scale, scale]).double()[:, None]


def differences(runs: list[Tensor], step: int, sources: list[int], apart: bool) -> tuple[Tensor, Tensor]:
    """What a forecast at `step` can add to holding the newest of `sources`, (weights, elements), and what it shall."""
    *older, newest = sources
    seen = torch.cat([run - run[newest] for run in runs], dim=2)
    regressors = seen[older].flatten(0, 1) if apart else seen[older].sum(1)
    return regressors, seen[step].sum(0)


def fitted_weights(regressors: Tensor, wanted: Tensor) -> Tensor:
    gram = regressors @ regressors.T
    ridge = RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, regressors @ wanted)


def errors(fit: list[Tensor], judge: list[Tensor], mask, history: int) -> tuple[float, float]:
    """Root mean square errors over all reused steps on the runs to judge, with common weights and with two sets."""
    found = []
    for apart in (False, True):
        squares = []
        for step, computed in enumerate(mask.steps):
            sources = [earlier for earlier in range(step) if mask.steps[earlier]][-history:]
            if computed or len(sources) < 2:
                continue
            weights = fitted_weights(*differences(fit, step, sources, apart))
            regressors, wanted = differences(judge, step, sources, apart)
            squares.append((weights @ regressors - wanted).square().mean().item())
        found.append(statistics.fmean(squares) ** 0.5)
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, default=2, help="computed steps that a forecast reads (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    initialize_sequence_parallel()
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(ASSETS / "demo_checkpoint"), "480p_t2v")
    pipe.set_progress_bar_config(disable=True)
    with fused_attention(), torch.no_grad():
        fit, judge = ([velocities(pipe, index, 50) for index in split] for split in (FIT, JUDGE))
    print("| 50 steps, fitted to 8 runs, judged on 8 others | common weights | apart | error |\n|---|---|---|---|")
    for budget in (25, 20, 15, 10):
        mask = read_mask(ASSETS / "demo_masks" / f"minimax_fitted2_t2v_50_b{budget}.json")
        common, apart = errors(fit, judge, mask, options.history)
        print(f"| B = {budget} | {common:.4f} | {apart:.4f} | {apart / common - 1:+.1%} |")


if __name__ == "__main__":
    main()
