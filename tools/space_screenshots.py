"""Take the pictures of the Space that docs/ has, with drawn hands.

    python -m tools.space_screenshots MODEL

MODEL is a saved folder, shown under its own name.  Writes docs/space.jpg and docs/space_phone.jpg.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.chromium import CHROMIUM, FLAGS
from tests.test_space import ROOT, opened, says, served

WINDOWS = {
    "space.jpg": {"viewport": {"width": 1180, "height": 900}},
    "space_phone.jpg": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
HEIGHTS = {"space.jpg": 900, "space_phone.jpg": 1750}  # what is kept of the page, px


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with served(Path(model).resolve(), Path(folder)) as url:
            for name, window in WINDOWS.items():
                with opened(chromium, url, **window) as page:
                    page.click(".examples button >> nth=0")
                    says(page, "Draw a box")
                    page.click("#find")
                    says(page, "Read: right hand")
                    page.wait_for_selector("#drawing img")
                    page.wait_for_timeout(2000)  # for the animations
                    page.evaluate("window.scrollTo(0, 0)")
                    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
                    picture = picture.crop((0, 0, picture.width, min(picture.height, HEIGHTS[name])))
                    picture.save(ROOT / "docs" / name, quality=88)
        chromium.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
