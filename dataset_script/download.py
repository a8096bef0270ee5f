"""Fetch FreiHAND's official archives, whole, however often the connection is cut.

    python -m dataset_script.download --data_dir freihand

Bytes arrive in `FILE.part`, with `FILE.part.json` saying which version of the file they are of; a later run, or the
next attempt, asks for the rest of that same version (Range with If-Range, RFC 9110) and starts anew when the server
has another one.  Only when the size is the one the server states is the SHA-256 recorded in `FILE.sha256` and the file
renamed.  The zips need not be unpacked: `FreiHAND(data_dir="freihand")` reads them.
"""

import argparse
import hashlib
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

BASE_URL = "https://lmb.informatik.uni-freiburg.de/data/freihand/"
ARCHIVES = ("FreiHAND_pub_v2.zip", "FreiHAND_pub_v2_eval.zip")
TERMS = """\
FreiHAND (Zimmermann, Ceylan, Yang, Russell, Argus, Brox: "FreiHAND: A Dataset for Markerless Capture of Hand Pose and
Shape from Single RGB Images", ICCV 2019) is provided for research purposes only.  Commercial use is prohibited, and
that holds for weights trained on it.  By downloading it you accept the terms stated at
https://lmb.informatik.uni-freiburg.de/projects/freihand/ ; cite the paper where you use the data.
"""
CHUNK = 1 << 20
MAX_ATTEMPTS = 10  # in a row without a byte further than before
MAX_WAIT = 60.0
NETWORK_ERRORS = (http.client.HTTPException, OSError)


class _Retry(Exception):
    """A failure of the network, after which the download goes on where it stopped."""


def download(url: str, path: str | os.PathLike, *, backoff: float = 1.0, timeout: float = 60.0) -> str:
    """Fetch `url` into the file `path` and return its SHA-256, which `<path>.sha256` records as `sha256sum` does.

    A file that is already there is checked against its record (or, without one, against the server's size) rather than
    fetched.  Several processes may ask for the same file at once: one fetches, the others wait for it.  After a failure
    the next attempt waits `backoff` seconds, doubled each time, at most a minute; `timeout` seconds of silence are one.

    Raises:
        OSError: the server refuses (404, say), is out of reach 10 times in a row, does not state the file's size, or
            the disk cannot take the file.  What has arrived is kept for the next run.
        ValueError: `url` is not an http(s) URL, or the file that is there is not the one that was recorded.
    """
    path = Path(path)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url!r} is not an http or https URL")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{path.name}: another process is fetching it; waiting for that one")
        lock.acquire()
    try:
        if path.exists():
            return _check_existing(url, path, timeout)
        return _Download(url, path, timeout).run(backoff)
    finally:
        lock.release()


