"""Blocks compiled with torch.compile: the same result as eager, nothing compiled anew from one step to the next."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, clean_environment
from make_tiny_checkpoint import TinyConfig, write_checkpoint


@pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler"
)
def test_compiled_blocks_agree_with_eager_ones_and_are_compiled_once_for_all_blocks(tree, checkpoint, tmp_path):
    # More blocks than dynamo compiles a function for: if each took a graph of its own, the last would stay eager.
    deeper = write_checkpoint(tmp_path, ["480p_t2v"], TinyConfig(blocks=10, ideal_resolution="96p"))
    environment = clean_environment()
    del environment["TORCHDYNAMO_DISABLE"]
    worker = [sys.executable, REPOSITORY / "tests" / "compile_worker.py", tree, checkpoint, deeper]
    done = subprocess.run(worker, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert [run["blocks"] for run in result["runs"]] == [4, 10]
    for run in result["runs"]:
        assert run["largest_difference"] < 1e-4
        assert run["repeatable"]
    graphs = [number for run in result["runs"] for number in run["graphs_after_each_step"]]
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}
    assert result["limits"] == []
    assert all("parallel_attention" in reason for reason in result["graph_breaks"])
