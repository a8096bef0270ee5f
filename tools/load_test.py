"""Load the endpoint or the Space on this machine with bombs, slow clients and ordinary visitors together, and print how long
these wait.

    python -m tools.load_test --seconds 60                             # starts demo/endpoint/serve.py on weights/handunet-base
    python -m tools.load_test --seconds 60 --space                     # demo/space/app.py
    python -m tools.load_test --model outputs/handunet/model --visitors 4 --bombs 4 --slow 40

An ordinary visitor sends a photograph, waits for the answer, and sends the next one a moment later.  A bomb is an image that
takes long to decode, JSON of very many values, or a box of lists in lists.  A slow client sends a byte a second.  First only
the visitors come, then all together.  The command ends with an error if a visitor gets a wrong answer or none.
"""

import argparse
import base64
import contextlib
import http.client
import io
import itertools
import json
import re
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "demo" / "space" / "examples" / "open.jpg"
MAX_SECONDS, MAX_CLIENTS = 600, 200  # this is a test, not an attack


def jpeg_bomb(side: int, scans: int, between: bytes = b"") -> bytes:
    """A JPEG of many tiny scans, each of which visits side x side pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    frame, first = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data[:first] + (data[first:-2] + between) * scans + b"\xff\xd9")


def bombs() -> list[tuple[str, bytes, str]]:
    """Name, body and content type of each bomb."""
    nested = json.dumps({"inputs": base64.b64encode(PHOTO.read_bytes()).decode(), "parameters": {"boxes": 0}})
    several = json.dumps({"inputs": [base64.b64encode(jpeg_bomb(3500, 99)).decode()] * 4})
    return [
        ("JPEG of 5000 scans", jpeg_bomb(5000, 5000, b"\xff\x01"), "image/jpeg"),
        ("JPEG just below the limits", jpeg_bomb(5000, 99), "image/jpeg"),
        ("4 such JPEGs", several.encode(), "application/json"),
        ("JSON of 20 MB of []", b"[" + b"[]," * 7_000_000 + b"[]]", "application/json"),
        ("boxes in boxes", nested.replace("0}", "[" * 4000 + "]" * 4000 + "}").encode(), "application/json"),
    ]


class Load:
    """The clients of one run and what they met."""

    def __init__(self, port: int, seconds: float):
        self.port, self.end = port, time.monotonic() + seconds
        self.waits: list[float] = []
        self.answers = Counter()
        self.problems: list[str] = []

    def post(self, body: bytes, kind: str) -> tuple[int, object]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", "/", body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def visit(self) -> None:
        photo = PHOTO.read_bytes()
        while time.monotonic() < self.end:
            start = time.monotonic()
            try:
                status, answer = self.post(photo, "image/jpeg")
                if status != 200 or any(len(hand["keypoints"]) != 21 for hand in answer):
                    self.problems.append(f"{status}: {str(answer)[:200]}")
            except (OSError, http.client.HTTPException) as error:
                self.problems.append(f"{type(error).__name__}: {error}")
            self.waits.append(time.monotonic() - start)
            time.sleep(0.2)

    def attack(self, number: int) -> None:
        while time.monotonic() < self.end:
            name, body, kind = BOMBS[number % len(BOMBS)]
            number += 1
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.answers[name, self.post(body, kind)[0]] += 1

    def dawdle(self) -> None:
        while time.monotonic() < self.end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n")
                while time.monotonic() < self.end:
                    connection.sendall(b"x")
                    time.sleep(1)
                self.answers["slow client", "went on to the end"] += 1

    def run(self, visitors: int, bombers: int, slow: int) -> "Load":
        works = [self.visit] * visitors + [lambda number=number: self.attack(number) for number in range(bombers)]
        threads = [threading.Thread(target=work, daemon=True) for work in works + [self.dawdle] * slow]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self

    def report(self, title: str) -> str:
        return (
            f"{title}: {len(self.waits)} requests of ordinary visitors, median wait {statistics.median(self.waits):.2f} s, "
            f"worst {max(self.waits):.2f} s, without an answer {len(self.problems)}"
        )


class SpaceLoad(Load):
    """The same at the Space, as its page sends photographs: a file, then a place in the queue."""

    sessions = itertools.count()

    def post(self, body: bytes, kind: str) -> tuple[int, object]:
        base, name = f"http://127.0.0.1:{self.port}", f"load-{next(self.sessions)}"
        form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + body + b"\r\n--x--\r\n"
        path = self.ask(f"{base}/gradio_api/upload", form, "multipart/form-data; boundary=x")[0]
        photo = {"path": path, "name": "a.jpg", "number": 1}
        call = {"data": [photo, None, None], "fn_index": self.function(base), "session_hash": name}
        self.ask(f"{base}/gradio_api/queue/join", json.dumps(call).encode(), "application/json")
        with urllib.request.urlopen(f"{base}/gradio_api/queue/data?session_hash={name}", timeout=120) as stream:
            text = stream.read().decode()
        if "data:image" in text:
            return 200, []
        found = re.search(r'"message": ?"([^"]{5,}?)"', text)
        return 400, found[1] if found else text[-200:]

    def ask(self, url: str, body: bytes, kind: str):
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}), timeout=120) as answer:
            return json.load(answer)

    def function(self, base: str) -> int:
        """The number of the function that opens photographs."""
        with urllib.request.urlopen(f"{base}/config", timeout=120) as answer:
            entries = json.load(answer)["dependencies"]
        return next(entry["id"] for entry in entries if entry["targets"] and entry["targets"][0][1] == "photo")


BOMBS = bombs()


@contextlib.contextmanager
def served(model: Path, program: str):
    """The port of `program` in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-u", str(ROOT / "demo" / program), "--model", str(model), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        if str(port) not in line:
            sys.exit(f"load_test: {program} did not start: {line}")
        yield port
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "handunet-base", help="a saved folder")
    parser.add_argument("--space", action="store_true", help="load the Space, not the endpoint")
    parser.add_argument("--seconds", type=float, default=60, help="how long each of the two parts takes")
    parser.add_argument("--visitors", type=int, default=3)
    parser.add_argument("--bombs", type=int, default=3, help="clients that send one bomb after another")
    parser.add_argument("--slow", type=int, default=30, help="clients that send a byte a second")
    args = parser.parse_args(arguments)
    if not 0 < args.seconds <= MAX_SECONDS or not 0 < args.visitors + args.bombs + args.slow <= MAX_CLIENTS:
        parser.error(f"at most {MAX_SECONDS} s and {MAX_CLIENTS} clients")
    load = SpaceLoad if args.space else Load
    with served(args.model, "space/app.py" if args.space else "endpoint/serve.py") as port:
        load(port, 1).run(1, 0, 0)  # the first request is slower
        alone = load(port, args.seconds).run(args.visitors, 0, 0)
        print(alone.report("alone"), flush=True)
        together = load(port, args.seconds).run(args.visitors, args.bombs, args.slow)
        print(together.report("together"))
        for (name, status), count in sorted(together.answers.items(), key=str):
            print(f"  {name}: {status}, {count} times")
    if problems := alone.problems + together.problems:
        sys.exit("load_test: ordinary visitors got no answer:\n  " + "\n  ".join(sorted(set(problems))))


if __name__ == "__main__":
    main()
