"""Without a cache, our pipeline is upstream's: latents and frames equal bit for bit."""

import pytest
import torch
from upstream import upstream_twin

from demo.attention import fused_attention
from demo.tiny_checkpoint import write_checkpoint

# Both sides use the same attention: upstream's, or on all cases but one PyTorch's fused kernel, which is fast.
fast = pytest.mark.usefixtures("fast_attention")
REQUEST = dict(
    prompt='a red circle with "hi" on it moves left',
    aspect_ratio="16:9",
    video_length=5,
    num_inference_steps=4,
    enable_sr=False,
    prompt_rewrite=False,
    seed=3,
)


def request_for(version: str, image) -> dict:
    return REQUEST | ({"reference_image": image} if "i2v" in version else {})


def test_upstreams_own_attention_gives_upstreams_latents_and_the_fused_one_the_same_to_rounding(load_pipeline):
    pipe = load_pipeline("480p_t2v")
    request = REQUEST | {"output_type": "latent", "num_inference_steps": 3, "aspect_ratio": "1:1"}
    ours, theirs = pipe(**request).videos, upstream_twin(pipe)(**request).videos
    assert torch.equal(ours, theirs)
    with fused_attention():
        fused = pipe(**request).videos
    torch.testing.assert_close(fused, ours, rtol=1e-3, atol=1e-4)
    assert not torch.equal(fused, ours)


@fast
@pytest.mark.parametrize("version", ["480p_t2v", "480p_i2v", "480p_t2v_distilled", "480p_i2v_step_distilled"])
def test_latents_equal_upstreams_to_the_bit(load_pipeline, reference_image, version):
    pipe = load_pipeline(version)
    request = request_for(version, reference_image) | {"output_type": "latent"}
    ours, theirs = pipe(**request).videos, upstream_twin(pipe)(**request).videos
    assert torch.equal(ours, theirs)
    assert ours.std() > 0.1


@fast
@pytest.mark.parametrize(
    "changes",
    [
        {"negative_prompt": "blurry, dark"},
        {"guidance_rescale": 0.7},
        {"guidance_scale": 2.5, "flow_shift": 3.0},
        {"seed": 99, "num_inference_steps": 7, "video_length": 1, "aspect_ratio": "9:16"},
        {"prompt": ["two squares", "a star"], "negative_prompt": ["dark", ""]},
        {"num_inference_steps": 1},
    ],
)
def test_every_option_means_what_it_means_upstream(load_pipeline, changes):
    pipe = load_pipeline("480p_t2v")
    request = REQUEST | {"output_type": "latent"} | changes
    assert torch.equal(pipe(**request).videos, upstream_twin(pipe)(**request).videos)


@fast
@pytest.mark.parametrize("version", ["480p_t2v", "480p_i2v"])
def test_frames_equal_upstreams_to_the_bit(load_pipeline, reference_image, version):
    pipe = load_pipeline(version)
    request = request_for(version, reference_image)
    ours, theirs = pipe(**request).videos, upstream_twin(pipe)(**request).videos
    assert torch.equal(ours, theirs)
    assert ours.shape[:3] == (1, 3, 5)


@fast
def test_super_resolution_equals_upstreams_to_the_bit_and_follows_the_seed(tmp_path):
    from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline

    write_checkpoint(tmp_path, ["480p_t2v", "720p_sr_distilled"])
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(tmp_path), "480p_t2v", create_sr_pipeline=True)
    request = REQUEST | dict(enable_sr=True, output_type="latent", video_length=1, num_inference_steps=2)
    request |= dict(aspect_ratio="1:1", sr_num_inference_steps=2)

    torch.manual_seed(REQUEST["seed"])
    theirs = upstream_twin(pipe)(**request)
    # Upstream draws from the global generator here; ours must not depend on what is left in it.
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    ours = pipe(**request)
    assert torch.equal(ours.videos, theirs.videos)
    assert torch.equal(ours.sr_videos, theirs.sr_videos)
    assert torch.equal(torch.get_rng_state(), before)
    assert ours.sr_videos.shape[-1] > ours.videos.shape[-1]
