"""What tests/gpu measures, on a CPU with the tiny preset: the same code, but for CUDA's own calls."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import STEPS, compiled_graphs, copied_bytes, group_offload_copies, noise_floor, ratio_db, step_costs
from benchmarks.models import PRESETS, benchmark_pipeline, fast_attention, random_inputs

TINY = PRESETS["tiny"]


@pytest.fixture(autouse=True)
def attention(exact_numbers):
    torch.manual_seed(0)
    with fast_attention():
        yield


@pytest.fixture
def pipe():
    return benchmark_pipeline(TINY)


def test_steps_are_timed_and_what_they_keep_is_counted(pipe):
    inputs = random_inputs(pipe, TINY)
    costs = {way: step_costs(pipe, inputs, way) for way in ("residual + hold", "velocity + hold")}
    residual = TINY.residual_bytes(torch.float32)
    assert costs["residual + hold"]["held"] == residual
    # 32 latent channels beside a width of 64.
    assert costs["velocity + hold"]["held"] == residual / 2
    for cost in costs.values():
        assert cost["after"] == 0
        assert 0 < cost["reused_step"] < cost["full_step"]
        assert cost["peak"] > residual


def test_copies_are_counted_step_by_step(monkeypatch):
    # diffusers must be told what to offload from.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
    result = group_offload_copies(TINY, "residual + hold")
    assert result["computed"] == STEPS
    # On a CPU nothing is copied to a device.
    assert result["steps"] == [{"HtoD": 0, "DtoH": 0}] * len(STEPS)
    assert result["block_bytes"] > 0


def test_copies_count_by_direction_and_nothing_else_does():
    trace = [
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "args": {"bytes": 300}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)", "args": {"bytes": 40}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "args": {"bytes": 5}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoD (Device -> Device)", "args": {"bytes": 7000}},
        {"ph": "X", "cat": "kernel", "name": "gemm", "args": {"stream": 7}},
        {"ph": "M", "name": "process_name"},
    ]
    assert copied_bytes({"traceEvents": trace}) == {"HtoD": 340, "DtoH": 5}


def test_graphs_are_counted_step_by_step(pipe):
    # Nothing is compiled here: the suite switches that off.
    result = compiled_graphs(pipe, random_inputs(pipe, TINY), "residual + hold")
    assert result == dict(graphs_after_steps=[0] * len(STEPS), computed=STEPS, difference_db=None)


def test_the_noise_floor_follows_the_difference_of_the_noise(pipe):
    inputs = random_inputs(pipe, TINY)
    inputs = replace(inputs, timesteps=inputs.timesteps[:10])
    near, far = (noise_floor(pipe, inputs, difference) for difference in (1e-5, 1e-3))
    assert near == pytest.approx(far + 40, abs=6)


def test_decibels_are_of_root_mean_squares():
    assert ratio_db(torch.tensor([3.0, 4.0]), torch.tensor([3.3, 3.6])) == pytest.approx(20)
    assert ratio_db(torch.ones(2), torch.ones(2)) is None
