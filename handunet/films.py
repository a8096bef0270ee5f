"""Films, by PyAV: frame after frame, and a film of drawings with the length, the sound and the frame rate of the first.

A film of any length takes the memory of a few frames.  What is written can be played up to the last second, also if the program
is killed: the file is in fragments until it is done.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from PIL import Image

from handunet.answers import OutputError

PYAV = "pip install 'handunet[video]'"
OPENING_SECONDS = 30.0  # of an address
MAX_PIXELS = 64_000_000  # of a frame, as `images.MAX_IMAGE_PIXELS`
# A film that ends earlier than it says by more than this share is cut off.
CUT_SHARE = 0.1
# Sound that is copied into an MP4 as it is.  Other sound becomes AAC.
COPIED_SOUND = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"})
MAX_WAITING_SOUND = 4000  # packets before the first frame
DEFAULT_RATE = Fraction(25)
ENCODER = {"crf": "20", "preset": "veryfast", "bf": "0"}  # without B-frames, times begin where the film's do
# Written in fragments of a second, and as a usual file in the end.
CONTAINER = {"movflags": "+hybrid_fragmented+delay_moov", "frag_duration": "1000000", "flush_packets": "1"}
TILT = 5  # degrees by which a film's turn may be off a quarter
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def import_av():
    """PyAV, or an `ImportError` that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise ImportError(f"films need PyAV ({error}): {PYAV}") from None
    av.logging.set_level(None)  # errors come as exceptions
    return av


@dataclass(frozen=True)
class Frame:
    """image: upright RGB; number: from 0; seconds: from the film's begin; pts: the same in the film's time base."""

    image: Image.Image
    number: int
    seconds: float
    pts: int


