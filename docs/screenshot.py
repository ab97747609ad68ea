"""Take a picture of a report page in headless Chromium, standing at a given time of its videos.

    python docs/screenshot.py report.html assets/report.png --time 0.2

Debian: apt-get install chromium chromium-driver. The driver is started by its path, so that Selenium looks for none on
the network.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@contextmanager
def open_browser(width: int = 1280, height: int = 2400) -> Iterator:
    """A Selenium driver of a headless Chromium with a fresh profile; raises RuntimeError where none is installed."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver = shutil.which("chromedriver")
    if CHROMIUM is None or driver is None:
        raise RuntimeError("there is no Chromium with its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        with webdriver.Chrome(options=options, service=Service(driver)) as browser:
            browser.set_script_timeout(30)
            yield browser


def wait_until(browser, condition: str, seconds: float = 10) -> None:
    """Wait until a JavaScript expression is true; raises selenium's TimeoutException that names it."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, seconds, 0.02).until(lambda _: browser.execute_script(f"return {condition}"), condition)


def main() -> None:
    """Open, wait for the videos, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--time", type=float, default=0.0, help="seconds at which the videos stand")
    parser.add_argument("--width", type=int, default=1280, help="pixels")
    parser.add_argument("--height", type=int, default=1600, help="pixels")
    options = parser.parse_args()
    with open_browser(options.width, options.height) as browser:
        browser.get(f"{options.page.resolve().as_uri()}#t={options.time}")
        at_rest = "!video.seeking && video.readyState > 1 && Math.abs(video.currentTime - placeOf(video)) < frame / 4"
        wait_until(browser, f"!player.hidden && videos.every((video) => {at_rest})")
        browser.save_screenshot(str(options.output))


if __name__ == "__main__":
    main()
