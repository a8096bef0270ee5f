"""Films and the webcam in the Space: hands are followed from frame to frame, and drawn into the frames."""

import time
from fractions import Fraction

import av
from PIL import Image

from modeling_handunet import draw_hand
from modeling_handunet.hands import HandModels
from modeling_handunet.tracking import HandTracks

MAX_FRAMES = 300  # of a film; what follows is left out
MAX_SECONDS = 60  # to follow the hands of a film
SIDE = 640  # longest side of the frames that are read and written, pixels
MAX_HANDS = 4


def draw_film(path: str, target: str, models: HandModels) -> str:
    """Write the film `path` with its hands drawn to `target`, an MP4 without sound; a sentence about it.

    Raises `ValueError` with a sentence for a file that is no film.
    """
    tracks, count, with_hands, start = HandTracks(models, max_hands=MAX_HANDS), 0, 0, time.monotonic()
    try:
        with av.open(path) as film, av.open(target, "w", format="mp4") as drawn:
            if not film.streams.video:
                raise ValueError("The file has no pictures: choose a film.")
            rate = film.streams.video[0].average_rate or 25
            rate = Fraction(min(max(rate, 1), 60)).limit_denominator(1001)
            stream = None
            for frame in film.decode(video=0):
                if count == MAX_FRAMES or time.monotonic() - start > MAX_SECONDS:
                    break
                picture = fitted(frame.to_image(), stream and (stream.width, stream.height))
                if stream is None:
                    stream = drawn.add_stream("h264", rate=rate, width=picture.width, height=picture.height, pix_fmt="yuv420p")
                hands = tracks(picture, float(count / rate))
                count, with_hands = count + 1, with_hands + bool(hands)
                for packet in stream.encode(av.VideoFrame.from_image(draw_hands(picture, hands))):
                    drawn.mux(packet)
            if stream is None:
                raise ValueError("The film has no pictures that can be read: choose another one.")
            for packet in stream.encode():
                drawn.mux(packet)
    except av.error.FFmpegError as error:
        if not count:
            raise ValueError(f"The film cannot be read ({error.strerror}): choose an MP4 or WebM.") from None
    cut = "" if count < MAX_FRAMES and time.monotonic() - start <= MAX_SECONDS else " What follows was left out."
    return f"{count} pictures, {with_hands} of them with hands.{cut}"


def fitted(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """A frame in a size that a film can have: sides that are even, the longer one at most `SIDE`; or in `size`."""
    if size is None:
        scale = min(1, SIDE / max(picture.size))
        size = tuple(max(16, 2 * round(length * scale / 2)) for length in picture.size)
    return picture if picture.size == size else picture.resize(size)


def draw_hands(picture: Image.Image, hands: list[dict]) -> Image.Image:
    """A copy of the picture with the hands as the pipeline or a tracker describes them."""
    for hand in hands:
        points = [(point["x"], point["y"]) for point in hand["keypoints"]]
        picture = draw_hand(picture, points, [point["score"] for point in hand["keypoints"]])
    return picture


class Webcam:
    """The hands before one visitor's camera."""

    def __init__(self, models: HandModels):
        self.tracks, self.start = HandTracks(models, max_hands=MAX_HANDS), time.monotonic()

    def __call__(self, picture: Image.Image) -> tuple[Image.Image, str]:
        """The frame with its hands, and a sentence."""
        picture = fitted(picture.convert("RGB"), None)
        hands = self.tracks(picture, time.monotonic() - self.start)
        said = ", ".join(f"{hand['label']} {hand['id']}" for hand in hands)
        return draw_hands(picture, hands), said or "No hand in sight."
