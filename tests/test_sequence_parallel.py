"""Two ranks on gloo give what one rank gives, to the bit; a reused step has one collective."""

import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, clean_environment

WORKER = REPOSITORY / "tests" / "sequence_parallel_worker.py"
CASES = ("even", "uneven", "image")


@pytest.fixture(scope="module")
def results(tree, checkpoint, tmp_path_factory):
    """What the ranks of each world size saved: latents by case, and a trace of collectives and cache sizes."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for ranks in (1, 2):
        command = [*launcher, f"--nproc_per_node={ranks}", WORKER, tree, checkpoint, folder / str(ranks)]
        done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return {ranks: [torch.load(folder / f"{ranks}.{rank}") for rank in range(ranks)] for ranks in (1, 2)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mask", ["uncached", "cached", "output", "velocity"])
def test_two_ranks_equal_one_to_the_bit(results, case, mask):
    one = results[1][0][case][mask]["latents"]
    assert all(torch.equal(one, rank[case][mask]["latents"]) for rank in results[2])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_reused_step_has_one_collective(results, case, rank):
    collectives = results[2][rank][case]["cached"]["collectives"]
    runs = results[2][rank][case]["cached"]["mask"]
    assert [count for count, computed in zip(collectives, runs, strict=True) if not computed] == [1, 1]
    assert all(count > 1 for count, computed in zip(collectives, runs, strict=True) if computed)


@pytest.mark.parametrize("case", CASES)
def test_each_rank_holds_its_shard_only(results, case):
    whole = results[1][0][case]["cached"]["held_tokens"]
    assert [rank[case]["cached"]["held_tokens"] for rank in results[2]] == [(whole + 1) // 2, whole // 2]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "expected"), [("output", [1, 1]), ("velocity", [0, 0])])
def test_collectives_by_kind(results, case, kind, expected):
    assert all(rank[case][kind]["collectives"][1:3] == expected for rank in results[2])
