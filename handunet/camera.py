"""A camera and a window, by OpenCV."""

import time
from collections.abc import Iterator

from PIL import Image

OPENCV = "pip install 'handunet[camera]'"
TITLE = "handunet: press q or Esc to end"
ENDING_KEYS = (ord("q"), 27)
LOST_SECONDS = 3.0  # without a frame, the camera is taken to be gone


class CameraError(Exception):
    """What ends the picture, in a sentence."""


def import_cv2():
    """OpenCV, or an `ImportError` that says how to get it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f"--camera needs OpenCV ({error}): {OPENCV}") from None
    return cv2


def frames(name: str) -> Iterator[tuple[Image.Image, float]]:
    """RGB images of a camera, by its number or by the name of its device or address, with their times in seconds.

    Raises `CameraError` if there is none, or if it goes away.
    """
    cv2 = import_cv2()
    capture = cv2.VideoCapture(int(name) if name.isdecimal() else name)
    try:
        if not capture.isOpened():
            raise CameraError(f"There is no camera {name}, or another program uses it.")
        begun, count, last = time.monotonic(), 0, time.monotonic()
        while True:
            is_there, pixels = capture.read()
            now = time.monotonic()
            if is_there:
                count, last = count + 1, now
                yield Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)), now - begun
            elif not capture.isOpened() or now - last > LOST_SECONDS:
                raise CameraError(f"Camera {name} " + (f"went away after frame {count}." if count else "gives no picture."))
            else:
                time.sleep(0.01)
    finally:
        capture.release()


class Window:
    """Shows images until somebody ends it.  Raises `CameraError` where no window can be shown."""

    def __init__(self):
        self.cv2, self.is_open = import_cv2(), False

    def show(self, image: Image.Image) -> bool:
        """Show an image.  Returns whether to go on."""
        import numpy as np

        try:
            self.cv2.imshow(TITLE, self.cv2.cvtColor(np.asarray(image), self.cv2.COLOR_RGB2BGR))
            key = self.cv2.waitKey(1)
            is_shown = self.cv2.getWindowProperty(TITLE, self.cv2.WND_PROP_VISIBLE) >= 1
        except self.cv2.error as error:
            reason = str(error).strip().splitlines()[-1]
            raise CameraError(
                f"No window can be shown ({reason}): OpenCV needs a screen, and must be the package opencv-python: {OPENCV}"
            ) from None
        self.is_open = True
        return key & 0xFF not in ENDING_KEYS and is_shown

    def close(self) -> None:
        """Take the window away."""
        if self.is_open:
            self.cv2.destroyAllWindows()
