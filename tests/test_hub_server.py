"""The Hub that other tests push to and pull from, through the real client and in the raw."""

import base64
import hashlib
import http.client
import json

import pytest

from tests.hub_server import HubServer, hub, run_program  # noqa: F401, F811 (hub is a fixture)

TEXT = b"one line\n"
WEIGHTS = bytes(range(256)) * 1024  # 256 KiB


def ask(hub: HubServer, method: str, path: str, body=None, *, token: bool = True, **headers) -> tuple[int, dict, bytes]:
    """One request without the client; returns status, headers in lower case and body."""
    if token:
        headers["Authorization"] = f"Bearer {hub.token}"
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def commit(hub: HubServer, repo: str, *operations: dict, **header) -> tuple[int, dict, bytes]:
    lines = [{"key": "header", "value": {"summary": "change", **header}}, *operations]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return ask(hub, "POST", f"/api/models/{repo}/commit/main", body)


def add(path: str, content: bytes) -> dict:
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}}


@pytest.fixture
def repo(hub) -> str:
    status, _, _ = ask(hub, "POST", "/api/repos/create", {"name": "hands", "organization": "tester", "type": "model"})
    assert status == 200
    return "tester/hands"


def test_a_folder_is_pushed_and_pulled_at_any_revision(hub, tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "README.md").write_bytes(b"---\nlicense: apache-2.0\ntags: [hands]\n---\n# Hands\n")
    (folder / "deep" / "er" / "text.txt").write_bytes(TEXT)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    program = """
import json, pathlib, sys
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

api, folder = HfApi(), pathlib.Path(sys.argv[1])
repo = api.create_repo("hands", private=False).repo_id
assert api.create_repo("hands", exist_ok=True).repo_id == repo == "tester/hands"
first = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="First").oid
assert api.upload_folder(repo_id=repo, folder_path=folder).oid == first  # nothing new is no commit
api.create_tag(repo, tag="v1")
(folder / "model.safetensors").write_bytes(b"second")
(folder / "empty.txt").unlink()
second = api.upload_folder(repo_id=repo, folder_path=folder, delete_patterns="*.txt", commit_message="Second").oid

def pull(revision):
    return pathlib.Path(hf_hub_download(repo, "model.safetensors", revision=revision)).read_bytes()

assert pull("main") == pull(second) == pull(None) == b"second"
assert pull(first) == pull("v1") == bytes(range(256)) * 1024
old = pathlib.Path(snapshot_download(repo, revision=first))
assert old.name == first and (old / "empty.txt").read_bytes() == b""
assert (old / "deep" / "er" / "text.txt").read_bytes() == b"one line\\n"
new = pathlib.Path(snapshot_download(repo))
assert new.name == second and not (new / "empty.txt").exists()
refused = []
for name, revision, other in (("empty.txt", second, repo), ("x", "v2", repo), ("x", "main", "tester/other")):
    try:
        hf_hub_download(other, name, revision=revision)
    except (EntryNotFoundError, RevisionNotFoundError, RepositoryNotFoundError) as error:
        refused.append(type(error).__name__)
info = api.model_info(repo, revision=first, files_metadata=True)
sizes = {file.rfilename: file.size for file in info.siblings}
tree = [entry.path for entry in api.list_repo_tree(repo)]
deep = [entry.path for entry in api.list_repo_tree(repo, "deep", recursive=True)]
commits = [(c.commit_id, c.title) for c in api.list_repo_commits(repo)]
print(json.dumps([first, second, refused, sizes, info.tags, tree, deep, commits, api.whoami()["name"]]))
"""
    first, second, refused, sizes, tags, tree, deep, commits, user = run_program(hub, program, folder, cwd=tmp_path)
    assert refused == ["RemoteEntryNotFoundError", "RevisionNotFoundError", "RepositoryNotFoundError"]
    assert user == "tester" and tags == ["hands"]
    assert sizes["model.safetensors"] == len(WEIGHTS) and sizes["empty.txt"] == 0 and len(sizes) == 5
    assert tree == ["deep", ".gitattributes", "README.md", "model.safetensors"]
    assert deep == ["deep/er", "deep/er/text.txt"]
    assert [title for _, title in commits] == ["Second", "First", "initial commit"]
    assert [sha for sha, _ in commits] == hub.commits("tester/hands") and commits[0][0] == second
    assert hub.files("tester/hands")["model.safetensors"] == b"second"
    assert hub.files("tester/hands", revision="v1") == hub.files("tester/hands", revision=first)
    assert hub.files("tester/hands", revision=first)["model.safetensors"] == WEIGHTS
    assert ("PUT", f"/lfs/{hashlib.sha256(WEIGHTS).hexdigest()}") in hub.requests
    assert ("GET", f"/tester/hands/resolve/{first}/model.safetensors") in hub.requests


