"""Group offload: a reused step moves no weights, and the computed step after it is right.

diffusers' real hooks, with the CPU in the role of the accelerator: what would cross PCIe is counted, not moved.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline
from runs import REQUEST, STEPS, lemica_state

from demo.tiny_checkpoint import TinyConfig, write_checkpoint

pytestmark = pytest.mark.usefixtures("fast_attention")


@pytest.fixture
def accelerator(monkeypatch):
    """The CPU, as diffusers asks for an accelerator: streams that do nothing, memory that needs no pinning."""
    stream = SimpleNamespace(synchronize=lambda: None)
    fake = SimpleNamespace(stream=lambda _: nullcontext(), current_stream=lambda: stream)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch, "cpu", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: True)


def weights_of(group: ModuleGroup) -> list[torch.Tensor]:
    return [*(weight for module in group.modules for weight in module.parameters()), *group.parameters]


@pytest.fixture
def onloads(monkeypatch):
    """The groups brought to the device, in order. What is offloaded holds NaN until it is brought back."""
    brought, away = [], {}
    onload, offload, to = ModuleGroup.onload_, ModuleGroup.offload_, torch.nn.Module.to

    def bring_back(weights):
        for weight in weights:
            weight.data = away.pop(weight, weight.data)

    def onload_(group):
        brought.append(group)
        bring_back(weights_of(group))
        onload(group)

    def offload_(group):
        offload(group)
        for weight in weights_of(group):
            away.setdefault(weight, weight.data)
            weight.data = torch.full_like(weight, torch.nan)

    def moved(module, *args, **kwargs):
        bring_back(module.parameters())
        return to(module, *args, **kwargs)

    monkeypatch.setattr(ModuleGroup, "onload_", onload_)
    monkeypatch.setattr(ModuleGroup, "offload_", offload_)
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    return brought


def fresh_pipeline(checkpoint, kept="residual"):
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(checkpoint), "480p_t2v", device=torch.device("cpu"))
    pipe.execution_device = torch.device("cpu")
    pipe.apply_infer_optimization(lemica_state(STEPS, kept=kept, rule="damped"))
    return pipe


@pytest.fixture(scope="module")
def six_blocks(tmp_path_factory):
    """A tiny model with more blocks than fit into one group of four."""
    config = TinyConfig(blocks=6, ideal_resolution="96p")
    return write_checkpoint(tmp_path_factory.mktemp("six_blocks"), ["480p_t2v"], config)


@pytest.mark.parametrize(
    ("kept", "blocks_per_group", "stream"),
    [
        ("residual", 1, True),
        ("residual", 4, True),
        ("residual", 1, False),
        ("residual", 4, False),
        ("velocity", 1, True),
    ],
)
def test_reused_steps_move_no_weights(six_blocks, accelerator, onloads, monkeypatch, kept, blocks_per_group, stream):
    # Loaded before the accelerator is claimed, so that everything stays in float32 on the CPU.
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        pipe = fresh_pipeline(six_blocks, kept)
        expected = pipe(**REQUEST).videos
    pipe.apply_infer_optimization(pipe.infer_state, enable_offloading=True)
    pipe.transformer.enable_group_offload(
        onload_device=pipe.execution_device, num_blocks_per_group=blocks_per_group, use_stream=stream
    )
    moved = []
    monkeypatch.setattr(pipe.scheduler.__class__, "step", counting_step(pipe.scheduler.__class__.step, onloads, moved))
    latents = pipe(**REQUEST).videos
    # diffusers streams single blocks, whatever was asked for; one group more holds what stands outside of the blocks.
    groups = 6 if stream or blocks_per_group == 1 else 2
    assert [len(set(map(id, brought))) for brought in moved] == [(groups + 1) * runs for runs in STEPS]
    assert torch.equal(latents, expected)


@pytest.mark.parametrize("overlap", [True, False])
def test_the_pipelines_own_group_offload_gives_the_same_video(checkpoint, accelerator, onloads, monkeypatch, overlap):
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        pipe = fresh_pipeline(checkpoint)
        expected = pipe(**REQUEST).videos
    pipe.apply_infer_optimization(
        pipe.infer_state, enable_offloading=True, enable_group_offloading=True, overlap_group_offloading=overlap
    )
    latents = pipe(**REQUEST).videos
    blocks = set(pipe.transformer.double_blocks)
    assert {len(blocks & set(group.modules)) for group in onloads} == {0, 1 if overlap else 4}
    assert torch.equal(latents, expected)


def counting_step(original, onloads, moved):
    def step(self, *args, **kwargs):
        moved.append(list(onloads))
        onloads.clear()
        return original(self, *args, **kwargs)

    return step


def test_the_modules_of_a_reused_step_stay_on_the_device(checkpoint, accelerator, onloads, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        pipe = fresh_pipeline(checkpoint)
    pipe.apply_infer_optimization(pipe.infer_state, enable_offloading=True, enable_group_offloading=True)
    pipe(**REQUEST)
    net = pipe.transformer
    resident = {net.img_in, net.time_in, net.final_layer}
    assert onloads
    assert all(resident.isdisjoint(group.modules) for group in onloads)
