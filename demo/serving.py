"""What the endpoint and the Space share: images of strangers are decoded with a budget, and doubt is said in words.

A stranger's image is decoded in a process of its own, which gets so much memory and so many seconds and is then ended.
So an image that was built to take minutes costs its sender an answer, and nobody else anything.

This file imports Pillow only, because each of those processes runs it: `python serving.py IMAGES_FILE PIXELS`, where
IMAGES_FILE is the package's `images.py`.  A request on its standard input is a line of JSON and the image's bytes or base64
text; the answer on its standard output is a line of JSON and the pixels.
"""

import contextlib
import importlib.util
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")  # what cameras, phones and browsers make; JPEG: MPO too
MAX_BYTES = 32 * 1024**2
MAX_SCANS = 100  # of a JPEG; photographs have 1 to about 10
MAX_SECONDS = 5.0  # of processor time, to decode an image; a photograph of 25 megapixels takes a third of one
PATIENCE = 4  # times as long may it take by the clock, because the machine may be busy
START_SECONDS = 60.0  # for a process to start on a busy machine
MAX_MESSAGE = 500  # characters


class RequestError(ValueError):
    """A request that cannot be answered because of a mistake in it.

    `status` is its HTTP status (400 malformed, 413 too large, 415 not an image), `message` a short sentence for the sender.
    Hugging Face's toolkit ignores `status` and answers 400 with the sentence.
    """

    def __init__(self, status: int, message: str):
        self.status, self.message = status, clean(message)
        super().__init__(self.message)


def clean(message: str) -> str:
    """An error's text without what only this machine should know (places in memory, paths), and of limited length."""
    message = message[: 20 * MAX_MESSAGE]
    message = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>|0x[0-9a-fA-F]{6,}", "an object", message)
    message = re.sub(r"(?<![\w/:.])/(?:[\w.+-]+/)+[\w.+-]*", "a file", message)
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 3] + "..."


def doubt(hand: dict, clear_score: float) -> str | None:
    """A sentence for a person if this hand of the pipeline's answer is no clear hand, else None.

    `clear_score` is `NO_CLEAR_HAND` of `modeling_handunet.keypoints`, which this file cannot import.
    """
    return None if hand["score"] >= clear_score else f"No clear {hand['label']} here: only {100 * hand['score']:.0f} % sure."


class Decoders:
    """Up to `size` processes that decode images.  Several threads may call at once.

    A process starts when it is needed and stays for the next image.  One that had to be killed is replaced at once.
    """

    def __init__(self, images_file: str, most_pixels: int, size: int, seconds: float = MAX_SECONDS):
        self.command = [sys.executable, "-P", os.path.abspath(__file__), os.path.abspath(images_file), str(most_pixels)]
        self.most_pixels, self.seconds = most_pixels, seconds
        self._free = threading.BoundedSemaphore(size)
        self._idle = [_Process(self.command)]
        self.close = weakref.finalize(self, _close_all, self._idle)

    def decode(self, data: bytes | str, most_pixels: int | None = None, seconds: float | None = None) -> Image.Image:
        """The upright RGB image in a file's bytes, or in base64 text or a `data:` URL; `RequestError` if that cannot be."""
        seconds = self.seconds if seconds is None else seconds
        most_pixels = self.most_pixels if most_pixels is None else min(most_pixels, self.most_pixels)
        is_text = isinstance(data, str)
        data = data.encode(errors="replace") if is_text else data
        if len(data) > MAX_BYTES * (1.5 if is_text else 1):
            raise too_many_bytes(len(data))
        with self._free:
            process = self._take()
            request = {"bytes": len(data), "text": is_text, "most_pixels": most_pixels, "seconds": seconds}
            answer = process.ask(request, data)
            if answer is None:
                process.close()
                self._idle.append(_Process(self.command))
                reason = f"takes more than {seconds:.1f} s" if process.was_too_slow else "takes too much memory, or is damaged"
                raise RequestError(413, f"The image {reason} to decode: save it again as a plain JPEG.")
            self._idle.append(process)
        if "status" in answer:
            raise RequestError(answer["status"], answer["message"])
        return answer["image"]

    def _take(self) -> "_Process":
        while True:
            try:
                process = self._idle.pop()
            except IndexError:
                return _Process(self.command)
            if process.is_alive():
                return process
            process.close()