def test_a_push_that_breaks_off_leaves_the_repository_as_it_was(hub, tmp_path):
    program = """
import io, json, sys
import httpx2
from huggingface_hub import HfApi
api = HfApi()
if sys.argv[1] == "create":
    api.create_repo("tester/hands")
try:
    content = bytes(range(256)) * 1024
    commit = api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors", repo_id="tester/hands")
    print(json.dumps(commit.oid))
except httpx2.TransportError as error:
    print(json.dumps("broken"))
"""
    with hub.breaking("POST", "/commit/main", after_bytes=20) as broken:
        assert run_program(hub, program, "create", cwd=tmp_path) == "broken"
    assert broken.hits == 1
    assert list(hub.files("tester/hands")) == [".gitattributes"] and len(hub.commits("tester/hands")) == 1
    puts = [path for method, path in hub.requests if method == "PUT"]
    assert len(puts) == 1
    assert run_program(hub, program, "again", cwd=tmp_path) == hub.commits("tester/hands")[0]
    assert hub.files("tester/hands")["model.safetensors"] == WEIGHTS
    assert [path for method, path in hub.requests if method == "PUT"] == puts  # its content was already there


def test_the_client_goes_on_after_a_broken_upload_and_a_broken_download(hub, tmp_path):
    program = """
import json, pathlib
from huggingface_hub import HfApi, hf_hub_download
api = HfApi()
api.create_repo("tester/hands")
content = bytes(range(256)) * 1024
api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors", repo_id="tester/hands")
path = hf_hub_download("tester/hands", "model.safetensors")
print(json.dumps(pathlib.Path(path).read_bytes() == content))
"""
    with (
        hub.breaking("PUT", "^/lfs/", after_bytes=1000) as upload,
        hub.breaking("GET", "/resolve/.*safetensors", after_bytes=1000) as download,
    ):
        assert run_program(hub, program, cwd=tmp_path) is True
    assert upload.hits == download.hits == 1
    assert hub.files("tester/hands")["model.safetensors"] == WEIGHTS


def test_only_the_token_may_write_and_see_what_is_private(hub):
    new = {"name": "secret", "type": "model", "visibility": "private"}
    assert ask(hub, "POST", "/api/repos/create", new, token=False)[0] == 401
    assert ask(hub, "POST", "/api/repos/create", new)[0] == 200
    assert ask(hub, "POST", "/api/repos/create", new)[0] == 409
    assert ask(hub, "GET", "/api/models/tester/secret")[0] == 200
    status, headers, _ = ask(hub, "GET", "/api/models/tester/secret", token=False)
    assert (status, headers["x-error-code"]) == (401, "RepoNotFound")
    status, headers, _ = ask(hub, "GET", "/api/whoami-v2", token=False, Authorization="Bearer hf_wrong")
    assert (status, headers["x-error-message"]) == (401, "Invalid credentials in Authorization header")
    ask(hub, "POST", "/api/repos/create", {"name": "open", "type": "model"})
    status, _, _ = ask(hub, "POST", "/api/models/tester/open/commit/main", b"", token=False)
    assert status == 401 and len(hub.commits("tester/open")) == 1


