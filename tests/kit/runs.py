"""Short runs of a loaded pipeline, and what is seen while they go."""

from contextlib import contextmanager

from hyvideo.commons.infer_state import InferState, Mask

REQUEST = dict(
    prompt="a red circle moves left",
    aspect_ratio="1:1",
    video_length=1,
    num_inference_steps=6,
    enable_sr=False,
    prompt_rewrite=False,
    seed=3,
    output_type="latent",
)
STEPS = (True, True, False, False, True, True)


def lemica_state(steps=None, **mask) -> InferState:
    """The switches of a run with this mask; without one every step is computed."""
    if steps is None:
        return InferState()
    return InferState(enable_cache=True, cache_type="lemica", lemica_mask=Mask(steps, **mask))


def generate(pipe, steps=None, kept="residual", rule="hold", weights=None, **changes):
    """The output of one call with a mask; `changes` are of the request."""
    pipe.infer_state = lemica_state(steps, kept=kept, rule=rule, weights=weights)
    try:
        return pipe(**REQUEST | changes)
    finally:
        pipe.infer_state = InferState()


class Trace:
    """Per step: how often blocks and text path ran, and the tensors at both ends of the block stack."""

    def __init__(self):
        self.steps = []

    @contextmanager
    def watching(self, net):
        hooks = [block.register_forward_pre_hook(self._count("blocks")) for block in net.double_blocks]
        hooks += [net.txt_in.register_forward_pre_hook(self._count("text"))]
        hooks += [net.img_in.register_forward_hook(self._begin)]
        hooks += [net.final_layer.register_forward_pre_hook(self._end)]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, name):
        def count(*_):
            self.steps[-1][name] += 1

        return count

    def _begin(self, _module, _args, output):
        self.steps.append({"blocks": 0, "text": 0, "embedding": output.clone()})

    def _end(self, _module, args):
        self.steps[-1]["stack_output"] = args[0].clone()


def prepared(pipe, **changes):
    """The inputs of the denoising loop, as a call would make them; the loop does not run."""
    captured = []
    pipe.denoise = lambda inputs, _: captured.append(inputs) or inputs.noise
    try:
        generate(pipe, **changes)
    finally:
        del pipe.denoise
    return captured[0]
