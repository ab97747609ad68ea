"""What a user gives is read as it is meant: turned pictures, transparent ones, deep ones; texts that are too long."""

import numpy as np
import pytest
from hyvideo.pipelines.hunyuan_video_pipeline import as_rgb
from loguru import logger
from PIL import Image


@pytest.fixture
def warnings():
    """The lines that are logged."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(sink)


def test_a_picture_is_turned_as_its_orientation_says(tmp_path):
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (0, 0, 20, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    shown = as_rgb(str(tmp_path / "turned.png"))
    assert shown.size == (20, 40)
    assert shown.getpixel((10, 5)) == (0, 0, 255)
    assert shown.getpixel((10, 35)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_places_become_white_and_that_is_said(warnings, mode):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    shown = as_rgb(picture.convert(mode) if mode != "P" else picture.quantize(4))
    assert [shown.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 0, 0)]
    assert warnings == ["the image has transparent places: they become white"]


@pytest.mark.parametrize(("level", "shown"), [(0, 0), (2**15, 127), (2**16 - 1, 255)])
def test_sixteen_bits_of_grey_are_scaled(tmp_path, level, shown):
    Image.fromarray(np.full((2, 2), level, np.uint16)).save(tmp_path / "deep.png")
    assert as_rgb(str(tmp_path / "deep.png")).getpixel((0, 0)) == (shown,) * 3


def test_ordinary_pictures_are_taken_as_they_are(warnings):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    assert np.array_equal(np.asarray(as_rgb(Image.fromarray(pixels))), pixels)
    assert warnings == []


def truncated(path):
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("text"), "cannot identify image file"),
        (truncated, "truncated"),
        (lambda path: Image.fromarray(np.zeros((2, 2), np.float32)).save(path, format="TIFF"), "not of 8 or 16 bits"),
        (lambda path: Image.fromarray(np.full((2, 2), 2**20, np.int32)).save(path, format="TIFF"), "not of 8 or 16"),
        (lambda path: Image.new("1", (20000, 20000)).save(path), "exceeds limit"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_its_cause(tmp_path, make, cause):
    make(tmp_path / "image.png")
    with pytest.raises(ValueError, match=cause) as refusal:
        as_rgb(str(tmp_path / "image.png"))
    assert "\n" not in str(refusal.value)


REQUEST = dict(aspect_ratio="1:1", video_length=1, num_inference_steps=1, enable_sr=False, prompt_rewrite=False, seed=0)


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("a star moves left " * 40, "the prompt is cut after 64 tokens"),
        (f'"{"你好" * 60}"', "the quoted text is cut after 256"),
    ],
)
def test_a_text_that_is_cut_is_quoted(load_pipeline, warnings, prompt, what):
    load_pipeline("480p_t2v_distilled")(prompt=prompt, output_type="latent", **REQUEST)
    (line,) = [line for line in warnings if "cut" in line]
    assert line.startswith(what)
    assert "this is not read: '" in line


def test_texts_that_fit_are_not_spoken_of(load_pipeline, warnings):
    load_pipeline("480p_t2v_distilled")(prompt='a red star, "hi"', output_type="latent", **REQUEST)
    assert not [line for line in warnings if "cut" in line]
