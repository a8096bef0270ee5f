"""Short films for the tests, drawn here."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def picture(size=(160, 120), number: int = 0) -> Image.Image:
    """A grey picture whose white square moves by one pixel a frame."""
    image = Image.new("RGB", size, (90, 90, 90))
    ImageDraw.Draw(image).rectangle((10 + number, 20, 40 + number, 50), fill=(255, 255, 255))
    return image


def write_film(
    path: Path,
    frames=20,
    *,
    size=(160, 120),
    rate=Fraction(15),
    codec="libx264",
    sound=None,
    times=None,
    options=None,
    pixel_shape=None,
) -> Path:
    """A film of [`picture`]s, if wanted with noise encoded by `sound`; `times` of the frames are in 1/1000 s, and
    `pixel_shape` is width over height."""
    import av

    with av.open(str(path), "w", options=options or {}) as out:
        video = out.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        if pixel_shape:
            video.codec_context.sample_aspect_ratio = pixel_shape
        if times:
            video.codec_context.time_base = Fraction(1, 1000)
        audio = out.add_stream(sound, rate=44100, layout="mono") if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_image(picture(size, number))
            frame.pts, frame.time_base = (times[number], Fraction(1, 1000)) if times else (number, 1 / Fraction(rate))
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio:
            length, step = round(44100 * frames / rate), 1024
            for start in range(0, length, step):
                noise = np.random.default_rng(start).uniform(-0.2, 0.2, (1, min(step, length - start)))
                frame = av.AudioFrame.from_ndarray((noise * 32767).astype(np.int16), format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 44100, start, Fraction(1, 44100)
                out.mux(audio.encode(frame))
            out.mux(audio.encode(None))
    return path
