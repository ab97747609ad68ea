"""Quality: known values, agreement with the formulas, refusals, lossless copies; the command compare."""

import doctest
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from fake_runs import moving_disc, write_demo, write_lossless, write_run

from lemica.cli.main import main
from lemica.errors import Refused
from lemica.quality import compare, metrics


def constant(value: int, frames: int = 3) -> np.ndarray:
    return np.full((frames, 32, 48, 3), value, np.uint8)


def run_compare(*arguments) -> None:
    main(["compare", *map(str, arguments)])


@pytest.fixture
def noise(tmp_path):
    """Two lossless videos of independent noise, and their frames in [0, 1]."""
    generator = np.random.default_rng(0)
    videos = generator.integers(0, 256, (2, 3, 32, 48, 3), dtype=np.uint8)
    paths = [write_lossless(tmp_path / f"noise{index}.mkv", video) for index, video in enumerate(videos)]
    return paths, videos / 255


def test_a_constant_offset_has_the_psnr_of_its_size(tmp_path):
    paths = [write_lossless(tmp_path / f"{value}.mkv", constant(value)) for value in (100, 110)]
    quality = metrics.measure(*paths)
    assert quality.psnr == pytest.approx([20 * math.log10(255 / 10)] * 3, abs=1e-4)
    assert quality.lpips is None


def test_equal_videos_have_infinite_psnr_and_ssim_one(tmp_path):
    path = write_lossless(tmp_path / "disc.mkv", moving_disc(frames=3))
    assert metrics.measure(path, path) == metrics.Quality((math.inf,) * 3, (1.0,) * 3)
    assert metrics.means_of(metrics.measure(path, path)) == metrics.Means(math.inf, math.inf, 1.0, None)


def test_psnr_is_that_of_the_mean_squared_error_of_each_frame(noise):
    paths, (reference, cached) = noise
    errors = ((reference - cached) ** 2).mean(axis=(1, 2, 3))
    assert metrics.measure(*paths).psnr == pytest.approx(-10 * np.log10(errors), abs=1e-4)


