"""Requests and images of strangers, as the endpoint and the Space get them, and web addresses."""

import base64
import contextlib
import functools
import importlib.util
import io
import ipaddress
import json
import random
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from unittest import mock

from PIL import Image

import modeling_handunet.images
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from modeling_handunet.images import load_image
from modeling_handunet.keypoints import NO_CLEAR_HAND
from modeling_handunet.pipeline_handunet import HandKeypointDetectionPipeline
from tests.small_model import small_detector
from tools.fuzzing import ROOT, Failure
from tools.fuzzing.images import SMALL, make_image, slow_image
from tools.fuzzing.mutations import hostile_value, json_bomb, mutate_bytes, mutate_json

sys.path.append(str(ROOT / "demo"))
import serving
from serving import RequestError

SECONDS = 1.0  # of processor time to decode an image
MOST_PIXELS = 25_000_000


@functools.cache
def decoders() -> serving.Decoders:
    """Of the process that calls it first: after a fork each needs its own."""
    return serving.Decoders(modeling_handunet.images.__file__, MOST_PIXELS, 1, SECONDS)


# Images


def make_served(corpus: dict[str, bytes], draw: random.Random, folder: Path) -> bytes:
    decoders().decode(corpus["JPEG plain"], seconds=60)  # the process is there
    return slow_image(draw, corpus) if draw.random() < 0.5 else make_image(corpus, draw, folder)


def use_served(data: bytes, _) -> None:
    """The image, or a short sentence, within the seconds that there are by the clock."""
    start = time.monotonic()
    try:
        image = decoders().decode(data)
    except RequestError as error:
        check_sentence(error.message)
        raise
    finally:
        if (took := time.monotonic() - start) > serving.START_SECONDS + 2 * serving.PATIENCE * SECONDS:
            raise Failure(f"it took {took:.0f} s")
    if image.mode != "RGB" or image.width * image.height > MOST_PIXELS:
        raise Failure(f"an image of {image.mode} {image.size}")


def check_sentence(text: str) -> None:
    if len(text) > serving.MAX_MESSAGE or " at 0x" in text or str(ROOT) in text:
        raise Failure(f"a stranger is told {len(text)} characters: {text[:300]}")


# Requests


@functools.cache
def endpoint():
    """`serve.py`, and a handler with a small network."""
    modules = {}
    for name in ("handler", "serve"):
        spec = importlib.util.spec_from_file_location(f"fuzzed_{name}", ROOT / "demo" / "endpoint" / f"{name}.py")
        modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    handler = object.__new__(modules["handler"].EndpointHandler)
    network = HandUNetForPoseEstimation(HandUNetConfig(image_size=SMALL, hidden_sizes=(4, 8))).eval()
    processor = HandUNetImageProcessor(size=SMALL)
    handler.pipe = HandKeypointDetectionPipeline(
        model=network, image_processor=processor, detector=small_detector(), allow_urls=False
    )
    handler.finds_hands, handler.clear_score = True, NO_CLEAR_HAND
    return modules["serve"], handler


def make_request(corpus: dict[str, bytes], draw: random.Random, folder: Path) -> tuple[bytes, str]:
    decoders().decode(corpus["JPEG plain"], seconds=60)
    pictures = [corpus[name] for name in ("JPEG plain", "PNG RGBA", "WEBP lossy")]
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    single = draw.random() < 0.5
    boxes, hands = [[5, 5, 30, 30], [1.5, -3, 20, 40]], ["right", "left"]
    parameters = {"boxes": boxes if single else [boxes, None, []], "handedness": draw.choice(("right", hands))}
    parameters["threshold"] = 0.0
    for name in draw.sample(list(parameters), draw.choice((0, 0, 1, 2))):
        del parameters[name]
    whole = {"inputs": texts[0] if single else texts, "parameters": parameters}
    if draw.random() < 0.1:
        whole["parameters"]["boxes"] = draw.choice((boxes * 40, boxes * 3000, [[draw.choice((1e308, -1e9, 1e-320))] * 4]))
    kind = draw.choice(("json", "json", "json", "json", "image", "bomb", "type"))
    if kind == "image":
        return make_image(corpus, draw, folder), draw.choice(("image/jpeg", "application/octet-stream", ""))
    if kind == "bomb":
        return json_bomb(draw)[: 20 << 20], "application/json"
    if kind == "type":
        types = ("application/json; charset=utf-16", "APPLICATION/JSON", "text/plain", "application/json;" * 1000, "\xff")
        return mutate_bytes(draw, json.dumps(whole).encode()), draw.choice(types)
    if draw.random() < 0.1:
        return json.dumps(whole).encode(), "application/json"
    return mutate_json(draw, whole, ("inputs", "parameters", "boxes", "handedness", "threshold")), "application/json"


