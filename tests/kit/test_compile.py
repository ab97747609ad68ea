"""Blocks compiled with torch.compile: the same result as eager, nothing compiled anew from one step to the next."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, clean_environment

from demo.tiny_checkpoint import TinyConfig, write_checkpoint

WORKER = Path(__file__).with_name("compile_worker.py")


@pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler"
)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_agree_with_eager_ones_and_are_compiled_once_for_all_blocks(tmp_path, backend):
    # More blocks than dynamo compiles a function for: if each took a graph of its own, the last would stay eager.
    checkpoint = write_checkpoint(tmp_path, ["480p_t2v"], TinyConfig(blocks=9, ideal_resolution="64p"))
    environment = clean_environment() | {"PYTHONPATH": str(REPOSITORY), "TORCHDYNAMO_DISABLE": "0"}
    done = subprocess.run(
        [sys.executable, WORKER, checkpoint, backend], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = json.loads(done.stdout.splitlines()[-1])
    assert run["blocks"] == 9
    assert run["largest_difference"] < 1e-4
    assert run["repeatable"]
    assert run["graphs_after_each_step"][0] > 0
    assert len(run["graphs_after_each_step"]) == 6
    assert len(set(run["graphs_after_each_step"])) == 1
    assert run["limits"] == []
    assert all("joint_attention" in reason for reason in run["graph_breaks"])