def test_a_commit_happens_whole_or_not_at_all(hub, repo):
    assert commit(hub, repo, add("a.txt", b"a"), add("folder/b.txt", b"b"))[0] == 200
    before, history = hub.files(repo), hub.commits(repo)
    assert before["folder/b.txt"] == b"b"
    missing = {"key": "lfsFile", "value": {"path": "big", "algo": "sha256", "oid": "0" * 64, "size": 3}}
    for bad in (
        missing,
        {"key": "deletedFile", "value": {"path": "folder"}},
        {"key": "deletedFolder", "value": {"path": "nowhere/"}},
        {"key": "unheard", "value": {"path": "a.txt"}},
        add("../outside.txt", b"x"),
        add("/outside.txt", b"x"),
        ["not", "an", "operation"],
    ):
        assert commit(hub, repo, add("a.txt", b"changed"), bad)[0] in (400, 404)
    assert commit(hub, repo, add("a.txt", b"changed"), parentCommit=history[-1])[0] == 412
    assert (hub.files(repo), hub.commits(repo)) == (before, history)
    removal = {"key": "deletedFolder", "value": {"path": "folder/"}}
    assert commit(hub, repo, add("a.txt", b"changed"), removal, parentCommit=history[0])[0] == 200
    assert {path: content for path, content in hub.files(repo).items() if path != ".gitattributes"} == {
        "a.txt": b"changed"
    }
    assert hub.files(repo, revision=history[0]) == before  # an old commit keeps its files