def use_request(request: tuple[bytes, str], _) -> None:
    """An answer that JSON can hold, or a refusal in a short sentence; never the server's own failure."""
    serve, handler = endpoint()
    handler.decoders = decoders()
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        response = serve.respond(handler, *request)
    answer = json.loads(response.body, parse_constant=lambda text: unexpected(f"the answer holds {text}"))
    if response.status_code != 200:
        if response.status_code not in (400, 413, 415):
            raise Failure(f"status {response.status_code}: {answer}\n{printed.getvalue()}")
        check_sentence(answer["error"])
        raise RequestError(response.status_code, answer["error"])
    for hand in (hand for hands in answer for hand in (hands if isinstance(hands, list) else [hands])):
        if len(hand["keypoints"]) != 21 or hand["label"] not in ("right hand", "left hand"):
            raise Failure(f"a hand that is none: {hand}")


def unexpected(what: str):
    raise Failure(what)


# Web addresses

HOSTS = (
    *("127.0.0.1", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "localhost", "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]"),
    *("[::ffff:7f00:1]", "0.0.0.0", "0", "[::]", "169.254.169.254", "[fe80::1%25lo]", "\uff11\uff12\uff17.0.0.1", "127.0.0.1."),
    *("example.com", "ex\u00e4mple.de", "user:pass@127.0.0.1", "example.com@127.0.0.1", "127.0.0.1@example.com"),
    *("%31%32%37.0.0.1", "", "[", "[::1", "a b", "a" * 300, "a." * 200, "\ud800", "exa\tmple.com", "a\0b", ".", "-"),
)  # fmt: skip
SCHEMES = ("http://", "http://", "https://", "HTTP://", "ftp://", "file://", "gopher://", "http:/", "data:", "data:image/png,")


OUTSIDE = ("example.com", "ex\u00e4mple.de", "EXAMPLE.com.", "203.0.113.9", "127.0.0.1@example.com")


def make_url(corpus: dict[str, bytes], draw: random.Random, _) -> tuple[str, bool, list[bytes]]:
    """An address, whether web addresses are allowed at all, and what the servers answer, one after another."""
    picture = corpus[draw.choice(("JPEG plain", "PNG RGB", "WEBP lossy", "AVIF"))]
    if draw.random() < 0.1:
        return _data_url(draw, picture), draw.random() < 0.7, []
    if draw.random() < 0.4:  # one that leads somewhere
        path = draw.choice(("/my hand.jpg", "/\u00e4.png?a=b c", "/a%20b.png#top"))
        url = "http://" + draw.choice(OUTSIDE) + draw.choice(("", ":80", ":8080")) + path
    else:
        url = _odd_url(draw)
    answers = []
    if draw.random() < 0.3:
        status = draw.choice((b"301 Moved", b"302 Found", b"303 See Other", b"307 Temporary", b"308 Permanent", b"300 Choices"))
        target = draw.choice((f"http://{draw.choice(OUTSIDE)}/hand.png", _odd_url(draw), "/hand.png", "//127.0.0.1/hand.png"))
        location = target.encode("utf-8", "surrogatepass").replace(b"\r", b"")[:70_000]  # a pair holds about 200 KB
        answers.append(b"HTTP/1.1 " + status + b"\r\nLocation: " + location + b"\r\n\r\n")
    length = draw.choice((b"", b"Content-Length: %d\r\n" % len(picture)))
    answers.append(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + picture)
    if draw.random() < 0.2:
        broken = b"SSH-2.0-nothing\r\n", b"", b"HTTP/1.1 404 Not Found\r\n\r\n", mutate_bytes(draw, answers[-1], answers[0])
        answers[-1] = draw.choice(broken)
    return url, draw.random() < 0.7, answers


