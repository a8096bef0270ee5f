"""Take the screenshots in docs/, with drawn hands.

    python -m tools.screenshots space weights/handunet-base    # docs/space.jpg and docs/space_phone.jpg
    python -m tools.screenshots web weights/handunet           # docs/web.jpg and docs/web_phone.jpg

Needs Chromium and playwright; the page in demo/web also needs node and npm.  The Space shows the name of the model's folder.
"""

import argparse
import io
import re
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests import test_space, test_web
from tests.chromium import CHROMIUM, FLAGS

DOCS = test_web.ROOT / "docs"
EXAMPLE = test_web.ROOT / "demo" / "space" / "examples" / "open.jpg"
DESKTOP = {"viewport": {"width": 1180, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


def save(page, name: str, height: int | None = None) -> None:
    """Write docs/`name`: the window, or the first `height` pixels of the whole page."""
    page.wait_for_timeout(2000)  # for the animations
    picture = Image.open(io.BytesIO(page.screenshot(full_page=height is not None))).convert("RGB")
    picture.crop((0, 0, picture.width, min(picture.height, height or picture.height))).save(DOCS / name, quality=88)


def camera_frame() -> Image.Image:
    """The example where the page expects a hand. Its edges are repeated up to those of the frame."""
    example = Image.open(EXAMPLE).convert("RGB").resize((426, 426), Image.Resampling.LANCZOS)
    width, height = test_web.CAMERA
    left = 106  # puts the hand in the middle
    margins = ((height - 426, 0), (left, width - 426 - left), (0, 0))
    return Image.fromarray(np.pad(np.asarray(example), margins, mode="edge"))


def space(playwright, model: Path, folder: Path) -> None:
    """A picture in the Space, on a desktop and on a phone."""
    windows = (("space.jpg", 900, DESKTOP), ("space_phone.jpg", 1750, {**PHONE, "is_mobile": True}))
    with (
        playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
        test_space.served(model, folder) as url,
    ):
        for name, height, window in windows:
            with test_space.opened(browser, url, **window) as page:
                page.click(".examples button >> nth=0")
                test_space.says(page, re.compile("Draw a box|Found "))  # the second by a detector
                page.click("#find")
                test_space.says(page, "Read: right hand")
                page.wait_for_selector("#drawing img")
                page.evaluate("window.scrollTo(0, 0)")
                save(page, name, height)


def web(playwright, model: Path, folder: Path) -> None:
    """The page in demo/web: a picture on a desktop, and the camera on a phone in the dark."""
    dist = test_web.build(model, folder / "web")
    phone = {**PHONE, "device_scale_factor": 1.5, "color_scheme": "dark"}
    with test_web.previewed(dist) as url:
        with (
            playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
            test_web.Page(browser, url, **DESKTOP) as page,
        ):
            page.open(EXAMPLE)
            save(page.page, "web.jpg")
        with (
            test_web.filmed(playwright, [camera_frame()], folder / "hand.mjpeg") as browser,
            test_web.Page(browser, url, **phone) as page,
        ):
            page.page.click("#camera")
            page.says("Following")
            save(page.page, "web_phone.jpg")


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__, formatter_class=as_written)
    parser.add_argument("page", choices=("space", "web"))
    parser.add_argument("model", type=Path, help="a saved model's folder")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        {"space": space, "web": web}[options.page](playwright, options.model.resolve(), Path(folder))


if __name__ == "__main__":
    main()
