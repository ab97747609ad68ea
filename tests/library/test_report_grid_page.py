"""The grid page in a real browser: it loads what is near, finds the worst, obeys keys. Skipped only without Chromium.

Fifty requests by three methods, which share three small files: a page may refer to one file many times.
"""

import functools
import http.server
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import imageio.v2 as imageio
import pytest
from fake_runs import moving_disc, write_compressed

from docs.screenshot import CHROMIUM, open_browser, wait_until
from lemica.report.grid import Cell, GridRequest, render_grid

FRAME = 1 / 24
FRAMES = 48
METHODS = ("uncached", "b25", "b10")
EQUAL = 7  # The request whose videos equal their reference.
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium chromium-driver")

# In the page: the videos that lie within half a window of it, and those that have a file.
SHALL_LOAD = """[...sources.keys()].filter((video) => {
  const { top, bottom, height } = video.getBoundingClientRect(), near = innerHeight / 2;
  return height && bottom > -near && top < innerHeight + near;
})"""
LOADED = "[...document.querySelectorAll('video[src]')]"


def psnr_of(number: int) -> tuple[float, float]:
    """Of b25 and of b10: two orders that have nothing to do with that of the requests."""
    return (math.inf, math.inf) if number == EQUAL else (45 - number * 7 % 50 / 10, 35 - number * 11 % 50 / 10)


def request(number: int) -> GridRequest:
    figures = [(None, None, 1.0), *((psnr, 0.9, speed) for psnr, speed in zip(psnr_of(number), (2, 5), strict=True))]
    cells = [
        Cell(method, f"my%20videos/{method}.mp4", psnr, ssim, None, 10 / speed, speed)
        for method, (psnr, ssim, speed) in zip(METHODS, figures, strict=True)
    ]
    return GridRequest(f"Prompt {number:02d} of a red disc", number, tuple(cells))


def write_page(folder: Path, requests: Sequence[GridRequest]) -> Path:
    path = folder / "grid.html"
    path.write_text(render_grid("50 prompts", requests), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    with open_browser(1280, 900) as browser:
        yield browser


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    (folder / "my videos").mkdir()
    for method, noise in zip(METHODS, (0, 0.01, 0.04), strict=True):
        write_compressed(folder / "my videos" / f"{method}.mp4", moving_disc(noise, FRAMES, height=48, width=80))
    return write_page(folder, [request(number) for number in range(50)])


@pytest.fixture
def open_page(browser, grid):
    """Open a page, by default standing at its beginning, and wait for what it shows; no errors in the end."""

    def open_at(fragment: str = "#t=0", url: str = grid.as_uri()):
        browser.get("about:blank")
        browser.get(url + fragment)
        wait_until(browser, "!player.hidden && inView.size && [...inView].every(isReady)")
        return browser

    yield open_at
    assert browser.get_log("browser") == []


def press(browser, *keys: str) -> None:
    """Keys for whatever has the focus."""
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def put(browser, field: str, value: str) -> None:
    """Set a field as a reader does."""
    event = "change" if field == "sort" else "input"
    browser.execute_script(f"{field}.value = arguments[0]; {field}.dispatchEvent(new Event('{event}'))", value)


def shown(browser) -> list[int]:
    """The numbers of the prompts that are shown, from the top."""
    texts = browser.execute_script("return shown().map((row) => row.querySelector('.prompt').textContent)")
    return [int(text.split()[1]) for text in texts]


def frames_in_view(browser) -> set[int]:
    """The frames that videos in view show once all have come to rest."""
    at_rest = "video.paused && isReady(video) && Math.abs(video.currentTime - placeOf(video)) < frame / 4"
    wait_until(browser, f"inView.size && [...inView].every((video) => {at_rest})")
    return {int(time / FRAME) for time in browser.execute_script("return [...inView].map((v) => v.currentTime)")}


def wait_for_near(browser) -> int:
    """Wait until exactly the videos near the window have a file; returns how many."""
    wait_until(browser, f"({SHALL_LOAD}).length && ({SHALL_LOAD}).every((video) => video.src)")
    wait_until(browser, f"{LOADED}.length === ({SHALL_LOAD}).length && videos.length === {LOADED}.length")
    return browser.execute_script(f"return {LOADED}.length")


# Loading and playing


def test_only_videos_near_the_window_have_a_file(open_page):
    browser = open_page()
    assert browser.execute_script("return sources.size") == 150
    counts = [wait_for_near(browser)]
    for place in ("document.body.scrollHeight / 2", "document.body.scrollHeight", "0"):
        browser.execute_script(f"scrollTo(0, {place})")
        counts.append(wait_for_near(browser))
    assert all(3 <= count <= 30 for count in counts)


def test_videos_that_come_into_view_stand_where_the_others_stood(open_page):
    browser = open_page("#t=0.5")
    assert frames_in_view(browser) == {12}
    browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    wait_until(browser, "[...inView].some((video) => video.closest('tr') === rows[49])")
    assert frames_in_view(browser) == {12}


def test_all_in_view_play_in_step(open_page):
    browser = open_page()
    browser.execute_script("setPlaying(true)")
    in_step = "[...inView].every((video) => !video.paused && Math.abs(video.currentTime - clock.position) < frame / 2)"
    wait_until(browser, f"inView.size >= 6 && clock.position > 0.5 && {in_step}")
    assert browser.execute_script("return videos.filter((v) => !inView.has(v)).every((v) => v.paused)")


def test_a_missing_video_is_told_and_holds_nothing_up(browser, tmp_path, grid):
    (tmp_path / "my videos").symlink_to(grid.parent / "my videos")
    lost = Cell("lost", "lost.mp4", 30.0, None, None, None, None)
    page = write_page(tmp_path, [GridRequest("a disc", 1, (*request(0).cells, lost))])
    browser.get(page.as_uri())
    wait_until(browser, "!player.hidden && document.querySelectorAll('.unplayable').length === 1")
    wait_until(browser, "clock.position > 0.2")
    browser.get_log("browser")


def test_it_plays_from_a_server_too(open_page, grid):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=grid.parent))
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    try:
        browser = open_page(url=f"http://127.0.0.1:{server.server_port}/grid.html")
        assert wait_for_near(browser) >= 6
        browser.get("about:blank")
    finally:
        server.shutdown()
        server.server_close()


