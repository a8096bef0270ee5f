"""Take the pictures of the page that docs/ has, with drawn hands.

    python -m tools.web_screenshots MODEL

Builds the page in a folder of its own with MODEL, a saved folder.  Writes docs/web.jpg, a picture on a desktop, and
docs/web_phone.jpg, the camera on a phone in the dark.
"""

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from tests.chromium import CHROMIUM, FLAGS, free_port, need_node
from tests.test_web import CAMERA, ROOT, WEB, Page, filmed, run

EXAMPLE = ROOT / "demo" / "space" / "examples" / "open.jpg"


def camera_frame() -> Image.Image:
    """The example about where the guide expects a hand; its edges go on to those of the frame."""
    example = Image.open(EXAMPLE).convert("RGB").resize((426, 426), Image.Resampling.LANCZOS)
    width, height = CAMERA
    left = 106  # the hand is in the middle then
    margins = ((height - 426, 0), (left, width - 426 - left), (0, 0))
    return Image.fromarray(np.pad(np.asarray(example), margins, mode="edge"))


def keep(page: Page, name: str) -> None:
    page.page.wait_for_timeout(1500)  # for the animations
    picture = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
    picture.save(ROOT / "docs" / name, quality=88)


def main(model: str) -> None:
    node = need_node()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary) / "web"
        shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "dist", "model.onnx"))
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder)
        run([sys.executable, "-m", "scripts.export_onnx", Path(model).resolve(), folder / "public" / "model.onnx"])
        run(["npm", "run", "build"], cwd=folder)
        port = free_port()
        command = [node, "node_modules/vite/bin/vite.js", "preview", "--port", str(port), "--strictPort"]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}/"
        try:
            for _ in range(120):
                with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url):
                    break
                time.sleep(0.5)
            with playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
                with Page(browser, url, viewport={"width": 1180, "height": 900}) as page:
                    page.open(EXAMPLE)
                    keep(page, "web.jpg")
            phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "device_scale_factor": 1.5}
            with filmed(playwright, [camera_frame()], Path(temporary) / "hand.mjpeg") as browser:
                with Page(browser, url, color_scheme="dark", **phone) as page:
                    page.page.click("#camera")
                    page.says("Following")
                    keep(page, "web_phone.jpg")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
