"""A HunyuanVideo-1.5 tree with the kit in it, and tiny random checkpoints: what the tests run on.

The environment of scripts/test.sh holds both: `import hyvideo` means upstream's package with this checkout's kit.
"""

import os
import sys
from pathlib import Path

import pytest

# Upstream's attention is compiled otherwise, which needs a C++ compiler and minutes.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# Two test processes share two cores; numbers are exact on one thread.
os.environ["OMP_NUM_THREADS"] = "1"
# The budget's default comes from here: a developer's own setting must not decide a test.
os.environ.pop("LEMICA_STEP", None)

REPOSITORY = Path(__file__).resolve().parents[1]
UPSTREAM = Path(sys.prefix) / "upstream" / "hyvideo"
TREE = Path(sys.prefix) / "HunyuanVideo-1.5"
TINY_VERSIONS = ("480p_t2v", "480p_i2v", "480p_t2v_distilled", "480p_i2v_step_distilled")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also the tests that train, or that measure for minutes")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        skip = pytest.mark.skip(reason="takes minutes: ./scripts/test.sh --all")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


def clean_environment() -> dict[str, str]:
    """For programs of their own: without the rank and port that upstream's package puts in this process's."""
    upstreams = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in upstreams}


@pytest.fixture(scope="session")
def tree() -> Path:
    """A HunyuanVideo-1.5 tree with the kit linked into it; shared, so tests must not write to it."""
    return TREE


@pytest.fixture(scope="session", autouse=True)
def exact_numbers():
    """One thread, on which CPU runs are bit-reproducible, and upstream's parallel state for a single process."""
    import torch
    from hyvideo.pipelines.hunyuan_video_pipeline import initialize_sequence_parallel

    torch.set_num_threads(1)
    initialize_sequence_parallel()


@pytest.fixture
def fast_attention():
    """PyTorch's fused attention in the place of upstream's, which on a CPU makes every score: the same to rounding."""
    from demo.attention import fused_attention

    with fused_attention():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, exact_numbers) -> Path:
    """Tiny random models of every kind that generates at low resolution."""
    from demo.tiny_checkpoint import TinyConfig, write_checkpoint

    config = TinyConfig(ideal_resolution="96p")
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TINY_VERSIONS, config)


@pytest.fixture(scope="session")
def load_pipeline(checkpoint):
    """Load a model of the tiny checkpoint, once per version."""
    from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline

    loaded = {}

    def load(version: str):
        if version not in loaded:
            loaded[version] = HunyuanVideo_1_5_Pipeline.create_pipeline(str(checkpoint), version)
        loaded[version].apply_infer_optimization()
        return loaded[version]

    return load


@pytest.fixture(scope="session")
def reference_image():
    """A PIL image of noise on a gradient, 120 x 90: no frame size has its shape."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 128, (90, 120, 3))
    return Image.fromarray((noise + np.linspace(0, 127, 120)[None, :, None]).astype(np.uint8))
