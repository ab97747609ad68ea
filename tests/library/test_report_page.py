"""The page of one request in a real browser: the videos play, and they play in step. Skipped only without Chromium.

Debian: apt-get install chromium chromium-driver. All that the browser loads are files of the test.
"""

from itertools import pairwise
from pathlib import Path

import pytest
from fake_runs import STEPS_OF_BUDGET, write_demo

from docs.screenshot import CHROMIUM, open_browser, wait_until
from lemica.report.page import render
from lemica.report.runs import summarise

FRAME = 1 / 24
FRAMES = 48
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium chromium-driver")

# Runs in the page: every 20 ms for arguments[0] seconds, the clock's frame and where every video stands.
SAMPLE = """
const [seconds, done] = arguments, samples = [], began = performance.now();
const timer = setInterval(() => {
  samples.push([Number(scrubber.value), videos.map((video) => video.currentTime)]);
  if (performance.now() - began > 1000 * seconds) { clearInterval(timer); done(samples); }
}, 20);
"""
# The column of the red disc's middle in the picture that a video shows, as a share of the width.
DISC = """
const [video] = arguments, canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
const context = canvas.getContext("2d");
context.drawImage(video, 0, 0);
const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
let sum = 0, count = 0;
for (let index = 0; index < pixels.length; index += 4)
  if (pixels[index] > 2 * pixels[index + 1]) { sum += (index / 4) % canvas.width; count += 1; }
return sum / count / canvas.width;
"""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def report_page(tmp_path_factory) -> Path:
    folder = write_demo(tmp_path_factory.mktemp("runs"))
    path = folder / "report.html"
    path.write_text(render(*summarise(folder)), encoding="utf-8")
    return path


@pytest.fixture
def open_page(browser, report_page):
    """Open the page, by default standing at its beginning, and wait until the player is there; no errors in the end."""

    def open_at(fragment: str = "#t=0"):
        browser.get("about:blank")
        browser.get(report_page.as_uri() + fragment)
        wait_until(browser, "!player.hidden && inView.size === videos.length")
        return browser

    yield open_at
    assert browser.get_log("browser") == []


def standing(browser) -> list[float]:
    """Where the videos stand once all have come to rest."""
    at_rest = "video.paused && !video.seeking && Math.abs(video.currentTime - placeOf(video)) < frame / 4"
    wait_until(browser, f"videos.every((video) => {at_rest})")
    return browser.execute_script("return videos.map((video) => video.currentTime)")


def frames_of(times: list[float]) -> list[int]:
    """The frames that are shown at these times."""
    return [int(time / FRAME) for time in times]


def spread(times: list[float]) -> float:
    return max(times) - min(times)


def press(browser, key: str, element: str = "body") -> None:
    browser.find_element("css selector", element).send_keys(key)


def test_it_renders_every_run(open_page):
    browser = open_page()
    assert browser.title == "a red disc moves left: what step caching costs"
    assert [heading.text for heading in browser.find_elements("css selector", ".card h3")] == ["uncached", "b25", "b10"]
    for picture in ("video", ".strip", ".bars", ".plot", "table"):
        sizes = [element.size for element in browser.find_elements("css selector", picture)]
        assert sizes and all(size["width"] > 200 and size["height"] > 10 for size in sizes)
    strips = browser.find_elements("css selector", ".strip")
    computed = ", ".join(map(str, STEPS_OF_BUDGET[10]))
    assert strips[2].get_attribute("aria-label") == f"b10: computed steps {computed}"
    assert len({strip.rect["x"] for strip in strips}) == len({strip.rect["width"] for strip in strips}) == 1


def test_all_videos_load(open_page):
    browser = open_page()
    standing(browser)
    states = browser.execute_script("return videos.map((v) => [v.readyState, v.videoWidth, v.videoHeight, v.duration])")
    assert len(states) == 3
    for ready, width, height, duration in states:
        assert ready >= 2 and (width, height) == (160, 96) and duration == pytest.approx(FRAMES * FRAME, abs=0.001)