def test_without_a_script_every_video_has_controls_and_waits(browser, grid):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(grid.as_uri())
        videos = browser.find_elements("css selector", "video")
        assert len(videos) == 150 and not browser.find_element("id", "filters").is_displayed()
        states = {tuple(map(videos[at].get_property, ("controls", "preload", "readyState"))) for at in (0, 1, 149)}
        assert states == {(True, "none", 0)}
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# Sorting and filtering


def test_sorting_puts_the_worst_first(open_page):
    browser = open_page()
    for value, figure in (("worst", lambda n: psnr_of(n)[1]), ("2", lambda n: psnr_of(n)[0]), ("order", lambda n: n)):
        put(browser, "sort", value)
        numbers = shown(browser)
        assert sorted(numbers) == list(range(50))
        assert [figure(number) for number in numbers] == sorted(map(figure, range(50)))
        assert value == "order" or numbers[-1] == EQUAL
        wait_for_near(browser)


def test_filters_show_what_has_the_words_and_a_psnr_below(open_page):
    browser = open_page()
    put(browser, "below", "31")
    low = [number for number in range(50) if psnr_of(number)[1] < 31]
    assert shown(browser) == low
    put(browser, "words", "prompt 1")
    both = [number for number in low if 10 <= number < 20]
    assert shown(browser) == both
    assert browser.find_element("id", "count").text == f"{len(both)} of 50 shown"
    wait_for_near(browser)
    put(browser, "below", "")
    assert shown(browser) == list(range(10, 20))
    put(browser, "words", "no such prompt")
    assert shown(browser) == []
    wait_until(browser, "videos.length === 0")
    put(browser, "words", "")
    assert shown(browser) == list(range(50))
    wait_for_near(browser)


# Keys


def test_up_and_down_move_between_the_rows_that_are_shown(open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page()
    put(browser, "words", "9 of")

    def focused() -> str:
        return browser.execute_script("return document.activeElement.querySelector('.prompt').textContent.slice(7, 9)")

    places = []
    for key in (Keys.DOWN, Keys.DOWN, Keys.DOWN, Keys.UP, Keys.DOWN * 4, Keys.UP * 9):
        press(browser, key)
        places.append(focused())
        top, bottom, height = browser.execute_script(
            "const { top, bottom } = document.activeElement.getBoundingClientRect(); return [top, bottom, innerHeight]"
        )
        assert top >= 0 and bottom <= height
    assert places == ["09", "19", "29", "19", "49", "09"]
    style = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(style) == "solid"


def test_space_plays_and_arrows_step_while_the_videos_stand(open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page()
    press(browser, Keys.RIGHT * 3 + Keys.LEFT)
    assert frames_in_view(browser) == {2}
    press(browser, Keys.LEFT * 5)
    assert frames_in_view(browser) == {0}
    press(browser, " ")
    wait_until(browser, "clock.playing && clock.position > 0.1")
    press(browser, Keys.RIGHT)
    assert browser.execute_script("return clock.playing")
    press(browser, " ")
    assert len(frames_in_view(browser)) == 1


def test_keys_in_a_field_are_the_fields(open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page()
    browser.find_element("id", "words").click()
    press(browser, "disc", " ", Keys.LEFT, Keys.RIGHT, Keys.DOWN)
    state = browser.execute_script("return [words.value, clock.playing, clock.position, document.activeElement.id]")
    assert state == ["disc ", False, 0, "words"]


def test_a_step_is_a_frame_at_other_frame_rates(open_page, tmp_path):
    imageio.mimwrite(tmp_path / "ten.mp4", moving_disc(0, 30, height=48, width=80), fps=10)
    cell = Cell("uncached", "ten.mp4", None, None, None, None, None)
    browser = open_page(url=write_page(tmp_path, [GridRequest("a disc", 1, (cell,))]).as_uri())
    press(browser, " ")
    wait_until(browser, "Math.abs(frame - 1 / 10) < 1e-9")
    assert browser.execute_script("stand(0.3); stepBy(1); return clock.position") == pytest.approx(0.4)
    assert browser.execute_script("stepBy(-2); return clock.position") == pytest.approx(0.2)
