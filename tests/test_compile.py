"""Blocks compiled with torch.compile: the same result as eager, nothing compiled anew from one step to the next."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, clean_environment


@pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler"
)
def test_compiled_blocks_agree_with_eager_ones_and_are_compiled_once(tree, checkpoint):
    environment = clean_environment()
    del environment["TORCHDYNAMO_DISABLE"]
    worker = [sys.executable, REPOSITORY / "tests" / "compile_worker.py", tree, checkpoint]
    done = subprocess.run(worker, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["largest_difference"] < 1e-4
    assert result["repeatable"]
    graphs = result["graphs_after_each_step"]
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}
    assert all("parallel_attention" in reason for reason in result["graph_breaks"])