def _odd_url(draw: random.Random) -> str:
    port = draw.choice(("", ":80", ":0", ":65536", ":port", ":-1", ":", ":99999999999999999999"))
    path = draw.choice(("", "/my hand.jpg", "/\u00e4.jpg", "/..", "?a=b#c", "/%00", "/" + "x" * 5000, "\r\nHost: a", "/\ud800"))
    url = draw.choice(SCHEMES) + draw.choice(HOSTS) + port + path
    if draw.random() < 0.3:
        url = mutate_bytes(draw, url.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    elif draw.random() < 0.1:
        url = str(hostile_value(draw))
    if not url.startswith(("http", "data:")):  # a string without a known scheme is a path
        url = draw.choice(("http://", "https://")) + url
    return url


def _data_url(draw: random.Random, picture: bytes) -> str:
    head = draw.choice(("data:image/png;base64,", "data:;base64,", "data:image/png;a=b;base64,", "data:image/png,"))
    payload = base64.encodebytes(picture) if draw.random() < 0.3 else base64.b64encode(picture)
    return head + (mutate_bytes(draw, payload) if draw.random() < 0.5 else payload).decode("latin-1")


class Connection(socket.socket):
    """One end of a pair, in which an answer lies already.  It stands for a connection by TCP."""

    def __init__(self, answer: bytes):
        ours, self.other = socket.socketpair()
        super().__init__(ours.family, ours.type, fileno=ours.detach())
        self.other.sendall(answer)
        self.other.shutdown(socket.SHUT_WR)

    def setsockopt(self, *_):
        """Nothing: a pair has no options of TCP."""

    def close(self):
        super().close()
        self.other.close()


def use_url(made: tuple[str, bool, list[bytes]], _) -> None:
    """An image, or an error in a short sentence.  No connection goes to this machine itself, or anywhere where that is not
    allowed, whatever a server answers."""
    url, allowed, answers = made
    wrong = []

    def resolve(host, port, *_, **__):
        with contextlib.suppress(OSError, UnicodeError):
            return real(host, None, flags=socket.AI_NUMERICHOST)
        known = {"localhost": "127.0.0.1", "localhost.": "127.0.0.1"}
        return real(known.get(str(host).lower(), "203.0.113.9"), None, flags=socket.AI_NUMERICHOST)

    def connect(address, *_, **__):
        for entry in resolve(*address):
            ip = ipaddress.ip_address(entry[4][0].partition("%")[0])
            ip = getattr(ip, "ipv4_mapped", None) or ip
            if not allowed or ip.is_loopback or ip.is_unspecified or ip.is_link_local:
                wrong.append(f"it leads to {ip}")
        if not answers:
            raise OSError("nobody answers")
        return Connection(answers.pop(0))

    real = socket.getaddrinfo
    with mock.patch.object(socket, "getaddrinfo", resolve), mock.patch.object(socket, "create_connection", connect), \
            mock.patch.object(urllib.request, "getproxies", dict), \
            mock.patch.object(threading, "excepthook", lambda died: wrong.append(repr(died.exc_value))):  # fmt: skip
        try:
            image = load_image(url, allow_urls=allowed)
        except (ValueError, OSError) as error:
            if len(str(error)) > 1000:
                raise Failure(f"the message has {len(str(error))} characters: {str(error)[:300]}") from error
            raise
        finally:
            if wrong:
                raise Failure(f"{url[:200]!r}: {wrong}")
    if not isinstance(image, Image.Image):
        raise Failure(f"{type(image)}")