def test_an_lfs_upload_that_is_not_what_was_announced_is_refused(hub, repo):
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(WEIGHTS)}]}
    _, _, body = ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", batch)
    actions = json.loads(body)["objects"][0]["actions"]
    upload = actions["upload"]["href"].removeprefix(hub.endpoint)
    assert ask(hub, "PUT", upload, WEIGHTS[:-1])[0] == 400
    assert ask(hub, "PUT", upload, WEIGHTS[::-1])[0] == 400
    assert ask(hub, "PUT", f"/lfs/{oid}?ticket=guessed", WEIGHTS)[0] == 403
    verify = actions["verify"]["href"].removeprefix(hub.endpoint)
    assert ask(hub, "POST", verify, {"oid": oid, "size": len(WEIGHTS)})[0] == 404
    assert ask(hub, "PUT", upload, WEIGHTS, token=False)[0] == 200
    assert ask(hub, "POST", verify, {"oid": oid, "size": len(WEIGHTS)})[0] == 200
    pointer = {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": oid, "size": len(WEIGHTS)}}
    assert commit(hub, repo, pointer)[0] == 200
    _, _, body = ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", batch)
    assert "actions" not in json.loads(body)["objects"][0]
    path = f"/{repo}/resolve/main/w.bin"
    status, headers, body = ask(hub, "HEAD", path)
    assert (status, body, headers["content-length"]) == (200, b"", str(len(WEIGHTS)))
    assert headers["x-linked-etag"] == f'"{oid}"' and headers["x-linked-size"] == str(len(WEIGHTS))
    assert headers["x-repo-commit"] == hub.commits(repo)[0]


def test_files_have_gits_names_and_come_in_ranges(hub, repo):
    commit(hub, repo, add("hello.txt", b"hello\n"))
    path = f"/{repo}/resolve/main/hello.txt"
    status, headers, body = ask(hub, "GET", path)
    assert (status, body) == (200, b"hello\n")
    assert headers["etag"] == '"ce013625030ba8dba906f756967f9e9ca394464a"'  # echo hello | git hash-object --stdin
    status, headers, body = ask(hub, "GET", path, Range="bytes=2-")
    assert (status, body, headers["content-range"]) == (206, b"llo\n", "bytes 2-5/6")
    status, headers, body = ask(hub, "GET", path, Range="bytes=1-2")
    assert (status, body, headers["content-range"]) == (206, b"el", "bytes 1-2/6")
    assert ask(hub, "GET", path, Range="bytes=6-")[0] == 416
    for url, code in (
        (f"/{repo}/resolve/main/absent.txt", "EntryNotFound"),
        (f"/{repo}/resolve/v9/hello.txt", "RevisionNotFound"),
        (f"/api/models/{repo}/tree/main/absent", "EntryNotFound"),
        ("/tester/absent/resolve/main/hello.txt", "RepoNotFound"),
        ("/alone/resolve/main/hello.txt", "RepoNotFound"),
    ):
        status, headers, _ = ask(hub, "GET", url)
        assert (status, headers["x-error-code"]) == (404, code)


def test_branches_and_tags_point_to_commits_and_go_away(hub, repo):
    commit(hub, repo, add("a.txt", b"1"))
    first = hub.commits(repo)[0]
    assert ask(hub, "POST", f"/api/models/{repo}/branch/try%2Fout", {"startingPoint": first})[0] == 200
    assert ask(hub, "POST", f"/api/models/{repo}/tag/main", {"tag": "v1"})[0] == 200
    assert ask(hub, "POST", f"/api/models/{repo}/tag/main", {"tag": "v1"})[0] == 409
    commit(hub, repo, add("a.txt", b"2"))
    assert ask(hub, "GET", f"/{repo}/resolve/try%2Fout/a.txt")[2] == b"1"
    assert ask(hub, "GET", f"/{repo}/resolve/v1/a.txt")[2] == b"1"
    assert ask(hub, "GET", f"/{repo}/resolve/main/a.txt")[2] == b"2"
    assert ask(hub, "DELETE", f"/api/models/{repo}/tag/v1")[0] == 200
    assert ask(hub, "DELETE", f"/api/models/{repo}/branch/try%2Fout")[0] == 200
    refs = json.loads(ask(hub, "GET", f"/api/models/{repo}/refs")[2])
    assert [ref["name"] for ref in refs["branches"]] == ["main"] and refs["tags"] == []
    assert ask(hub, "GET", f"/{repo}/resolve/v1/a.txt")[0] == 404


def test_metadata_that_is_not_yaml_is_refused(hub):
    def validate(content):
        status, _, body = ask(hub, "POST", "/api/validate-yaml", {"content": content, "repoType": "model"})
        return status, json.loads(body)

    assert validate("---\nlicense: mit\n---\n# A\n") == (200, {"errors": [], "warnings": []})
    status, answer = validate("---\nlicense: [mit\n---\n")
    assert status == 400 and len(answer["errors"]) == 1
    assert validate("# no metadata")[1]["warnings"][0]["message"].startswith("empty or missing")


def test_models_datasets_and_spaces_of_one_name_are_three_repositories(hub):
    for kind in ("model", "dataset", "space"):
        assert ask(hub, "POST", "/api/repos/create", {"name": "same", "type": kind, "sdk": "static"})[0] == 200
        body = {"key": "header", "value": {"summary": kind}}, add("kind.txt", kind.encode())
        data = b"".join(json.dumps(line).encode() + b"\n" for line in body)
        assert ask(hub, "POST", f"/api/{kind}s/tester/same/commit/main", data)[0] == 200
    assert ask(hub, "GET", "/tester/same/resolve/main/kind.txt")[2] == b"model"
    assert ask(hub, "GET", "/datasets/tester/same/resolve/main/kind.txt")[2] == b"dataset"
    assert ask(hub, "GET", "/spaces/tester/same/resolve/main/kind.txt")[2] == b"space"
    assert hub.files("tester/same", "dataset")["kind.txt"] == b"dataset"
    assert json.loads(ask(hub, "GET", "/api/spaces/tester/same")[2])["sdk"] == "static"
    assert ask(hub, "DELETE", "/api/repos/delete", {"name": "same", "type": "dataset"})[0] == 200
    assert ask(hub, "GET", "/api/datasets/tester/same")[0] == 404
    assert ask(hub, "GET", "/api/models/tester/same")[0] == 200


def test_a_fault_of_the_server_itself_does_not_pass_unseen(tmp_path):
    with pytest.raises(RuntimeError, match="The Hub server itself failed:(.|\n)*KeyError: 'files'"):
        with HubServer(tmp_path / "hub") as server:
            ask(server, "POST", "/api/repos/create", {"name": "hands"})
            assert ask(server, "POST", "/api/models/tester/hands/preupload/main", {})[0] == 500


@pytest.mark.slow
def test_a_dataset_is_pushed_and_loaded(hub, tmp_path):
    program = """
import json
import datasets
rows = datasets.Dataset.from_dict({"frame": [1, 2, 3], "keypoints": [[[0.5, 1.5]] * 21] * 3})
sha = rows.push_to_hub("tester/rows").oid
rows.map(lambda row: {"frame": row["frame"] + 10}).push_to_hub("tester/rows")
new = datasets.load_dataset("tester/rows", split="train")["frame"][:]
old = datasets.load_dataset("tester/rows", split="train", revision=sha)
print(json.dumps([new, old["frame"][:], old[0]["keypoints"][20]]))
"""
    assert run_program(hub, program, cwd=tmp_path) == [[11, 12, 13], [1, 2, 3], [0.5, 1.5]]
    assert any(path.endswith(".parquet") for path in hub.files("tester/rows", "dataset"))
