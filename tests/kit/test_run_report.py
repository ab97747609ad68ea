"""The run report: its stages sum to the whole, and moving offloaded models is a stage of its own.

The clock is a counter that the tests advance, so nothing here depends on how fast the machine is.
"""

from types import SimpleNamespace

import hyvideo.pipelines.hunyuan_video_pipeline as module
import pytest
import torch
from hyvideo.pipelines.hunyuan_video_pipeline import OFFLOAD_MOVES, Stopwatch
from test_against_upstream import REQUEST, request_for

pytestmark = pytest.mark.usefixtures("fast_attention")


@pytest.fixture
def spend(monkeypatch):
    """Let the stopwatch's time pass by that many seconds; it stands still otherwise."""
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def spend(seconds: float) -> None:
        now[0] += seconds

    return spend


@pytest.fixture
def moves(monkeypatch, spend):
    """The names of the classes of models that are moved, in order; a move takes a second."""
    moved = []
    original = torch.nn.Module.to

    def to(model, *args, **kwargs):
        moved.append(type(model).__name__)
        spend(1)
        return original(model, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    return moved


def test_a_stage_inside_another_is_not_counted_twice(spend):
    clock = Stopwatch(torch.device("cpu"))
    with clock.stage("outer"):
        spend(1)
        for _ in range(2):
            with clock.stage("inner"):
                spend(10)
                with clock.stage("innermost"):
                    spend(100)
        spend(2)
    with clock.stage("inner"):
        spend(1000)
    assert clock.stages == {"outer": 3, "inner": 1020, "innermost": 200}


def test_a_stage_that_fails_is_timed_and_the_next_ones_are_right(spend):
    clock = Stopwatch(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), clock.stage("outer"), clock.stage("inner"):
        spend(1)
        raise ZeroDivisionError
    with clock.stage("outer"):
        spend(2)
    assert clock.stages == {"outer": 2, "inner": 1}


@pytest.mark.parametrize("version", ["480p_t2v", "480p_i2v"])
def test_moves_of_offloaded_models_are_a_stage_of_their_own(load_pipeline, moves, reference_image, version):
    pipe = load_pipeline(version)
    pipe.enable_offloading = True
    moves.clear()
    report = pipe(**request_for(version, reference_image)).report
    with_image = {"VisionEncoder"} if "i2v" in version else set()
    assert {"TextEncoder", "AutoencoderKLConv3D", "HunyuanVideo_1_5_DiffusionTransformer"} | with_image <= set(moves)
    stages = dict(report.stage_seconds)
    assert stages.pop(OFFLOAD_MOVES) == report.total_seconds == len(moves)
    assert set(stages) == {"settings", "text encoding", "image encoding", "denoising", "VAE decoding"}
    assert set(stages.values()) | set(report.step_seconds) == {0}


def test_without_offloading_no_moves_are_reported(load_pipeline, moves):
    pipe = load_pipeline("480p_t2v")
    moves.clear()
    report = pipe(**REQUEST).report
    assert moves == []
    assert OFFLOAD_MOVES not in report.stage_seconds


class Moving(torch.nn.Linear):
    """Moves to the device by a copy of its weights, and would not come back by itself."""

    def to(self, device):
        for weight in self.parameters():
            weight.data = weight.data.clone() if device != "cpu" else weight.data
        return self


def test_offloaded_weights_are_put_back_not_copied_back(load_pipeline, monkeypatch):
    pipe, model = load_pipeline("480p_t2v"), Moving(3, 2)
    monkeypatch.setattr(pipe, "enable_offloading", True)
    at_home = [weight.data_ptr() for weight in model.parameters()]
    with pipe.on_device(model):
        assert not set(at_home) & {weight.data_ptr() for weight in model.parameters()}
    assert [weight.data_ptr() for weight in model.parameters()] == at_home
