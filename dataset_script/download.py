"""Download FreiHAND's official archives, about 4 GB.

    python -m dataset_script.download --data_dir freihand

Bytes arrive in `FILE.part`. After a lost connection the download goes on where it stopped, also in a later run. The zip is
checked as a whole before it gets its name, and `FILE.sha256` records its SHA-256 in the format of `sha256sum`. The zips
need not be unpacked: `FreiHAND(data_dir="freihand")` reads them.
"""

import argparse
import hashlib
import http.client
import shutil
import ssl
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

BASE_URL = "https://lmb.informatik.uni-freiburg.de/data/freihand/"
ARCHIVES = ("FreiHAND_pub_v2.zip", "FreiHAND_pub_v2_eval.zip")
TERMS = """\
FreiHAND (Zimmermann, Ceylan, Yang, Russell, Argus, Brox: "FreiHAND: A Dataset for Markerless Capture of Hand Pose and
Shape from Single RGB Images", ICCV 2019) is provided for research purposes only. Commercial use is prohibited, and that
holds for weights trained on it. By downloading it you accept the terms stated at
https://lmb.informatik.uni-freiburg.de/projects/freihand/ ; cite the paper where you use the data.
"""
MAX_FAILURES = 10  # in a row, without a new byte
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def download(url: str, path: Path, *, wait: float = 5.0) -> str:
    """Download the zip `url` to `path` and return its SHA-256. A file that is there already is only checked.

    After the nth network error in a row it waits n times `wait` seconds and tries again. Raises OSError if the server
    refuses or fails 10 times without a new byte, and ValueError if the file is not a whole zip.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(f"{path}.part")
    with FileLock(f"{path}.lock"):  # a second process waits for the first
        if not path.exists():
            _download_rest(url, part, wait)
        file = path if path.exists() else part
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # the first member that does not have its checksum
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            damaged = error
        if damaged:
            part.unlink(missing_ok=True)
            raise ValueError(f"{file} is not a whole zip file ({damaged}): delete it if it is there, download it again")
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        Path(f"{path}.sha256").write_text(f"{digest}  {path.name}\n")
        file.rename(path)
    return digest


def _download_rest(url: str, part: Path, wait: float) -> None:
    """Append to `part` the bytes of `url` that it lacks, in as many requests as it takes."""
    failures = furthest = 0
    while True:
        with open(part, "ab") as file:
            try:
                return _request_rest(url, file)
            except NETWORK_ERRORS as error:
                code, size = getattr(error, "code", 500), file.tell()
                if code == 416:  # the server has no byte beyond those in `part`
                    return
                failures, furthest = (1, size) if size > furthest else (failures + 1, furthest)
                if code not in (408, 429) and code < 500 or failures == MAX_FAILURES:
                    raise OSError(
                        f"{url} failed {failures} times in a row, the last time with: {error}. {part} has {size} bytes; "
                        "run the same command again to go on"
                    ) from error
        time.sleep(wait * failures)


def _request_rest(url: str, file) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={file.tell()}-"})
    with urllib.request.urlopen(request, timeout=60) as response:
        if response.status != 206:  # the server sends the file from its start
            file.seek(0)
            file.truncate()
        start, length = file.tell(), int(response.headers["Content-Length"] or 0)
        bar = tqdm.wrapattr(response, "read", start + length, desc=Path(url).name, initial=start, disable=None)
        with bar as body:
            shutil.copyfileobj(body, file)
        if file.tell() < start + length:
            raise http.client.IncompleteRead(b"", start + length - file.tell())


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser("python -m dataset_script.download", description="Download FreiHAND (about 4 GB).")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder to put the archives in")
    parser.add_argument("--base_url", default=BASE_URL, help="where the archives are (a mirror; default: %(default)s)")
    options = parser.parse_args(arguments)
    print(TERMS)
    try:
        for name in ARCHIVES:
            digest = download(f"{options.base_url.rstrip('/')}/{name}", options.data_dir / name)
            print(f"{options.data_dir / name}: SHA-256 {digest}")
    except KeyboardInterrupt:
        raise SystemExit("Stopped. Run the same command again to go on.") from None
    except (OSError, ValueError) as error:
        raise SystemExit(f"Error: {error}") from None
    print(f"Train on it, without unpacking it: accelerate launch train.py --data_dir {options.data_dir}")


if __name__ == "__main__":
    main()