def ssim_by_formula(reference: np.ndarray, cached: np.ndarray) -> float:
    """Wang et al. 2004, equations 13 to 16, on one channel in [0, 1], wherever the whole window is inside."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def local_mean(image):
        return np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(image, (11, 11)), window)

    mean_r, mean_c = local_mean(reference), local_mean(cached)
    var_r = local_mean(reference**2) - mean_r**2
    var_c = local_mean(cached**2) - mean_c**2
    covariance = local_mean(reference * cached) - mean_r * mean_c
    numerator = (2 * mean_r * mean_c + 0.01**2) * (2 * covariance + 0.03**2)
    return (numerator / ((mean_r**2 + mean_c**2 + 0.01**2) * (var_r + var_c + 0.03**2))).mean()


def test_ssim_agrees_with_its_formula(noise):
    paths, (reference, cached) = noise
    mixed = 0.8 * reference + 0.2 * cached
    for frame, other in zip(reference, mixed, strict=True):
        expected = np.mean([ssim_by_formula(frame[..., channel], other[..., channel]) for channel in range(3)])
        assert 0.3 < expected < 0.99
        assert metrics.ssim(frame, other) == pytest.approx(expected, abs=1e-6)
    quality = metrics.measure(*paths)
    assert quality.ssim == pytest.approx(
        [metrics.ssim(*pair) for pair in zip(reference, cached, strict=True)], abs=1e-5
    )


def test_means_leave_out_what_equals_the_reference():
    some_equal = metrics.means_of(
        metrics.Quality(psnr=(math.inf, 30.0, 40.0), ssim=(1.0, 0.8, 0.9), lpips=(0, 0.1, 0.2))
    )
    assert some_equal == metrics.Means(35.0, 30.0, pytest.approx(0.9), pytest.approx(0.1))
    all_equal = metrics.Means(math.inf, math.inf, 1.0, None)
    assert metrics.means_over([some_equal, all_equal]) == metrics.Means(35.0, 30.0, pytest.approx(0.95), None)


@pytest.mark.parametrize("other", [constant(9, frames=4), constant(9)[:, :16]])
def test_videos_of_other_shapes_are_refused_by_name_and_shape(tmp_path, other):
    paths = write_lossless(tmp_path / "one.mkv", constant(9)), write_lossless(tmp_path / "two.mkv", other)
    with pytest.raises(Refused) as refusal:
        metrics.measure(*paths)
    for path, (frames, height, width, _) in zip(paths, (constant(9).shape, other.shape), strict=True):
        assert f"{path} ({frames} frames of {width} x {height})" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_is_no_video_is_refused_by_name(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(Refused, match=r"text\.mp4 is not a video"):
        metrics.measure(text, text)
    with pytest.raises(Refused, match=r"there is no video .*missing\.mp4"):
        metrics.measure(tmp_path / "missing.mp4", text)


def test_lossless_copies_are_read_if_every_video_has_one(tmp_path):
    videos = [write_run(tmp_path, name, constant(value)) for name, value in (("a", 9), ("b", 12), ("c", 15))]
    copies = [tmp_path / f"{name}_lossless.mkv" for name in "abc"]
    assert metrics.files_to_measure(videos) == copies
    assert metrics.files_to_measure([copies[0], videos[1]]) == copies[:2]
    copies[2].unlink()
    assert metrics.files_to_measure(videos) == videos


def test_a_lossless_copy_of_an_earlier_run_is_not_read(tmp_path):
    video = write_run(tmp_path, "a", constant(9), save_lossless=False, old=True)
    assert (tmp_path / "a_lossless.mkv").is_file()
    assert metrics.files_to_measure([video]) == [video]


def test_lpips_is_left_out_without_package_or_weights_and_used_with_both(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert metrics.load_lpips() is None

    import torch

    class FakeNetwork(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == "alex" and weights.is_file()  # The real one would download them.

        def forward(self, reference, cached, normalize):
            assert normalize and reference.shape == cached.shape == (1, 3, 32, 48)
            return (reference - cached).abs().mean()

    alexnet = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url="file:///models/alexnet-owt-7be5be79.pth"))
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=FakeNetwork))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchvision.models", SimpleNamespace(AlexNet_Weights=alexnet))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert metrics.load_lpips() is None

    weights = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    weights.parent.mkdir()
    weights.touch()
    paths = [write_lossless(tmp_path / f"{value}.mkv", constant(value)) for value in (0, 51)]
    assert metrics.measure(*paths, metrics.load_lpips()).lpips == pytest.approx([0.2] * 3)


def test_compare_prints_a_line_for_every_video_and_the_means(tmp_path, capsys):
    videos = [write_run(tmp_path, name, constant(value)) for name, value in (("a", 100), ("b", 110), ("c", 101))]
    run_compare(*videos)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["against", str(tmp_path / "a_lossless.mkv"), "PSNR", "worst", "SSIM", "LPIPS"]
    assert lines[1].split()[:3] == [str(tmp_path / "b_lossless.mkv"), "28.13", "28.13"]
    assert lines[2].split()[:3] == [str(tmp_path / "c_lossless.mkv"), "48.13", "48.13"]
    assert lines[3].split()[:3] == ["mean", "38.13", "28.13"]


def test_compare_says_that_compression_counts(tmp_path, capsys):
    videos = [write_run(tmp_path, name, moving_disc(frames=3, noise=0.1)) for name in "ab"]
    run_compare(*videos, "--as_given")
    out = capsys.readouterr().out
    assert str(videos[0]) in out and "_lossless.mkv" not in out
    assert "compression" in out
    run_compare(*videos)
    assert "compression" not in capsys.readouterr().out


def test_compare_prints_json(tmp_path, capsys):
    first, second = (write_lossless(tmp_path / f"{value}.mkv", constant(value)) for value in (100, 110))
    run_compare(first, second, first, "--json")
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    other, same = document["videos"]
    assert (other["reference"], other["cached"], other["frames"]) == (str(first), str(second), 3)
    assert other["equal_frames"] == 0 and other["psnr"] == pytest.approx(20 * math.log10(25.5), abs=1e-4)
    assert same["equal_frames"] == 3 and same["psnr"] is None and same["ssim"] == 1
    assert document["mean"]["psnr"] == other["psnr"]


@pytest.mark.parametrize("module", [metrics, compare])
def test_the_examples_in_the_docstrings_run(tmp_path, monkeypatch, module):
    monkeypatch.chdir(write_demo(tmp_path))
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed
