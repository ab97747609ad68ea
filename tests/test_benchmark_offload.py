"""The count of what crosses PCIe: that it reads the profiler's trace as it is written."""

import sys

import pytest
from benchmark_offload import MASK, copied_bytes, incomplete_steps, main


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
    assert copied_bytes({"traceEvents": []}) == {"HtoD": 0, "DtoH": 0}


def test_a_trace_that_lost_copies_is_noticed():
    steps = [{"HtoD": 1000 if computed else 0} for computed in MASK]
    assert incomplete_steps(steps, 1000) == []
    assert incomplete_steps(steps, 1001) == [number for number, computed in enumerate(MASK) if computed]


def test_without_a_gpu_it_says_where_the_count_is_made(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_offload.py", "480p"])
    with pytest.raises(SystemExit):
        main()
    assert "tests/test_group_offload.py" in capsys.readouterr().err
