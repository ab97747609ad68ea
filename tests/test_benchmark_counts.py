"""Counts on the meta device: bytes by operator, CUDA's autocast as imitated, and steps of the tiny preset."""

import benchmark_counts
import pytest
import torch
import torch.nn.functional as F
from benchmark_counts import CudaAutocast, Traffic, count, distinct_bytes
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
        torch.ops.aten._unsafe_view(b, [4, 5])
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


def test_autocast_is_imitated_where_layers_call_it():
    tokens = torch.ones(2, 3, 8, device="meta", dtype=torch.bfloat16)
    with CudaAutocast():
        assert torch.nn.LayerNorm(8, device="meta")(tokens).dtype == torch.float32
        assert torch.nn.Linear(8, 4, device="meta")(tokens.float()).dtype == torch.bfloat16
        assert torch.nn.Conv3d(8, 4, 1, device="meta")(torch.ones(1, 8, 2, 2, 2, device="meta")).dtype == torch.bfloat16
        assert F.silu(tokens).dtype == torch.bfloat16


def test_the_command_prints_what_it_writes(runs, monkeypatch, tmp_path, capsys):
    output = tmp_path / "counts.json"
    monkeypatch.setattr("sys.argv", ["benchmark_counts.py", "tiny", "--output", str(output)])
    monkeypatch.setattr(benchmark_counts, "count", lambda _: runs)
    benchmark_counts.main()
    printed = capsys.readouterr().out
    assert "| velocity | 0.0 |" in printed
    assert "| released |" in printed
    assert '"residual"' in output.read_text()
