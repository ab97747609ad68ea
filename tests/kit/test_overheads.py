"""What the kit spares a run beside upstream's own pipeline, and that a reused step keeps the host waiting for nothing.

"Reads" are values and sizes that Python waits for (item, a tensor as a condition, indexing with a mask): on a GPU each
stops the host until the device has caught up. Those inside attention are left out: the fused kernel has none.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, redirect_stdout
from unittest.mock import patch

import pytest
import torch
from hyvideo.commons.infer_state import InferState
from test_against_upstream import REQUEST, request_for
from torch.utils._python_dispatch import TorchDispatchMode
from upstream import upstream_twin

MODELS = ("text_encoder", "byt5_model", "vae", "vision_encoder", "transformer")
BUDGET, STEPS = 2, REQUEST["num_inference_steps"]


class HostReads(TorchDispatchMode):
    """Calls `note` for every operation after which the host knows something of a tensor's values."""

    def __init__(self, note: Callable[[], None]):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = []
        if func is torch.ops.aten.index.Tensor:
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
        reads = func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        for _ in range(reads + len(masks)):
            self.note()
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(pipe):
    """Yields what is counted inside: moves of models, runs of their parts, and reads of the host in the loop."""
    counts: Counter[str] = Counter()
    net = pipe.transformer

    def before(owner: type, method: str, note: Callable) -> None:
        original = getattr(owner, method)

        def noted(*args, **kwargs):
            note(*args)
            return original(*args, **kwargs)

        stack.enter_context(patch.object(owner, method, noted))

    def count(owner: type, method: str, name: str) -> None:
        before(owner, method, lambda *_: counts.update([name]))

    def note_move(model, *_) -> None:
        counts.update(f"moves of {name}" for name in MODELS if model is getattr(pipe, name))

    def note_read() -> None:
        if counts["transformer"] and counts["scheduler"] < STEPS:
            counts.update(["reads"])

    with ExitStack() as stack:
        before(torch.nn.Module, "to", note_move)
        count(type(net), "forward", "transformer")
        count(type(net.double_blocks[0]), "forward", "blocks")
        count(type(net.txt_in), "forward", "text path")
        count(type(pipe.scheduler), "step", "scheduler")
        count(type(pipe.text_encoder), "encode", "text encoder")
        count(type(pipe.vae), "encode", "VAE encoder")
        for method in ("tolist", "cpu", "numpy"):
            before(torch.Tensor, method, lambda *_: note_read())
        stack.enter_context(HostReads(note_read))
        # Upstream prints what it is about to do.
        stack.enter_context(redirect_stdout(None))
        yield counts


def counted(pipe, request: dict) -> tuple[Counter[str], torch.Tensor]:
    with counting(pipe) as counts:
        return counts, pipe(**request).videos


@pytest.mark.parametrize(
    ("version", "prompt", "spared"),
    [
        ("480p_t2v", 'a star with "hi" on it', {"vae", "vision_encoder"}),
        ("480p_t2v", "a star", {"vae", "vision_encoder", "byt5_model"}),
        ("480p_i2v", "a star", {"byt5_model"}),
    ],
)
def test_models_are_moved_only_if_they_are_needed_and_a_reused_step_reads_nothing(
    load_pipeline, reference_image, fast_attention, version, prompt, spared
):
    request = request_for(version, reference_image) | {"prompt": prompt}
    pipe = load_pipeline(version)
    twin = upstream_twin(pipe)
    twin.enable_offloading = pipe.enable_offloading = True
    upstream, theirs = counted(twin, request)
    kit, ours = counted(pipe, request)
    pipe.infer_state = InferState(enable_cache=True, cache_type="lemica", lemica_step=BUDGET)
    cached, _ = counted(pipe, request)
    assert torch.equal(ours, theirs)

    # There and back.
    fewer = {name: upstream[f"moves of {name}"] - kit[f"moves of {name}"] for name in MODELS}
    assert fewer == {name: 2 * (name in spared) for name in MODELS}
    for name in ("transformer", "blocks", "text path", "scheduler", "text encoder", "VAE encoder", "reads"):
        assert kit[name] == upstream[name], name

    assert cached["scheduler"] == STEPS
    for name in ("transformer", "blocks", "text path"):
        assert cached[name] * STEPS == kit[name] * BUDGET, name
    # The sampler looks up its first time step once, in two reads; all others are the computed steps' own.
    lookup = 2
    assert (cached["reads"] - lookup) * STEPS == (kit["reads"] - lookup) * BUDGET