def test_videos_play_in_step_and_again_from_the_start(open_page):
    browser = open_page("")
    wait_until(browser, "videos.every((video) => video.currentTime > 0.3)")
    samples = browser.execute_async_script(SAMPLE, 3)
    assert len(samples) > 60
    # For a few frames after the start the videos are still being started one by one.
    running = [(frame, times) for frame, times in samples if 8 <= frame < FRAMES - 2]
    assert max(spread(times) for _, times in running) < FRAME
    assert max(abs(frame + 0.5 - time / FRAME) for frame, times in running for time in times) < 2
    frames = [frame for frame, _ in samples]
    assert len(set(frames)) > FRAMES / 2 and any(b < a for a, b in pairwise(frames))


@pytest.mark.parametrize("jump", [0.08, -0.08, 0.7])
def test_a_video_out_of_step_is_brought_back(open_page, jump):
    browser = open_page("")
    wait_until(browser, "videos.every((video) => video.currentTime > 0.3 && video.currentTime < 0.6)")
    before, after = browser.execute_script(
        "const stand = () => videos.map((video) => video.currentTime), before = stand();"
        "videos[1].currentTime += arguments[0]; return [before, stand()]",
        jump,
    )
    assert spread(before) < FRAME < spread(after)
    samples = browser.execute_async_script(SAMPLE, 1)
    assert max(spread(times) for _, times in samples[-10:]) < FRAME


def test_the_scrubber_moves_all_videos_to_one_frame(open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page("")
    press(browser, Keys.END, "#scrubber")
    assert frames_of(standing(browser)) == [FRAMES - 1] * 3
    press(browser, Keys.HOME, "#scrubber")
    press(browser, Keys.RIGHT * 30, "#scrubber")
    wait_until(browser, "scrubber.value === '30'")
    assert frames_of(standing(browser)) == [30] * 3
    assert browser.find_element("id", "time").text == "1.25 s, frame 31 of 48"


@pytest.mark.parametrize("frame", [0, 20, 47])
def test_every_video_shows_the_frame_that_it_stands_on(open_page, frame):
    browser = open_page(f"#t={frame * FRAME + 0.001:.4f}")
    standing(browser)
    expected = 0.85 - 0.7 * frame / FRAMES
    for video in browser.find_elements("css selector", "video"):
        assert browser.execute_script(DISC, video) == pytest.approx(expected, abs=0.3 * 0.7 / FRAMES + 0.005)


def test_space_and_the_button_play_and_pause(open_page):
    browser = open_page()
    assert browser.find_element("id", "play").text == "Play" and max(standing(browser)) < FRAME
    press(browser, " ")
    wait_until(browser, "videos.every((video) => !video.paused && video.currentTime > 0.2)")
    browser.find_element("id", "play").click()
    assert browser.find_element("id", "play").text == "Play"
    times = standing(browser)
    assert len(set(frames_of(times))) == 1
    press(browser, " ", "#play")
    wait_until(browser, f"videos.every((video) => video.currentTime > {times[0]} + 0.1)")


def test_half_speed_takes_twice_as_long(open_page):
    browser = open_page()
    browser.execute_script("rate.value = '0.5'; setPlaying(true)")
    wait_until(browser, "videos[0].currentTime > 0.2")
    samples = browser.execute_async_script(SAMPLE, 1)
    assert (samples[-1][1][0] - samples[0][1][0]) == pytest.approx(0.5, abs=0.1)
    assert max(spread(times) for _, times in samples) < FRAME


def test_dark_mode_and_phones(open_page):
    browser = open_page()
    colours = "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    light = browser.execute_script(colours)
    try:
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [dark]})
        phone = {"width": 360, "height": 2400, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        assert not set(light) & set(browser.execute_script(colours))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