class _Process:
    """One process that decodes, as its parent sees it."""

    def __init__(self, command: list[str]):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.is_ready = self.was_too_slow = False

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: dict, data: bytes) -> dict | None:
        """The answer, or None if the process did not give one in time and is dead now."""
        try:
            if not self.is_ready:
                with self._killed_after(START_SECONDS):
                    self.is_ready = bool(self.process.stdout.readline())
            with self._killed_after(PATIENCE * request["seconds"]):
                self.process.stdin.write(json.dumps(request).encode() + b"\n")
                self.process.stdin.write(data)
                self.process.stdin.flush()
                answer = json.loads(self.process.stdout.readline())
                if "size" in answer:
                    width, height = answer["size"]
                    pixels = self.process.stdout.read(3 * width * height)
                    answer["image"] = Image.frombytes("RGB", (width, height), pixels)
        except (OSError, ValueError):  # it died in the middle
            return None
        return None if self.was_too_slow else answer

    @contextlib.contextmanager
    def _killed_after(self, seconds: float):
        def kill():
            self.was_too_slow = True
            self.process.kill()

        timer = threading.Timer(max(seconds, 0), kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # after this, either it was killed or it will not be

    def close(self) -> None:
        self.process.kill()
        self.was_too_slow |= self.process.wait() == -getattr(signal, "SIGXCPU", 0)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _close_all(processes: list[_Process]) -> None:
    while processes:
        processes.pop().close()


def too_many_bytes(count: int) -> RequestError:
    return RequestError(413, f"The image has {count} bytes, at most {MAX_BYTES} are accepted: resize it first.")


# What runs in the other process.


def decode(data: bytes, is_text: bool, most_pixels: int, images) -> Image.Image:
    """As `Decoders.decode`, in this process.  `images` is the package's module."""
    if is_text:
        text = data.partition(b",")[2] if data.startswith(b"data:") else data
        try:
            data = images.decode_base64(text)
        except ValueError:
            sentence = "An image is not valid base64. Paths and web addresses are not read: send its bytes."
            raise RequestError(400, sentence) from None
    if len(data) > MAX_BYTES:
        raise too_many_bytes(len(data))
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise RequestError(413, f"{error} Resize the image first.") from None
    except Exception:  # Pillow's readers raise many kinds of errors
        kinds = "JPEG, PNG, WebP and AVIF are accepted"
        raise RequestError(415, f"{len(data)} bytes are not an image that can be read here: {kinds}.") from None
    with image:
        width, height = image.size
        if width * height > most_pixels:
            limit = f"at most {most_pixels} are accepted: resize it first"
            raise RequestError(413, f"The image has {width} x {height} pixels, {limit}.")
        if image.format in ("JPEG", "MPO") and (scans := images.count_scans(data)) > MAX_SCANS:
            raise RequestError(413, f"The image is a JPEG of {scans} scans, expected about 10: save it again.")
        try:
            return images.to_rgb(image, "The image")
        except (OSError, ValueError) as error:
            raise RequestError(400, str(error)) from None


def main(images_file: str, most_pixels: str) -> None:
    """Answer requests on the standard input until it ends."""
    spec = importlib.util.spec_from_file_location("images", images_file)
    images = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(images)
    warnings.simplefilter("ignore")  # among them Pillow's about many pixels, for which this file has a limit
    try:
        import resource
    except ImportError:  # not on every system
        resource = None
    else:
        memory = 2**29 + 32 * int(most_pixels)  # Pillow's WebP takes the most, about 20 bytes a pixel
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    receive, send = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # so that nothing else gets between the answers
    send.write(b"ready\n")
    send.flush()
    while line := receive.readline():
        request = json.loads(line)
        if resource:  # beyond it the system ends this process
            spent = math.ceil(time.process_time() + max(request["seconds"], 0)) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (spent, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        data, pixels = receive.read(request["bytes"]), b""
        if len(data) < request["bytes"]:
            return
        try:
            image = decode(data, request["text"], request["most_pixels"], images)
            answer, pixels = {"size": image.size}, image.tobytes()
        except RequestError as error:
            answer = {"status": error.status, "message": error.message}
        except MemoryError:
            answer = {"status": 413, "message": "The image takes too much memory to decode: resize it first."}
        except Exception as error:
            answer = {"status": 415, "message": f"The image cannot be decoded: {type(error).__name__}."}
        data = image = None
        send.write(json.dumps(answer).encode() + b"\n")
        send.write(pixels)
        send.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(*sys.argv[1:])
