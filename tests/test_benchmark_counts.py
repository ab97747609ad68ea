"""Counts on a fake GPU: that they are those of a real run where one can be made, and small where they must be."""

import benchmark_counts
import pytest
import torch
from benchmark_counts import Traffic, count, distinct_bytes, fake_gpu
from benchmark_figures import residual_bytes
from benchmark_models import PRESETS


@pytest.fixture(scope="module")
def runs():
    return count(PRESETS["tiny"])


def test_traffic_is_what_operators_read_and_write():
    with Traffic() as traffic:
        a = torch.ones(10, 4)  # writes 160
        b = a.view(40)[:20]
        b + 1  # reads 80, writes 80
        a.add_(a[:, :1])  # reads 160 and 40, writes 160
        torch.empty(1000)
    assert traffic.total == 160 + 160 + 360
    assert distinct_bytes(torch.ones(1, 4).expand(100, 4)) == 16


def test_a_reused_step_costs_a_fraction_and_keeps_one_tensor(runs):
    residual = residual_bytes(PRESETS["tiny"], torch.bfloat16)
    assert runs["uncached"].held == 0
    for kind in ("residual", "output", "velocity"):
        run = runs[kind]
        assert run.full.operations == runs["uncached"].full.operations
        assert run.reused.operations < run.full.operations / 50
        assert run.reused.traffic < runs["released"].reused.traffic
    assert runs["residual"].held == runs["output"].held == residual
    assert runs["velocity"].reused.operations == 0
    assert runs["released"].held > 4 * residual


def test_on_a_fake_gpu_waiting_for_a_number_is_an_error():
    with fake_gpu(), pytest.raises(Exception, match="item"):
        torch.ones(1, device="cuda").item()


def test_the_command_prints_what_it_writes(monkeypatch, tmp_path, capsys):
    output = tmp_path / "counts.json"
    monkeypatch.setattr("sys.argv", ["benchmark_counts.py", "tiny", "--output", str(output)])
    benchmark_counts.main()
    printed = capsys.readouterr().out
    assert "| velocity | 0.0 |" in printed and "| released |" in printed
    assert '"residual"' in output.read_text()