class Film:
    """A film to read.  `with Film(name) as film: for frame in film.frames(): ...`

    `notes` has sentences about what is odd, and `troubles` about what could not be read.  `pixel_shape` is width over height
    of an upright frame's pixels, known after the first frame; None if they are squares.  Raises `ValueError` or `OSError`
    for what is no film.
    """

    def __init__(self, name: str):
        av = import_av()
        self.name, self.notes, self.troubles = name, [], []
        self.pixel_shape: Fraction | None = None
        if not name.startswith(("http://", "https://")) and not Path(name).is_file():
            raise FileNotFoundError(f"There is no film {name!r}.")
        try:
            self.container = av.open(name, timeout=OPENING_SECONDS, metadata_errors="ignore")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"{name} is no film that can be read: {reason}.") from None
        streams = self.container.streams
        self.picture = streams.best("video")  # not the picture of a cover
        self.sound = next(iter(streams.audio), None)
        if self.picture is None or self.picture.codec_context is None or self.picture.codec_context.codec is None:
            has_picture = self.picture is not None or any(stream.type == "video" for stream in streams)
            what = "its codec is not known here: convert it to H.264" if has_picture else "it has no picture, or it is cut off"
            self.container.close()
            raise OSError(f"{name} cannot be read: {what}.")
        if self.sound is not None and self.sound.codec_context is None:
            self.sound = None
            self.notes.append(f"{name}: its sound has an unknown codec and is left out.")
        self.picture.thread_type = "AUTO"
        self.rate = self.picture.average_rate or self.picture.guessed_rate or DEFAULT_RATE
        self.time_base = self.picture.time_base or 1 / self.rate

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *_) -> None:
        self.container.close()

    @property
    def seconds(self) -> float | None:
        """How long the film says it is."""
        if self.picture.duration and self.picture.time_base:
            return float(self.picture.duration * self.picture.time_base)
        return self.container.duration / 1e6 if self.container.duration else None

    def frame_count(self) -> int:
        """About how many frames will come; 0 if the film does not say it."""
        return self.picture.frames or round((self.seconds or 0) * self.rate)

    def _look_at_first(self, frame) -> None:
        """Learn from the first frame how its pixels stand."""
        turn = quarter_turn(frame.rotation)
        if turn is None:
            self.notes.append(f"{self.name} says that it is turned by {frame.rotation} degrees: it is taken as it stands.")
        shape = self.picture.sample_aspect_ratio
        if shape and shape != 1:
            self.pixel_shape = 1 / shape if turn in (90, 270) else shape

    def frames(self, sound: Callable[[object], None] | None = None, *, every: float = 0.0) -> Iterator[Frame]:
        """All frames, or one in `every` seconds; `sound` gets the packets of the sound between them."""
        av = import_av()
        number, pts, start, next_seconds, size = 0, None, None, 0.0, None
        step = max(round(1 / self.rate / self.time_base), 1)
        for frame in self._decoded(av, sound):
            if frame.width * frame.height > MAX_PIXELS:
                raise ValueError(f"{self.name} has {frame.width}x{frame.height} pixels a frame: expected at most {MAX_PIXELS}.")
            if size is not None and (frame.width, frame.height) != size:
                before, now = (f"{width}x{height}" for width, height in (size, (frame.width, frame.height)))
                self.notes.append(f"{self.name} changes its size from {before} to {now} at frame {number}.")
            size = (frame.width, frame.height)
            if start is None:
                self._look_at_first(frame)
                start = pts = frame.pts or 0
            else:  # times that are missing or go back follow the last one
                pts = frame.pts if frame.pts is not None and frame.pts > pts else pts + step
            seconds = float((pts - start) * self.time_base)
            self.last_seconds = seconds
            if seconds >= next_seconds - 1e-6:
                next_seconds = ((seconds + 1e-6) // every + 1) * every if every else 0.0
                yield Frame(upright(frame), number, round(seconds, 6), pts)
            number += 1
        if not number:
            self.troubles.append(f"{self.name} has no frame that can be read.")
        elif self.seconds and (self.last_seconds + 1 / self.rate) < (1 - CUT_SHARE) * self.seconds and not self.troubles:
            self.troubles.append(
                f"{self.name} is cut off: it ends after {self.last_seconds:.1f} of {self.seconds:.1f} seconds."
            )

    def _decoded(self, av, sound) -> Iterator:
        """Decoded frames.  A damaged packet costs only itself."""
        damaged, count = 0, 0
        wanted = [stream for stream in (self.picture, self.sound if sound else None) if stream is not None]
        packets = self.container.demux(wanted)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.error.FFmpegError, OSError) as error:
                self.troubles.append(f"{self.name} is cut off or damaged after frame {count}: {error.strerror or error}.")
                packet = None  # decode what the decoder still holds
            try:
                if packet is not None and packet.stream is self.sound:
                    sound(packet)
                    continue
                decoded = self.picture.decode(packet)
            except (av.error.FFmpegError, OSError) as error:
                damaged += 1
                decoded = []
                if not count and isinstance(error, av.error.DecoderNotFoundError):
                    raise OSError(f"{self.name} cannot be read: its codec is not known here.") from None
            for frame in decoded:
                count += 1
                yield frame
            if packet is None:
                break
        if damaged and count:
            self.troubles.append(f"{self.name} is damaged: {damaged} of its packets could not be read.")


def quarter_turn(degrees: float) -> int | None:
    """The nearest quarter of a turn, 0 to 270 degrees; None if it is off by more than a little."""
    turn = round(degrees / 90) * 90
    return turn % 360 if abs(degrees - turn) <= TILT else None


def upright(frame) -> Image.Image:
    """A decoded frame as an RGB image, turned as the film says."""
    image = frame.to_image()
    turn = TURNS.get(quarter_turn(frame.rotation))
    return image if turn is None else image.transpose(turn)


