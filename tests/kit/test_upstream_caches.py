"""Upstream's own cache types go on working through angelslim, and leave LeMiCa and uncached runs alone."""

import pytest
import torch
from hyvideo.commons.infer_state import InferState
from runs import REQUEST, generate
from upstream import load_upstream, upstream_twin

from demo.angelslim_caches import import_angelslim_caches

pytestmark = pytest.mark.usefixtures("fast_attention")

STATE = dict(enable_cache=True, no_cache_block_id=[3], cache_start_step=2, cache_end_step=5, cache_step_interval=2)


@pytest.fixture(autouse=True)
def angelslim(monkeypatch):
    import_angelslim_caches()


@pytest.mark.parametrize("cache_type", ["deepcache", "teacache", "taylorcache"])
def test_results_equal_upstreams_to_the_bit(load_pipeline, cache_type):
    pipe = load_pipeline("480p_t2v")
    uncached = generate(pipe).videos
    state = InferState(cache_type=cache_type, total_steps=6, **STATE)

    pipe.apply_infer_optimization(state)
    ours = pipe(**REQUEST).videos
    assert not pipe.cache_helper.cached_output
    again = pipe(**REQUEST).videos
    pipe.apply_infer_optimization()

    twin = upstream_twin(pipe)
    assert load_upstream("hunyuan_video_pipeline").is_angelslim_available()
    twin.apply_infer_optimization(state)
    theirs = twin(**REQUEST).videos
    twin.cache_helper.disable()

    assert torch.equal(ours, theirs)
    assert torch.equal(ours, again)
    assert not torch.equal(ours, uncached)
    assert torch.equal(generate(pipe).videos, uncached)


def test_unknown_types_are_refused(load_pipeline):
    with pytest.raises(ValueError, match="choose one of lemica, deepcache, teacache, taylorcache"):
        load_pipeline("480p_t2v").apply_infer_optimization(InferState(enable_cache=True, cache_type="foo"))
