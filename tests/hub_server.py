"""A small Hub on 127.0.0.1: the part of the Hugging Face Hub's HTTP interface that pushing and pulling needs.

The real huggingface_hub client talks to it in a process of its own (`HubServer.environment` has the variables that the
process must start with), so tests of `push_to_hub` and `from_pretrained` go through real requests.  It keeps models,
datasets and Spaces; every commit keeps its own list of files for good, and a commit happens whole or not at all.
`HubServer.breaking` cuts the connection at a chosen request.

The answers follow https://huggingface.co/docs/hub/api, the client's source and
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.  Not there: pull requests, Xet storage, `.gitignore`,
and a content delivery network: large files come from `/resolve/` itself, with the headers of the redirect.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

REPO_TYPES = ("model", "dataset", "space")
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".onnx", ".npz", ".parquet", ".arrow", ".zip", ".png", ".jpg", ".gif")
LFS_SIZE = 10 * 2**20  # larger files are never kept in git
LFS_JSON = "application/vnd.git-lfs+json"


@dataclass(frozen=True)
class StoredFile:
    """One version of a file; its content is stored under its sha256."""

    sha256: str
    git_sha1: str
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_sha1


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    message: str
    date: str
    files: dict[str, StoredFile]


@dataclass
class Repository:
    """A repository's commits by sha, and what its branches and tags point to."""

    id: str
    type: str
    private: bool
    sdk: str | None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a full sha names; no such revision is a `Refusal`."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def add_commit(self, branch: str, files: dict[str, StoredFile], title: str, message: str = "") -> Commit:
        parent = self.branches.get(branch)
        content = sorted((path, file.etag) for path, file in files.items())
        identity = json.dumps([self.type, self.id, parent, title, message, len(self.commits), content])
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        commit = Commit(hashlib.sha1(identity.encode()).hexdigest(), parent, title, message, date, dict(files))
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit


