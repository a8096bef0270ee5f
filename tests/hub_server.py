"""A small Hub on 127.0.0.1: the part of the Hugging Face Hub's HTTP interface that this project's tests use.

The real huggingface_hub client talks to it in a process of its own (`run_program`), so that tests of pushing and pulling
go through real requests.  It stores models, datasets and Spaces.  Each commit has its own list of files, and a commit
happens whole or not at all.  `HubServer.breaking` cuts the connection at a chosen request.

The answers follow https://huggingface.co/docs/hub/api, the client's source and
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".onnx", ".parquet", ".png", ".jpg")
LFS_SIZE = 10 * 2**20  # git never holds larger files


@dataclass(frozen=True)
class File:
    """One version of a file.  In git, an LFS file is a small text that points to its content."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_sha1(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        in_git = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(in_git) + in_git).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_sha1


@dataclass(frozen=True)
class Commit:
    sha: str
    files: dict[str, File]


@dataclass
class Repository:
    """A repository's commits on `main`, the oldest first."""

    id: str
    type: str  # model, dataset or space
    commits: list[Commit] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Where its page is, without the endpoint."""
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def at(self, revision: str) -> Commit:
        """The commit with this sha, or the newest one for `main`; a `Refusal` if there is none."""
        for commit in self.commits[::-1]:
            if revision in ("main", commit.sha):
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add_commit(self, files: dict[str, File]) -> Commit:
        identity = json.dumps([self.path, len(self.commits), sorted((path, file.etag) for path, file in files.items())])
        self.commits.append(Commit(hashlib.sha1(identity.encode()).hexdigest(), dict(files)))
        return self.commits[-1]


@dataclass
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Response:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def json_response(content, status: int = 200, content_type: str = "application/json") -> Response:
    return Response(json.dumps(content).encode(), status, {"Content-Type": content_type})


class Refusal(Exception):
    """An answer other than success: its status, the text of its body, the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.response = json_response({"error": message}, status)
        self.response.headers |= {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


@dataclass
class Break:
    """Uploads to cut off; see `HubServer.breaking`."""

    method: str
    pattern: str
    after_bytes: int
    skip: int
    times: int
    seen: int = 0
    hits: int = 0


class HubServer:
    """A Hub that listens on 127.0.0.1 while it is entered.  Its clients' caches are in `folder`.

    Attributes:
        endpoint: its address, for `HF_ENDPOINT`.
        token: the only token that it knows, of the user `tester`, who may write everywhere.
        requests: method and path of every request so far.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.token = f"hf_{secrets.token_hex(17)}"
        self.requests: list[tuple[str, str]] = []
        self.failures: list[str] = []
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._objects: dict[str, bytes] = {}  # contents of LFS files by their sha256
        self._breaks: list[Break] = []
        self._lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        self.folder.mkdir(parents=True)
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.cut_connections()
        self._server.server_close()
        if self.failures and kind is None:
            raise RuntimeError("The Hub server itself failed:\n" + "\n".join(self.failures))

    # What tests use.

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Content by path of all files at `revision`; a KeyError if there is no such repository."""
        with self._lock:
            files = self._repositories[repo_type, repo_id].at(revision).files
            return {path: file.content for path, file in sorted(files.items())}

    def commits(self, repo_id: str, repo_type: str = "model") -> list[str]:
        """Shas of the commits, newest first; the last one created the repository."""
        with self._lock:
            return [commit.sha for commit in self._repositories[repo_type, repo_id].commits[::-1]]

    def environment(self) -> dict[str, str]:
        """Variables for a process that uses this Hub, with its own empty caches: merge them into `os.environ`."""
        home = tempfile.mkdtemp(prefix="home-", dir=self.folder)
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": home,
            "HF_HUB_CACHE": os.path.join(home, "hub"),
            "HF_MODULES_CACHE": os.path.join(home, "modules"),
            "HF_DATASETS_CACHE": os.path.join(home, "datasets"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    @contextlib.contextmanager
    def breaking(self, method: str, pattern: str, *, after_bytes: int, skip: int = 0, times: int = 1) -> Iterator[Break]:
        """Cut the connection of `times` uploads by `method` to paths in which `pattern` is found, after `skip` others.

        An upload is cut after `after_bytes` of it were read, and has no effect.  The object entered counts the uploads
        that it cut in `hits`.
        """
        broken = Break(method, pattern, after_bytes, skip, times)
        with self._lock:
            self._breaks.append(broken)
        try:
            yield broken
        finally:
            with self._lock:
                self._breaks.remove(broken)

    # Requests.

    def find_break(self, method: str, path: str) -> Break | None:
        with self._lock:
            for broken in self._breaks:
                if broken.method == method and re.search(broken.pattern, path):
                    broken.seen += 1
                    if broken.skip < broken.seen <= broken.skip + broken.times:
                        broken.hits += 1
                        return broken
        return None

    def answer(self, request: Request) -> Response:
        try:
            with self._lock:
                for method, pattern, function in ROUTES:
                    match = re.fullmatch(pattern, request.path)
                    if match and request.method in method.split():
                        parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
                        return function(self, request, **parts)
            raise Refusal(404, f"This Hub knows no {request.method} {request.path}")
        except Refusal as refusal:
            return refusal.response
        except Exception:
            self.failures.append(f"{request.method} {request.path}\n{traceback.format_exc()}")
            return json_response({"error": traceback.format_exc()}, 500)

    def _require_token(self, request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal(401, "Invalid username or password.")

    def _repository(self, repo_type: str, repo_id: str) -> Repository:
        repository = self._repositories.get((repo_type.removesuffix("s"), repo_id))
        if repository is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repository

    # Answers; `ROUTES` says which requests each is for.

    def _create(self, request: Request) -> Response:
        self._require_token(request)
        given = request.json()
        repository = Repository(f"{given.get('organization') or 'tester'}/{given['name']}", given.get("type") or "model")
        url = {"url": f"{self.endpoint}/{repository.path}", "name": repository.id}
        if (repository.type, repository.id) in self._repositories:
            return json_response({"error": f"You already created this repo: {repository.id}", **url}, 409)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repository.add_commit({".gitattributes": File(attributes.encode(), False)})
        self._repositories[repository.type, repository.id] = repository
        return json_response(url)

    def _validate_yaml(self, request: Request) -> Response:
        try:
            metadata = front_matter(request.json()["content"])
        except yaml.YAMLError as error:
            return json_response({"errors": [{"message": str(error)}], "warnings": []}, 400)
        empty = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return json_response({"errors": [], "warnings": empty})

    def _info(self, request: Request, type: str, id: str, revision: str = "main") -> Response:
        commit = self._repository(type, id).at(revision)
        card = front_matter(commit.files["README.md"].content.decode()) if "README.md" in commit.files else None
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        return json_response({"id": id, "sha": commit.sha, "cardData": card or {}, "siblings": siblings})

    def _tree(self, request: Request, type: str, id: str, revision: str, folder: str = "") -> Response:
        """Files and folders under `folder`; all of them, or only those directly in it."""
        commit = self._repository(type, id).at(revision)
        prefix = f"{folder}/" if folder else ""
        entries, folders = [], set()
        for path, file in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            parents = path.removeprefix(prefix).split("/")[:-1]
            recursive = "recursive=true" in request.query.lower()
            folders |= {prefix + "/".join(parents[: depth + 1]) for depth in range(len(parents) if recursive else 1) if parents}
            if recursive or not parents:
                lfs = {"lfs": {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}} if file.lfs else {}
                entries.append({"type": "file", "path": path, "size": len(file.content), "oid": file.git_sha1, **lfs})
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        oids = {path: hashlib.sha1(path.encode()).hexdigest() for path in sorted(folders)}
        return json_response(
            [{"type": "directory", "path": path, "size": 0, "oid": oid} for path, oid in oids.items()] + entries
        )

    def _preupload(self, request: Request, type: str, id: str) -> Response:
        """Which files must be uploaded as LFS: by suffix, by size, and those that are not text."""
        self._require_token(request)
        files = []
        for given in request.json()["files"]:
            lfs = given["path"].endswith(LFS_SUFFIXES) or given["size"] > LFS_SIZE or b"\0" in base64.b64decode(given["sample"])
            known = self._repository(type, id).at("main").files.get(given["path"])
            mode, oid = "lfs" if lfs else "regular", known and known.etag
            files.append({"path": given["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return json_response({"files": files})

    def _lfs_batch(self, request: Request, id: str, type: str = "models") -> Response:
        self._require_token(request)
        objects = []
        for given in request.json()["objects"]:
            upload = {"upload": {"href": f"{self.endpoint}/lfs/{given['oid']}", "header": {}}}
            actions = {} if given["oid"] in self._objects else {"actions": upload}
            objects.append({"oid": given["oid"], "size": given["size"], **actions})
        answer = {"transfer": "basic", "objects": objects}
        return json_response(answer, content_type="application/vnd.git-lfs+json")

    def _lfs_upload(self, request: Request, oid: str) -> Response:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, f"The upload of {len(request.body)} bytes is not the announced file.")
        self._objects[oid] = request.body
        return Response()

    def _commit(self, request: Request, type: str, id: str) -> Response:
        """Apply all operations of a commit to a copy of the files, and only then add it to the branch."""
        self._require_token(request)
        repository = self._repository(type, id)
        files = dict(repository.at("main").files)
        for line in request.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                files[value["path"]] = File(self._objects[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
            elif key != "header":
                raise Refusal(400, f"Unknown operation {key} in the commit.")
        commit = repository.add_commit(files)
        url = f"{self.endpoint}/{repository.path}/commit/{commit.sha}"
        return json_response({"success": True, "commitOid": commit.sha, "commitUrl": url})

    def _resolve(self, request: Request, id: str, revision: str, path: str, type: str = "models") -> Response:
        commit = self._repository(type, id).at(revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        file = commit.files.get(path)
        if file is None:
            raise Refusal(404, f"{path} does not exist in {id} at {revision}", "EntryNotFound", headers)
        headers |= {"Content-Type": "application/octet-stream", "ETag": f'"{file.etag}"'}
        size = len(file.content)
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(size)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return Response(file.content, 200, headers)
        first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return Response(file.content[first : last + 1], 206, headers)


API = r"/api/(?P<type>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
FILES = r"/(?:(?P<type>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"
ROUTES = [
    ("POST", r"/api/repos/create", HubServer._create),
    ("POST", r"/api/validate-yaml", HubServer._validate_yaml),
    ("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?", HubServer._info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", HubServer._tree),
    ("POST", rf"{API}/preupload/main", HubServer._preupload),
    ("POST", rf"{API}/commit/main", HubServer._commit),
    ("POST", rf"{FILES}\.git/info/lfs/objects/batch", HubServer._lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", HubServer._lfs_upload),
    ("GET HEAD", rf"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", HubServer._resolve),
]


def front_matter(card: str) -> dict | None:
    """The YAML between the two lines of dashes at the head of `card`; None without them."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---", card, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


class _Server(ThreadingHTTPServer):
    """One thread per connection; all of them end with the server."""

    daemon_threads = False

    def __init__(self, hub: HubServer):
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """A client that goes away in the middle of an answer is not an error of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            self.hub.failures.append(traceback.format_exc())

    def cut_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Reads a request whole, asks the Hub, writes the answer; cuts the connection of an upload if `breaking` says so."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format, *args):
        pass

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        hub.requests.append((self.command, url.path))
        broken = hub.find_break(self.command, url.path)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(min(broken.after_bytes, length) if broken else length)
        if broken or len(body) < length:  # or the client went away before the end
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        response = hub.answer(Request(self.command, url.path, url.query, headers, body))
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = _serve


# Stands before a program that must not find the package, even if it is installed.
WITHOUT_THE_PACKAGE = """
import sys
class _Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_handunet", "dataset_script", "training", "release"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, _Absent())
"""


def run_program(
    hub: HubServer, program: str, *arguments, cwd: str | os.PathLike, with_package: bool = False, timeout: float = 300
) -> dict:
    """Run Python code in a fresh process that uses `hub`, and return the JSON that is the last line it prints.

    It starts in `cwd` with empty caches.  It can import the checkout's packages only if `with_package`; otherwise they cannot
    be imported even if they are installed.  If it fails, the RuntimeError has everything that it printed.
    """
    environment = {**os.environ, **hub.environment()}
    environment.pop("PYTHONPATH", None)
    if with_package:
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    else:
        program = WITHOUT_THE_PACKAGE + program
    command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, timeout=timeout, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"The program failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])
