"""L2P (arXiv 2604.26365): a step's output is a learned linear combination of all earlier ones, forecast ones included.

    F_t = sum over j < t of W[t, j] F_j

F is what leaves the model, a velocity for each branch of guidance; W is the same for both.
W is fitted by mean squared error on the true outputs of uncached runs, from W[t, t - 1] = 1 with Adam at a rate of
0.01 for 200 epochs. Each step's loss needs the outputs' inner products only.

`kept_only` is ours: what W can see at run time is known, so the weights are those of computed steps alone, by least
squares.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from benchmarks.rivals.bench import BRANCHES, Bench, Place
from benchmarks.rivals.trajectories import Trajectory

RATE, EPOCHS = 0.01, 200
RIDGE = 1e-6


def products(runs: Sequence[Trajectory]) -> Tensor:
    """Inner products (N, N) of the steps' outputs, mean over samples, branches and elements."""
    rows = [torch.stack([each.flatten() for each in run.velocities[branch]]) for run in runs for branch in BRANCHES]
    return torch.stack([row @ row.T / row.shape[1] for row in rows]).double().mean(0)


def fit(runs: Sequence[Trajectory]) -> Tensor:
    """W (N, N), zero from the diagonal on; the first step's row is zero."""
    gram = products(runs)
    num_steps = len(gram)
    earlier = torch.ones(num_steps, num_steps).tril(-1).double()
    weights = torch.diag(torch.ones(num_steps - 1), -1).double().requires_grad_()
    optimiser = torch.optim.Adam([weights], RATE)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            optimiser.zero_grad()
            used = weights * earlier
            # |F_t - sum W F|^2 by inner products.
            loss = (gram.diagonal() - 2 * (used * gram).sum(1) + (used @ gram * used).sum(1))[1:].mean()
            loss.backward()
            optimiser.step()
    return (weights * earlier).detach()


def kept_only(runs: Sequence[Trajectory], steps: Sequence[bool]) -> Tensor:
    """W (N, N) of a mask's computed steps alone."""
    gram = products(runs)
    weights = torch.zeros_like(gram)
    for step in range(1, len(steps)):
        known = [each for each in range(step) if steps[each]]
        left = gram[known][:, known]
        left = left + RIDGE * left.diagonal().mean() * torch.eye(len(known))
        weights[step, known] = torch.linalg.solve(left, gram[known, step])
    return weights


def l2p(bench: Bench, steps: Sequence[bool], weights: Tensor) -> AbstractContextManager[None]:
    """Inside, the bench's transformer has L2P on for one run."""
    compute = bench.velocity
    history: dict[str, list[Tensor]] = {branch: [] for branch in BRANCHES}

    def velocity(place: Place, branch: str) -> Tensor:
        known = history[branch]
        if steps[place.step]:
            known.append(compute(place, branch))
        else:
            row = weights[place.step, : place.step].float()
            known.append(torch.tensordot(row, torch.stack(known), 1))
        return known[-1]

    return bench.in_place_of("velocity", velocity)