class FilmWriter:
    """A film of drawings: H.264 in an MP4, with the times and the sound of `film`.  The file appears with the first frame.

    Raises [`OutputError`] if it cannot be written, for example on a full disk; what it has until then can be played.
    """

    def __init__(self, path: Path, film: Film | None, rate: Fraction = DEFAULT_RATE):
        self.av, self.path, self.film = import_av(), path, film
        self.rate = film.rate if film else rate
        self.time_base = film.time_base if film else Fraction(1, 1000)
        self.container = self.picture = self.sound = self.resampler = self.size = None
        self.waiting: deque = deque(maxlen=MAX_WAITING_SOUND)
        self.count = 0

    def open(self, size: tuple[int, int]) -> None:
        """Begin the file.  H.264 wants even sides, so that a row or a column may come at the edge."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.container = self.av.open(str(self.path), "w", format="mp4", options=CONTAINER)
        self.size = size
        self.picture = self.container.add_stream("libx264", rate=self.rate, options=ENCODER)
        self.picture.width, self.picture.height = (side + side % 2 for side in size)
        self.picture.pix_fmt = "yuv420p"
        if self.film and self.film.pixel_shape:
            self.picture.codec_context.sample_aspect_ratio = self.film.pixel_shape
        self.picture.codec_context.time_base = self.picture.time_base = self.time_base
        sound = self.film.sound if self.film else None
        if sound is not None and sound.codec_context.codec.canonical_name in COPIED_SOUND:
            self.sound = self.container.add_stream_from_template(sound)
        elif sound is not None:
            self.sound = self.container.add_stream("aac", rate=sound.rate)
            self.sound.codec_context.layout = sound.layout.name if sound.layout.nb_channels <= 2 else "stereo"
            self.resampler = self.av.AudioResampler("fltp", self.sound.codec_context.layout, sound.rate)

    def add(self, image: Image.Image, pts: int) -> None:
        """Write a frame; one of another size than the first is fitted into it."""
        with self.writing():
            if self.container is None:
                self.open(image.size)
            width, height = self.picture.width, self.picture.height
            if image.size != self.size:
                image = fitted(image, self.size)
            if image.size != (width, height):
                image = image.crop((0, 0, width, height))
            frame = self.av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = pts, self.time_base
            self.container.mux(self.picture.encode(frame))
            self.count += 1
            while self.waiting:
                self.mux_sound(self.waiting.popleft())

    def add_sound(self, packet) -> None:
        """Write a packet of the film's sound."""
        if packet.size == 0 and self.resampler is None:  # the last one, which makes a decoder give what it holds
            return
        if self.container is None:
            self.waiting.append(packet)
            return
        with self.writing():
            self.mux_sound(packet)

    def mux_sound(self, packet) -> None:
        """Copy a packet, or encode it anew."""
        if self.resampler is None:
            packet.stream = self.sound
            self.container.mux(packet)
            return
        try:
            frames = packet.decode()
        except self.av.error.InvalidDataError:
            return
        for frame in frames:
            for part in self.resampler.resample(frame):
                self.container.mux(self.sound.encode(part))

    def writing(self):
        """Turn errors into [`OutputError`]."""
        return _Writing(self)

    def close(self) -> None:
        """Write what the encoders hold, and end the file."""
        if self.container is None:
            return
        with self.writing():
            self.container.mux(self.picture.encode(None))
            if self.resampler is not None:
                self.container.mux(self.sound.encode(None))
        self.end()

    def end(self) -> None:
        """End the file as it is."""
        container, self.container = self.container, None
        if container is not None:
            try:
                container.close()
            except (self.av.error.FFmpegError, OSError) as error:
                raise self.error(error) from None

    def error(self, error: Exception) -> OutputError:
        """The sentence for a film that cannot be written on."""
        reason = getattr(error, "strerror", None) or error
        return OutputError(f"{self.path} cannot be written: {reason}. Its first {self.count} frames, about, are kept.")


class _Writing:
    def __init__(self, writer: FilmWriter):
        self.writer = writer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (self.writer.av.error.FFmpegError, OSError, ValueError)):
            failed = self.writer.error(error)
            with contextlib.suppress(OutputError):
                self.writer.end()
            raise failed from error


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image in the middle of a black one of this size, as large as it fits."""
    scale = min(side / own for side, own in zip(size, image.size))
    inner = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    result = Image.new("RGB", size)
    result.paste(inner, tuple((side - own) // 2 for side, own in zip(size, inner.size)))
    return result
