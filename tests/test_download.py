"""Downloads from a server on this machine that cuts, changes, refuses and forgets."""

import hashlib
import io
import random
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dataset_script.download import download, main


def a_zip(seed: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.jpg", random.Random(seed + number).randbytes(100_000))
    return file.getvalue()


CONTENT, OTHER = a_zip(0), a_zip(100)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server, start = self.server, int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        server.starts.append(start)
        content = server.contents.pop(0) if len(server.contents) > 1 else server.contents[0]
        start = start if server.ranges else 0
        if server.statuses or start == len(content):
            return self.send_error(server.statuses.pop(0) if server.statuses else 416)
        self.send_response(206 if server.ranges else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: server.cuts.pop(0)] if server.cuts else content[start:])


@pytest.fixture
def server():
    """Sends only the first `cuts.pop(0)` bytes of its next answers; `contents` is the file, request by request."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.contents, server.ranges, server.cuts, server.statuses, server.starts = [CONTENT], True, [], [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    return lambda: download(f"{server.url}/a.zip", tmp_path / "a.zip", wait=0.0)


def is_whole(folder) -> bool:
    record = f"{hashlib.sha256(CONTENT).hexdigest()}  a.zip\n"
    return (folder / "a.zip").read_bytes() == CONTENT and (folder / "a.zip.sha256").read_text() == record


def test_fifty_cuts_at_random_places_cost_no_byte_twice_and_the_sum_is_recorded(server, fetch, tmp_path):
    places = sorted(random.Random(1).sample(range(1, len(CONTENT)), 50))
    server.cuts = [after - before for before, after in zip([0, *places], places)]
    assert fetch() == hashlib.sha256(CONTENT).hexdigest() and is_whole(tmp_path)
    assert server.starts == [0, *places]


@pytest.mark.parametrize("size", [1, 100_000, len(CONTENT) - 1, len(CONTENT)])
def test_another_run_goes_on_where_the_last_one_stopped(server, fetch, tmp_path, size):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:size])
    fetch()
    assert server.starts == [size] and is_whole(tmp_path)


def test_a_server_without_ranges_starts_again(server, fetch, tmp_path):
    server.ranges, server.cuts = False, [100_000, 200_000, 50]
    fetch()
    assert is_whole(tmp_path) and server.starts == [0, 100_000, 200_000, 50]


def test_a_file_that_changed_on_the_server_never_gets_its_name(server, fetch, tmp_path):
    server.contents, server.cuts = [OTHER, CONTENT], [150_000]
    with pytest.raises(ValueError, match=r"a.zip.part is not a whole zip file \(0.jpg\)"):
        fetch()
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip.lock"]
    fetch()
    assert is_whole(tmp_path)


def test_passing_trouble_is_waited_out_and_a_refusal_is_final(server, fetch, tmp_path):
    server.statuses = [503, 500, 429, 408, 404]
    with pytest.raises(OSError, match=rf"{server.url}/a.zip failed 5 times in a row.*404"):
        fetch()
    fetch()
    assert is_whole(tmp_path) and len(server.starts) == 6


def test_a_server_that_never_gets_further_is_given_up_on(server, fetch):
    server.ranges, server.cuts = False, [100_000] * 100
    with pytest.raises(OSError, match=r"failed 10 times in a row.*a.zip.part has 100000 bytes"):
        fetch()
    assert len(server.starts) == 10


def test_a_server_out_of_reach_is_named(tmp_path):
    with pytest.raises(OSError, match=r"http://127.0.0.1:9/file.zip failed 10 times in a row.*refused"):
        download("http://127.0.0.1:9/file.zip", tmp_path / "file.zip", wait=0.0)


def test_a_file_that_is_there_is_checked_and_not_fetched(server, fetch, tmp_path):
    (tmp_path / "a.zip").write_bytes(CONTENT)
    fetch()
    assert server.starts == [] and is_whole(tmp_path)
    (tmp_path / "a.zip").write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="a.zip is not a whole zip file"):
        fetch()


def test_the_command_prints_the_terms_first_and_fetches_both_archives(server, tmp_path, capsys):
    main(["--data_dir", str(tmp_path), "--base_url", server.url])
    output = capsys.readouterr().out
    assert "Commercial use is prohibited" in output.split(hashlib.sha256(CONTENT).hexdigest())[0]
    for name in ("FreiHAND_pub_v2.zip", "FreiHAND_pub_v2_eval.zip"):
        assert (tmp_path / name).read_bytes() == CONTENT
    server.statuses = [404]
    with pytest.raises(SystemExit, match="Error: .*404"):
        main(["--data_dir", str(tmp_path / "other"), "--base_url", server.url])