def _check_existing(url: str, path: Path, timeout: float) -> str:
    record = Path(f"{path}.sha256")
    digest = _hash_file(path).hexdigest()
    if record.exists():
        recorded = record.read_text().split()[:1]
        if recorded != [digest]:
            raise ValueError(f"{path} does not have the SHA-256 recorded in {record}: delete both and fetch it again")
        print(f"{path.name}: already there, and as recorded")
        return digest
    request = urllib.request.Request(url, method="HEAD", headers={"Accept-Encoding": "identity"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            size = response.headers.get("Content-Length")
    except NETWORK_ERRORS as error:
        raise OSError(f"{path} is there without a record, and {url} cannot be asked for its size: {error}") from error
    if size != str(path.stat().st_size):
        raise ValueError(f"{path} has {path.stat().st_size} bytes and {url} {size}: delete the file to fetch it again")
    _record(path, digest)
    print(f"{path.name}: already there, of the size the server states")
    return digest


class _Download:
    """One file on its way: the bytes so far, their hash, and which version of the file they are of."""

    def __init__(self, url: str, path: Path, timeout: float):
        self.url, self.path, self.timeout = url, path, timeout
        self.part, self.state_file = Path(f"{path}.part"), Path(f"{path}.part.json")
        self.state = self._read_state()
        self.hash = _hash_file(self.part) if self.part.exists() else hashlib.sha256()
        self.offset = self.part.stat().st_size if self.part.exists() else 0
        self.bar: tqdm | None = None

    def _read_state(self) -> dict:
        try:
            state = json.loads(self.state_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return state if isinstance(state, dict) and state.get("url") == self.url else {}

    def run(self, backoff: float) -> str:
        failures, furthest = 0, self.offset
        try:
            while True:
                try:
                    self._fetch_rest()
                    return self._finish()
                except _Retry as error:
                    failures = 1 if self.offset > furthest else failures + 1
                    furthest = max(furthest, self.offset)
                    if failures >= MAX_ATTEMPTS:
                        raise OSError(
                            f"{self.url} failed {failures} times in a row, last with: {error}. {self.offset} bytes are "
                            "kept; run the same command again to go on"
                        ) from error
                    time.sleep(min(MAX_WAIT, backoff * 2 ** (failures - 1)))
        finally:
            if self.bar is not None:
                self.bar.close()

    def _fetch_rest(self) -> None:
        """Ask once for the bytes that lack and append what comes.  Raises _Retry when that is not all of them."""
        validator, size = self.state.get("validator"), self.state.get("size")
        if not validator or not isinstance(size, int) or self.offset > size:
            self._restart()
        elif self.offset == size:
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": "handunet"}
        if self.offset:
            headers |= {"Range": f"bytes={self.offset}-", "If-Range": self.state["validator"]}
        try:
            response = urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the server's file is shorter than what is here: it is another one
                self._restart()
            elif error.code not in (408, 425, 429) and error.code < 500:
                raise OSError(f"{self.url}: the server answered {error.code} {error.reason}") from None
            raise _Retry(f"the server answered {error.code} {error.reason}") from None
        except NETWORK_ERRORS as error:
            raise _Retry(str(error) or type(error).__name__) from error
        with response:
            self._begin(response)
            self._append(response)
        if self.offset < self.state["size"]:
            raise _Retry(f"the connection was cut after {self.offset} of {self.state['size']} bytes")

    def _begin(self, response: http.client.HTTPResponse) -> None:
        """Read off the answer where its bytes belong; start anew when they are of another version of the file."""
        headers = response.headers
        etag, modified = headers.get("ETag"), headers.get("Last-Modified")
        validator = etag if etag and not etag.startswith("W/") else modified  # RFC 9110, 13.1.5: no weak ETags
        if response.status == 206:
            expected = f"bytes {self.offset}-{self.state['size'] - 1}/{self.state['size']}"
            if headers.get("Content-Range") != expected or validator not in (None, self.state["validator"]):
                self._restart()
                raise _Retry("the server sent a piece of another version of the file")
        else:
            size = headers.get("Content-Length", "")
            if not size.isdecimal() or len(size) > 18 or int(size) == 0:
                raise OSError(f"{self.url}: the server does not state the file's size, so it could not be checked")
            self._restart()
            self.state = {"url": self.url, "validator": validator, "size": int(size)}
            free = shutil.disk_usage(self.path.parent).free
            if free < int(size):
                raise OSError(f"{self.path.parent} has {free} bytes free, {self.path.name} needs {size}")
            _write_whole(self.state_file, json.dumps(self.state))
        if self.bar is None:
            self.bar = tqdm(desc=self.path.name, unit="B", unit_scale=True, unit_divisor=1024, disable=None)
        self.bar.total = self.state["size"]
        self._show()

    def _append(self, response: http.client.HTTPResponse) -> None:
        with open(self.part, "ab") as file:
            while self.offset < self.state["size"]:
                try:
                    data = response.read(min(CHUNK, self.state["size"] - self.offset))
                except http.client.IncompleteRead as error:
                    data = error.partial
                except NETWORK_ERRORS as error:
                    raise _Retry(str(error) or type(error).__name__) from error
                if not data:
                    return
                try:
                    file.write(data)
                    file.flush()
                except OSError as error:
                    raise OSError(f"{self.part} cannot be written ({error}); what is there is kept") from error
                self.hash.update(data)
                self.offset += len(data)
                self._show()

    def _restart(self) -> None:
        """Forget the bytes so far, before anything says that they are of a new version."""
        self.part.unlink(missing_ok=True)
        self.state_file.unlink(missing_ok=True)
        self.state, self.hash, self.offset = {}, hashlib.sha256(), 0

    def _show(self) -> None:
        self.bar.n = self.offset
        self.bar.refresh() if self.offset == self.state["size"] else self.bar.update(0)

    def _finish(self) -> str:
        with open(self.part, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            os.fsync(file.fileno())
        if size != self.state["size"]:
            self._restart()
            raise _Retry(f"{self.part} has {size} bytes after another process changed it")
        digest = self.hash.hexdigest()
        _record(self.path, digest)
        self.part.rename(self.path)
        self.state_file.unlink(missing_ok=True)
        return digest


def _hash_file(path: Path) -> "hashlib._Hash":
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")


def _record(path: Path, digest: str) -> None:
    _write_whole(Path(f"{path}.sha256"), f"{digest}  {path.name}\n")


def _write_whole(path: Path, text: str) -> None:
    temporary = Path(f"{path}.tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser("python -m dataset_script.download", description="Fetch FreiHAND (about 4 GB).")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder to put the archives in")
    parser.add_argument("--base_url", default=BASE_URL, help="where the archives are (a mirror; default: %(default)s)")
    parser.add_argument("--backoff", type=float, default=1.0, help="seconds to wait after a first failure")
    options = parser.parse_args(arguments)
    print(TERMS)
    try:
        for name in ARCHIVES:
            path = options.data_dir / name
            digest = download(f"{options.base_url.rstrip('/')}/{name}", path, backoff=options.backoff)
            print(f"{path}: {path.stat().st_size} bytes, SHA-256 {digest}")
    except KeyboardInterrupt:
        sys.exit("Stopped. What has arrived is kept; run the same command again to go on.")
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    print(f"Train on it, without unpacking it: accelerate launch train.py --data_dir {options.data_dir}")


if __name__ == "__main__":
    main()