class Refusal(Exception):
    """An answer other than success: its status, the words of its body, the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        names = {"X-Error-Code": code, "X-Error-Message": message.splitlines()[0], **(headers or {})}
        self.response = json_response({"error": message}, status)
        self.response.headers |= {name: value for name, value in names.items() if value}


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Refusal(400, "The request's body is not JSON.") from None


@dataclass
class Response:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def json_response(content, status: int = 200, content_type: str = "application/json") -> Response:
    return Response(json.dumps(content).encode(), status, {"Content-Type": content_type})


@dataclass
class Break:
    """Requests to cut off; see `HubServer.breaking`."""

    method: str
    pattern: str
    after_bytes: int
    skip: int
    times: int
    seen: int = 0
    hits: int = 0


class HubServer:
    """A Hub that listens on 127.0.0.1 while it is entered; its files live in `folder`.

    Attributes:
        endpoint: its address, for `HF_ENDPOINT`.
        token: the one token that it knows, of the user `user`, who may write everywhere.
        requests: method and path of every request so far.
    """

    def __init__(self, folder: str | os.PathLike, user: str = "tester"):
        self.folder = Path(folder)
        self.user = user
        self.token = f"hf_{secrets.token_hex(17)}"
        self.requests: list[tuple[str, str]] = []
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._tickets: dict[str, tuple[str, int]] = {}  # what may be uploaded: ticket -> sha256, size
        self._breaks: list[Break] = []
        self._failures: list[str] = []
        self._lock = threading.RLock()
        self._server: _Server | None = None

    def __enter__(self) -> "HubServer":
        (self.folder / "objects").mkdir(parents=True)
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
        if self._failures and kind is None:
            raise RuntimeError("The Hub server itself failed:\n" + "\n".join(self._failures))

    # What tests look at and turn.

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Content by path of all files at `revision`; a KeyError says that there is no such repository."""
        with self._lock:
            commit = self._repositories[repo_type, repo_id].at(revision)
            return {path: self._object(file.sha256).read_bytes() for path, file in sorted(commit.files.items())}

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[str]:
        """Shas of the commits of `revision`, newest first; the last is the one that created the repository."""
        with self._lock:
            return [commit.sha for commit in self._history(self._repositories[repo_type, repo_id], revision)]

    def environment(self) -> dict[str, str]:
        """Variables for a process that uses this Hub, with empty caches of its own: merge them into `os.environ`."""
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
    def breaking(
        self, method: str, pattern: str, *, after_bytes: int = 0, skip: int = 0, times: int = 1
    ) -> Iterator[Break]:
        """Cut the connection of `times` requests of `method` whose path `pattern` matches (a search), after `skip`.

        An upload is cut when `after_bytes` of it were read, and has no effect.  A download is cut after its headers
        and `after_bytes` of its body.  The object entered counts the requests it cut in `hits`.
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

    def _broken(self, method: str, path: str) -> Break | None:
        with self._lock:
            for broken in self._breaks:
                if broken.method == method and re.search(broken.pattern, path):
                    broken.seen += 1
                    if broken.skip < broken.seen <= broken.skip + broken.times:
                        broken.hits += 1
                        return broken
        return None

    def _answer(self, request: Request) -> Response:
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
            self._failures.append(f"{request.method} {request.path}\n{traceback.format_exc()}")
            return json_response({"error": traceback.format_exc()}, 500)

    def _authenticated(self, request: Request) -> bool:
        given = request.headers.get("authorization")
        if given is None:
            return False
        if given != f"Bearer {self.token}":
            raise Refusal(401, "Invalid credentials in Authorization header")
        return True

    def _require_token(self, request: Request) -> None:
        if not self._authenticated(request):
            raise Refusal(401, "Invalid username or password.")

    def _repository(self, request: Request, repo_type: str, repo_id: str, write: bool = False) -> Repository:
        """A repository that the request may read, or write; others are answered as if they were not there."""
        authenticated = self._authenticated(request)
        repository = self._repositories.get((repo_type.removesuffix("s"), repo_id))
        if repository is None or (repository.private and not authenticated):
            if authenticated:
                raise Refusal(404, "Repository not found", "RepoNotFound")
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if write:
            self._require_token(request)
        return repository

    def _object(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256

    def _store(self, content: bytes, lfs: bool) -> StoredFile:
        sha256 = hashlib.sha256(content).hexdigest()
        if not self._object(sha256).exists():
            partial = self._object(f"{sha256}.partial")
            partial.write_bytes(content)
            os.replace(partial, self._object(sha256))
        return self._stored(sha256, lfs)

    def _stored(self, sha256: str, lfs: bool) -> StoredFile:
        """The file whose content is already stored.  In git an LFS file is a small text that points to it."""
        content = self._object(sha256).read_bytes()
        in_git = content
        if lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
            in_git = pointer.encode()
        git_sha1 = hashlib.sha1(b"blob %d\0" % len(in_git) + in_git).hexdigest()
        return StoredFile(sha256, git_sha1, len(content), lfs)

    def _history(self, repository: Repository, revision: str) -> Iterator[Commit]:
        commit = repository.at(revision)
        while commit is not None:
            yield commit
            commit = repository.commits.get(commit.parent)

    def _card(self, commit: Commit) -> dict:
        """The metadata at the head of README.md."""
        if "README.md" not in commit.files:
            return {}
        return front_matter(self._object(commit.files["README.md"].sha256).read_text(encoding="utf-8")) or {}

    # Answers; `ROUTES` says which requests each is for.

    def _whoami(self, request: Request) -> Response:
        if not self._authenticated(request):
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write"}
        return json_response(
            {
                "type": "user",
                "name": self.user,
                "fullname": self.user,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    def _create(self, request: Request) -> Response:
        self._require_token(request)
        given = request.json()
        repo_type, repo_id = given.get("type") or "model", f"{given.get('organization') or self.user}/{given['name']}"
        if repo_type not in REPO_TYPES:
            raise Refusal(400, f"Invalid repo type {repo_type}")
        prefix = "" if repo_type == "model" else f"{repo_type}s/"
        url = {"url": f"{self.endpoint}/{prefix}{repo_id}", "name": repo_id}
        if (repo_type, repo_id) in self._repositories:
            return json_response({"error": f"You already created this {repo_type} repo: {repo_id}", **url}, 409)
        private = given.get("visibility") == "private" or bool(given.get("private"))
        repository = Repository(repo_id, repo_type, private, given.get("sdk"))
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repository.add_commit("main", {".gitattributes": self._store(attributes.encode(), False)}, "initial commit")
        self._repositories[repo_type, repo_id] = repository
        return json_response(url)

    def _delete(self, request: Request) -> Response:
        given = request.json()
        repo_type, repo_id = given.get("type") or "model", f"{given.get('organization') or self.user}/{given['name']}"
        self._repository(request, repo_type, repo_id, write=True)
        del self._repositories[repo_type, repo_id]
        return Response()

    def _validate_yaml(self, request: Request) -> Response:
        try:
            metadata = front_matter(request.json()["content"])
        except yaml.YAMLError as error:
            return json_response({"errors": [{"message": str(error)}], "warnings": []}, 400)
        empty = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return json_response({"errors": [], "warnings": empty})

    def _info(self, request: Request, type: str, id: str, revision: str = "main") -> Response:
        repository = self._repository(request, type, id)
        commit = repository.at(revision)
        card = self._card(commit)
        created = list(repository.commits.values())[0]
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        if "blobs" in request.query:
            for sibling in siblings:
                file = commit.files[sibling["rfilename"]]
                sibling |= {"size": file.size, "blobId": file.git_sha1}
                if file.lfs:
                    sibling["lfs"] = {"size": file.size, "sha256": file.sha256, "pointerSize": 130}
        info = {
            "id": repository.id,
            "author": repository.id.split("/")[0],
            "sha": commit.sha,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "tags": card.get("tags", []),
            "cardData": card,
            "siblings": siblings,
            "createdAt": created.date,
            "lastModified": commit.date,
            "downloads": 0,
            "likes": 0,
        }
        if repository.type == "model":
            info |= {name: card[name] for name in ("pipeline_tag", "library_name") if name in card}
        if repository.type == "space":
            info |= {"sdk": repository.sdk}
        return json_response(info)

    def _entries(self, commit: Commit, folder: str, recursive: bool) -> list[dict]:
        """Files and folders under `folder` as the tree's answer lists them; none if there is no such folder."""
        prefix = f"{folder}/" if folder else ""
        entries, folders = [], set()
        for path, file in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            parents = path.removeprefix(prefix).split("/")[:-1]
            folders |= {prefix + "/".join(parents[: depth + 1]) for depth in range(len(parents) if recursive else 1)}
            if recursive or not parents:
                entries.append(file_entry(path, file))
        folders = [path for path in folders if path != folder and any(p.startswith(f"{path}/") for p in commit.files)]
        return [folder_entry(path) for path in sorted(folders)] + entries

    def _tree(self, request: Request, type: str, id: str, revision: str, folder: str = "") -> Response:
        commit = self._repository(request, type, id).at(revision)
        recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = self._entries(commit, folder.strip("/"), recursive)
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return json_response(entries)

    def _paths_info(self, request: Request, type: str, id: str, revision: str) -> Response:
        commit = self._repository(request, type, id).at(revision)
        if "json" in request.headers.get("content-type", ""):
            paths = request.json()["paths"]
        else:
            paths = parse_qs(request.body.decode())["paths"]
        entries = []
        for path in paths:
            if path in commit.files:
                entries.append(file_entry(path, commit.files[path]))
            elif self._entries(commit, path, False):
                entries.append(folder_entry(path))
        return json_response(entries)

    def _list_commits(self, request: Request, type: str, id: str, revision: str) -> Response:
        history = self._history(self._repository(request, type, id), revision)
        authors = [{"user": self.user}]
        return json_response(
            [{"id": c.sha, "authors": authors, "date": c.date, "title": c.title, "message": c.message} for c in history]
        )

    def _refs(self, request: Request, type: str, id: str) -> Response:
        repository = self._repository(request, type, id)
        refs = {
            kind: [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha} for name, sha in names.items()]
            for kind, folder, names in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags))
        }
        return json_response({**refs, "converts": [], "pullRequests": []})

    def _branch(self, request: Request, type: str, id: str, name: str) -> Response:
        repository = self._repository(request, type, id, write=True)
        if request.method == "DELETE":
            repository.branches.pop(repository.at(name) and name)
            return Response()
        if name in repository.branches:
            raise Refusal(409, f"Reference already exists: {name}")
        repository.branches[name] = repository.at(request.json().get("startingPoint", "main")).sha
        return json_response({})

    def _tag(self, request: Request, type: str, id: str, name: str) -> Response:
        repository = self._repository(request, type, id, write=True)
        if request.method == "DELETE":
            repository.tags.pop(repository.at(name) and name)
            return Response()
        tag = request.json()["tag"]
        if tag in repository.tags:
            raise Refusal(409, f"Tag reference exists already: {tag}")
        repository.tags[tag] = repository.at(name).sha
        return json_response({})

    def _preupload(self, request: Request, type: str, id: str, revision: str) -> Response:
        """Which files must be uploaded as LFS: by suffix, by size, and those that are not text."""
        commit = self._repository(request, type, id, write=True).at(revision)
        files = []
        for given in request.json()["files"]:
            sample = base64.b64decode(given["sample"])
            lfs = given["path"].endswith(LFS_SUFFIXES) or given["size"] > LFS_SIZE or b"\0" in sample
            known = commit.files.get(given["path"])
            files.append(
                {
                    "path": given["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": known and known.etag,
                }
            )
        return json_response({"files": files})

    def _lfs_batch(self, request: Request, id: str, type: str = "models") -> Response:
        self._repository(request, type, id, write=True)
        objects = []
        for given in request.json()["objects"]:
            oid, size = given["oid"], given["size"]
            answer = {"oid": oid, "size": size}
            if not self._object(oid).exists():
                ticket = secrets.token_hex(8)
                self._tickets[ticket] = (oid, size)
                answer["actions"] = {
                    "upload": {"href": f"{self.endpoint}/lfs/{oid}?ticket={ticket}", "header": {}},
                    "verify": {"href": f"{self.endpoint}/api/lfs/verify", "header": {}},
                }
            objects.append(answer)
        return json_response({"transfer": "basic", "objects": objects}, content_type=LFS_JSON)

    def _lfs_upload(self, request: Request, oid: str) -> Response:
        """Take the content of an LFS file; as on the Hub, a ticket in the address stands for the token."""
        ticket = request.query.get("ticket", [""])[0]
        if self._tickets.get(ticket, ("", 0))[0] != oid:
            raise Refusal(403, "The upload's ticket is not known.")
        size = self._tickets[ticket][1]
        if len(request.body) != size or hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, f"The upload of {len(request.body)} bytes is not the announced file of {size}.")
        self._store(request.body, True)
        return Response()

    def _lfs_verify(self, request: Request) -> Response:
        self._require_token(request)
        given = request.json()
        if not self._object(given["oid"]).exists() or self._object(given["oid"]).stat().st_size != given["size"]:
            raise Refusal(404, f"{given['oid']} was not uploaded.")
        return Response()

    def _commit(self, request: Request, type: str, id: str, revision: str) -> Response:
        """Apply all operations of a commit to a copy of the files, and only then let the branch point to it."""
        repository = self._repository(request, type, id, write=True)
        if "create_pr" in request.query:
            raise Refusal(400, "This Hub has no pull requests.")
        if revision not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = repository.at(revision)
        files, header = dict(head.files), None
        for line in request.body.splitlines():
            try:
                operation = json.loads(line)
                key, value = operation["key"], operation["value"]
            except (ValueError, KeyError, TypeError):
                raise Refusal(400, "A line of the commit is not an operation.") from None
            if key == "header":
                header = value
                continue
            path = value["path"].rstrip("/")
            if not path or path.startswith("/") or ".." in path.split("/"):
                raise Refusal(400, f"Invalid path in the repository: {path}")
            if key == "file":
                files[path] = self._store(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if not self._object(value["oid"]).exists():
                    raise Refusal(400, f"The content of the LFS file {path} was not uploaded.")
                files[path] = self._stored(value["oid"], True)
            elif key in ("deletedFile", "deletedFolder"):
                deleted = [name for name in files if name == path or name.startswith(f"{path}/")]
                if not deleted or (key == "deletedFile" and path not in files):
                    raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for name in deleted:
                    del files[name]
            else:
                raise Refusal(400, f"Unknown operation {key} in the commit.")
        if header is None:
            raise Refusal(400, "The commit has no header.")
        if header.get("parentCommit", head.sha) != head.sha:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        commit = repository.add_commit(revision, files, header["summary"], header.get("description") or "")
        prefix = "" if repository.type == "model" else f"{repository.type}s/"
        url = f"{self.endpoint}/{prefix}{repository.id}/commit/{commit.sha}"
        return json_response({"success": True, "commitOid": commit.sha, "commitUrl": url})

    def _resolve(self, request: Request, id: str, revision: str, path: str, type: str = "models") -> Response:
        commit = self._repository(request, type, id).at(revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        file = commit.files.get(path)
        if file is None:
            raise Refusal(404, f"{path} does not exist in {id} at {revision}", "EntryNotFound", headers)
        headers |= {"Content-Type": "application/octet-stream", "ETag": f'"{file.etag}"'}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        content = self._object(file.sha256).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return Response(content, 200, headers)
        first, last = int(asked[1]), min(int(asked[2] or file.size), file.size - 1)
        if first > last:
            raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{file.size}"
        return Response(content[first : last + 1], 206, headers)


API = r"/api/(?P<type>models|datasets|spaces)/(?P<id>(?:[^/]+/)?[^/]+)"
FILES = r"/(?:(?P<type>datasets|spaces)/)?(?P<id>(?:[^/]+/)?[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Response]]] = [
    ("GET", r"/api/whoami-v2", HubServer._whoami),
    ("POST", r"/api/repos/create", HubServer._create),
    ("DELETE", r"/api/repos/delete", HubServer._delete),
    ("POST", r"/api/validate-yaml", HubServer._validate_yaml),
    ("GET", rf"{API}/revision/(?P<revision>[^/]+)", HubServer._info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", HubServer._tree),
    ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", HubServer._paths_info),
    ("GET", rf"{API}/commits/(?P<revision>[^/]+)", HubServer._list_commits),
    ("GET", rf"{API}/refs", HubServer._refs),
    ("POST DELETE", rf"{API}/branch/(?P<name>[^/]+)", HubServer._branch),
    ("POST DELETE", rf"{API}/tag/(?P<name>[^/]+)", HubServer._tag),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", HubServer._preupload),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", HubServer._commit),
    ("GET", API, HubServer._info),
    ("POST", rf"{FILES}\.git/info/lfs/objects/batch", HubServer._lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", HubServer._lfs_upload),
    ("POST", r"/api/lfs/verify", HubServer._lfs_verify),
    ("GET HEAD", rf"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", HubServer._resolve),
]


def front_matter(card: str) -> dict | None:
    """The YAML between the two lines of dashes at the head of `card`; None without them."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---", card, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def file_entry(path: str, file: StoredFile) -> dict:
    entry = {"type": "file", "path": path, "size": file.size, "oid": file.git_sha1}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
    return entry


def folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


class _Server(ThreadingHTTPServer):
    """One thread a connection; all of them end with the server."""

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
        """A client that goes away in the middle of an answer is none of the server's trouble."""
        if not isinstance(sys.exception(), ConnectionError):
            self.hub._failures.append(traceback.format_exc())

    def cut_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Reads a request whole, asks the Hub, writes the answer; cuts the connection where `breaking` says so."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format, *args):
        pass

    def _read_body(self, limit: int | None = None) -> bytes | None:
        """The request's body, or its first `limit` bytes; None if the client went away before its end."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if limit is not None and len(body) >= limit:
                    return body[:limit]
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length if limit is None else min(limit, length))
        return body if len(body) == length or limit is not None else None

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        hub.requests.append((self.command, url.path))
        broken = hub._broken(self.command, url.path)
        if broken and self.command not in ("GET", "HEAD"):
            self._read_body(broken.after_bytes)
            return self._cut()
        body = self._read_body()
        if body is None:
            return self._cut()
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(url.query, keep_blank_values=True)
        response = hub._answer(Request(self.command, url.path, query, headers, body))
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[: broken.after_bytes] if broken else response.body)
        if broken:
            self._cut()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve


# Put before a program that must not find the package, even where it is installed.
WITHOUT_THE_PACKAGE = """
import sys
class _Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_handunet", "dataset_script", "training"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, _Absent())
"""


def run_program(
    hub: HubServer, program: str, *arguments, cwd: str | os.PathLike, with_package: bool = False, timeout: float = 300
) -> dict:
    """Run Python code in a fresh process that uses `hub`, and return the JSON that is the last line it prints.

    It starts in `cwd` with empty caches.  The checkout's packages can be imported only if `with_package`; without, they
    cannot even where they are installed.  A RuntimeError has all that a program printed that failed.
    """
    environment = {**os.environ, **hub.environment()}
    environment.pop("PYTHONPATH", None)
    if with_package:
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    else:
        program = WITHOUT_THE_PACKAGE + program
    command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, timeout=timeout, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"The program failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub; a test module or conftest.py takes it with `from tests.hub_server import hub`."""
    with HubServer(tmp_path / "hub") as server:
        yield server
