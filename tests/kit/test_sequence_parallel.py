"""Two ranks on gloo give what one rank gives, to the bit; a reused step has one collective at most."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import clean_environment
from sequence_parallel_worker import CASES, RUNS, STEPS, generate

WORKER = Path(__file__).with_name("sequence_parallel_worker.py")


@pytest.fixture(scope="module")
def ranks(checkpoint, tmp_path_factory):
    """What the two ranks saved: latents by case and run, with a trace of collectives and cache sizes."""
    output = tmp_path_factory.mktemp("ranks") / "rank"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, WORKER, checkpoint, output], env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{output}.{rank}") for rank in range(2)]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_to_the_bit(load_pipeline, ranks, case, run):
    alone = generate(load_pipeline(CASES[case][0]), case, RUNS[run])
    assert all(torch.equal(alone, rank[case][run]["latents"]) for rank in ranks)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("run", "expected"), [("residual", 1), ("velocity", 0)])
def test_a_reused_step_has_one_collective_with_residuals_and_none_with_velocities(ranks, case, run, expected):
    for rank in ranks:
        collectives = dict(enumerate(rank[case][run]["collectives"]))
        reused = [count for step, count in collectives.items() if not STEPS[step]]
        assert reused == [expected, expected]
        assert all(count > 1 for step, count in collectives.items() if STEPS[step])


@pytest.mark.parametrize("case", CASES)
def test_each_rank_holds_its_shard_only(ranks, case):
    whole = ranks[0][case]["residual"]["latents"][0, 0].numel()
    assert [rank[case]["residual"]["held_tokens"] for rank in ranks] == [(whole + 1) // 2, whole // 2]
