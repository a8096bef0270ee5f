"""Downloads against a server on this machine that cuts, changes, refuses and forgets."""

import hashlib
import multiprocessing
import os
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import dataset_script.download
from dataset_script.download import download, main

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = {"backoff": 0.001, "timeout": 10}


class Server(ThreadingHTTPServer):
    """Serves `files`; sends only the first `cuts.pop(0)` bytes of the next answers, then closes the connection."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/file.zip": CONTENT}
        self.etag, self.modified = '"one"', None
        self.ranges, self.states_size = True, True
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        self.before_answer = lambda: None

    def url(self, name: str = "file.zip") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.files[self.path])))
        self.end_headers()

    def do_GET(self):
        server = self.server
        asked = self.headers["Range"]
        server.requests.append((self.command, asked))
        server.before_answer()
        if server.statuses or self.path not in server.files:
            self.send_error(server.statuses.pop(0) if server.statuses else 404)
            return
        content, start = server.files[self.path], 0
        validators = (server.etag, server.modified)
        if asked and server.ranges and self.headers["If-Range"] in validators:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        for name, value in (("ETag", server.etag), ("Last-Modified", server.modified)):
            if value:
                self.send_header(name, value)
        if server.states_size:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        body = body[: server.cuts.pop(0)] if server.cuts else body
        self.wfile.write(body)
        server.sent += len(body)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def is_whole(path) -> bool:
    return (
        path.read_bytes() == CONTENT
        and path.with_name(path.name + ".sha256").read_text() == f"{SHA256}  {path.name}\n"
        and names(path.parent) == [path.name, f"{path.name}.lock", f"{path.name}.sha256"]
    )


def test_a_file_arrives_and_its_sum_is_recorded(server, tmp_path):
    assert download(server.url(), tmp_path / "new" / "file.zip", **QUICK) == SHA256
    assert is_whole(tmp_path / "new" / "file.zip")
    assert server.requests == [("GET", None)]


def test_fifty_cuts_at_random_places_cost_no_byte_twice(server, tmp_path):
    rng = random.Random(1)
    places = sorted(rng.sample(range(1, len(CONTENT)), 50))
    server.cuts = [after - before for before, after in zip([0, *places], places)]
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert is_whole(tmp_path / "file.zip")
    assert len(server.requests) == 51 and server.sent == len(CONTENT)
    assert [asked for _, asked in server.requests[1:]] == [f"bytes={place}-" for place in places]


def test_a_missing_last_byte_is_noticed_and_fetched(server, tmp_path):
    server.cuts = [len(CONTENT) - 1]
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert server.requests[1:] == [("GET", f"bytes={len(CONTENT) - 1}-")]


def cut_run(server, path, at=100_000):
    """A run that ends for good after `at` bytes."""
    server.cuts, server.statuses = [at], []
    server.before_answer = lambda: server.statuses.append(404) if len(server.requests) == 2 else None
    with pytest.raises(OSError, match="404"):
        download(server.url(), path, **QUICK)
    server.before_answer = lambda: None
    server.requests.clear()


def test_another_run_goes_on_where_the_last_one_stopped(server, tmp_path):
    cut_run(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip.part").read_bytes() == CONTENT[:100_000] and not (tmp_path / "file.zip").exists()
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert server.requests == [("GET", "bytes=100000-")] and is_whole(tmp_path / "file.zip")


def test_a_run_that_was_killed_after_the_last_byte_only_finishes(server, tmp_path):
    cut_run(server, tmp_path / "file.zip")
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert server.requests == [] and is_whole(tmp_path / "file.zip")


@pytest.mark.parametrize("validators", [('"two"', None), (None, "Tue, 02 Jan 2024 00:00:00 GMT"), ('W/"weak"', None)])
def test_a_file_that_changed_on_the_server_is_never_spliced(server, tmp_path, validators):
    old, new = bytes(len(CONTENT)), CONTENT
    server.files["/file.zip"] = old
    server.etag, server.modified = (validators[0] and '"one"', validators[1] and "Mon, 01 Jan 2024 00:00:00 GMT")
    if validators[0] and validators[0].startswith("W/"):
        server.etag = validators[0]  # the same weak tag before and after: it says nothing about bytes
    server.cuts = [100_000]

    def change():
        if len(server.requests) == 2:
            server.files["/file.zip"] = new
            server.etag, server.modified = validators

    server.before_answer = change
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert is_whole(tmp_path / "file.zip")


def test_last_modified_serves_where_there_is_no_strong_etag(server, tmp_path):
    server.etag, server.modified = 'W/"weak"', "Mon, 01 Jan 2024 00:00:00 GMT"
    server.cuts = [100_000]
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert server.requests[1] == ("GET", "bytes=100000-") and server.sent == len(CONTENT)


def test_a_file_that_shrank_on_the_server_is_fetched_anew(server, tmp_path):
    server.files["/file.zip"] = CONTENT * 2
    cut_run(server, tmp_path / "file.zip", at=len(CONTENT) + 5)
    server.files["/file.zip"] = CONTENT
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert len(server.requests) == 2 and is_whole(tmp_path / "file.zip")


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    server.cuts = [100_000, 200_000, 50]
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert is_whole(tmp_path / "file.zip") and server.sent == 300_050 + len(CONTENT)


def test_a_server_that_never_gets_further_is_given_up_on(server, tmp_path):
    server.ranges = False
    server.cuts = [100_000] * 100
    with pytest.raises(OSError, match=r"failed 10 times in a row.*100000 bytes are kept"):
        download(server.url(), tmp_path / "file.zip", **QUICK)
    assert len(server.requests) == 10


@pytest.mark.parametrize("damage", ["{", '{"url": "http://elsewhere/", "validator": "x", "size": 300000}', "[]"])
def test_bytes_of_unknown_origin_are_not_used(server, tmp_path, damage):
    (tmp_path / "file.zip.part").write_bytes(b"x" * 1000)
    (tmp_path / "file.zip.part.json").write_text(damage)
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert server.requests == [("GET", None)] and is_whole(tmp_path / "file.zip")


def test_passing_trouble_of_the_server_is_waited_out(server, tmp_path):
    server.statuses = [503, 500, 429]
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final_and_named(server, tmp_path, status):
    server.statuses = [status]
    with pytest.raises(OSError, match=rf"{re.escape(server.url())}: the server answered {status}"):
        download(server.url(), tmp_path / "file.zip", **QUICK)
    assert len(server.requests) == 1 and names(tmp_path) == ["file.zip.lock"]


def test_a_server_out_of_reach_is_named(tmp_path):
    with pytest.raises(OSError, match=r"http://127.0.0.1:9/file.zip failed 10 times in a row.*refused"):
        download("http://127.0.0.1:9/file.zip", tmp_path / "file.zip", **QUICK)


def test_a_server_that_states_no_size_is_refused(server, tmp_path):
    server.states_size = False
    with pytest.raises(OSError, match="does not state the file's size"):
        download(server.url(), tmp_path / "file.zip", **QUICK)
    assert not (tmp_path / "file.zip").exists()


def test_a_file_that_is_there_is_checked_and_not_fetched(server, tmp_path, capsys):
    download(server.url(), tmp_path / "file.zip", **QUICK)
    server.requests.clear()
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert server.requests == [] and "already there" in capsys.readouterr().out
    (tmp_path / "file.zip").write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(ValueError, match="does not have the SHA-256 recorded"):
        download(server.url(), tmp_path / "file.zip", **QUICK)


def test_a_file_of_ones_own_is_taken_only_at_the_servers_size(server, tmp_path):
    (tmp_path / "file.zip").write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="has 299999 bytes and .* 300000"):
        download(server.url(), tmp_path / "file.zip", **QUICK)
    (tmp_path / "file.zip").write_bytes(CONTENT)
    assert download(server.url(), tmp_path / "file.zip", **QUICK) == SHA256
    assert is_whole(tmp_path / "file.zip")


def fetch_in_process(url, path):
    os._exit(0 if download(url, path, **QUICK) == SHA256 else 1)


def test_two_downloads_at_once_do_not_spoil_each_other(server, tmp_path):
    server.cuts = [30_000] * 9
    context = multiprocessing.get_context("fork")
    arguments = (server.url(), tmp_path / "file.zip")
    processes = [context.Process(target=fetch_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert is_whole(tmp_path / "file.zip") and server.sent == len(CONTENT)


def test_a_disk_without_room_is_refused_before_it_is_full(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(dataset_script.download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"has 1000 bytes free, file.zip needs 300000"):
        download(server.url(), tmp_path / "file.zip", **QUICK)


def test_a_disk_that_fails_ends_the_download_with_its_name(server, tmp_path, monkeypatch):
    (tmp_path / "file.zip.part").mkdir()
    with pytest.raises(OSError, match=r"file.zip.part"):
        download(server.url(), tmp_path / "file.zip", **QUICK)
    (tmp_path / "folder").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="folder"):
        download(server.url(), tmp_path / "folder" / "file.zip", **QUICK)


def test_other_protocols_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not an http or https URL"):
        download("file:///etc/passwd", tmp_path / "file.zip", **QUICK)


def test_the_command_prints_the_terms_first_and_fetches_both_archives(server, tmp_path, capsys):
    server.files = {"/FreiHAND_pub_v2.zip": CONTENT, "/FreiHAND_pub_v2_eval.zip": CONTENT[:1000]}
    main(["--data_dir", str(tmp_path), "--base_url", server.url("")])
    output = capsys.readouterr().out
    assert output.startswith("FreiHAND (") and "Commercial use is prohibited" in output.split(SHA256)[0]
    assert (tmp_path / "FreiHAND_pub_v2.zip").read_bytes() == CONTENT
    assert (tmp_path / "FreiHAND_pub_v2_eval.zip").read_bytes() == CONTENT[:1000]


def test_the_command_ends_with_a_sentence_where_it_fails(server, tmp_path):
    with pytest.raises(SystemExit, match="Error: .*answered 404"):
        main(["--data_dir", str(tmp_path), "--base_url", server.url("")])


def test_nothing_is_fetched_but_from_the_official_place_by_default():
    assert dataset_script.download.BASE_URL == "https://lmb.informatik.uni-freiburg.de/data/freihand/"
    assert dataset_script.download.ARCHIVES == ("FreiHAND_pub_v2.zip", "FreiHAND_pub_v2_eval.zip")
