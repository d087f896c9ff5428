"""Draw the leaderboard's first page, in Chromium: ``python docs/screenshot.py PAGE PICTURE``."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


def main(page: str, picture: str) -> None:
    """Write a picture of the page, in few colours, so that it is small."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 1010})
        tab.goto(Path(page).resolve().as_uri() + "#task=nudity")
        tab.wait_for_selector("tbody tr")
        shot = tab.screenshot()
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(64).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
