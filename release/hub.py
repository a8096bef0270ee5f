"""A saved folder on the Hub: one commit for the model with its ONNX file, and one for the Space in its own repository.

A commit happens whole or not at all, so a push that breaks leaves a repository as it was.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, RepoCard
from huggingface_hub.utils import validate_repo_id

from handunet.export import export, load
from release.card import PICTURES, fill_block, fill_pictures, is_private, name_repository
from release.files import ROOT, SERVING, SPACE
from release.saving import (
    CODE,
    REQUIRED,
    add_code,
    add_companions,
    add_detector,
    is_detector,
    named_detector,
)
from release.terms import RESEARCH_ONLY

SCREENSHOT = ROOT / "docs" / "space.jpg"
ONNX_FILE = "onnx/model.onnx"
# Folders on the Hub that belong to the weights: a push removes what an earlier one left there.
FOLDERS_OF_WEIGHTS = ("detector/", "figures/", "examples/", "onnx/")
PICTURE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg")


def check_repo_id(name: str) -> None:
    """Raise `ValueError` unless `name` is USER/NAME as the Hub allows it."""
    validate_repo_id(name)
    if "/" not in name:
        raise ValueError(f"The repository {name!r} names no owner: give USER/NAME.")


def push_model(
    folder: Path,
    repo_id: str,
    *,
    space: str | None = None,
    private: bool = False,
    publish_examples: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Send a saved folder to the Hub in one commit, and the Space to its own repository if `space` names one.

    With `dry_run` it only lists the files and their sizes, and the pictures among them.  `private` holds for repositories
    that are created.  Figures that show private photographs are left out without `publish_examples`.

    Raises `ValueError` for a folder or a name that cannot be pushed, and `OSError` if a push breaks or is refused; that
    repository is then as it was.
    """
    with tempfile.TemporaryDirectory(prefix="handunet-push-") as temporary:
        model, page = Path(temporary) / "model", Path(temporary) / "space"
        problem = assemble(Path(folder), repo_id, model, space, publish_examples)
        if problem:
            say(f"Without an ONNX file: {problem}")
        if not publish_examples and is_private(read_report(model)):
            say("Figures that show your photographs are left out; --publish_examples publishes them.")
        parts = [(model, repo_id, "model")]
        if space:
            assemble_space(page, repo_id, ModelCard.load(model / "README.md", ignore_metadata_errors=True).data.license_name)
            parts.append((page, space, "space"))
        for part, name, kind in parts:
            if dry_run:
                say(describe_files(part, f"Would go to the {kind} {name}"))
            else:
                say(f"Pushed to {send(part, name, kind, private)}")


def assemble(
    folder: Path, repo_id: str, target: Path, space: str | None = None, publish_examples: bool = False
) -> str | None:
    """Copy a saved folder to `target`, complete as the repository `repo_id`: with the ONNX file, and a card that names both.

    Returns why there is no ONNX file, or None if there is one.  Raises `ValueError` for a folder that is not complete and
    for names that the Hub does not allow.
    """
    for name in filter(None, (repo_id, space)):
        check_repo_id(name)
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not a finished model, it has no {', '.join(missing)}. Give the folder model/ that train.py wrote. A "
            "model without a card (README.md) is not published, because nobody would know its terms."
        )
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__", ".*", "onnx"))
    if not all((target / name).is_file() for name in CODE):
        add_code(target)
    if not is_detector(folder) and (detector := named_detector(folder)):
        add_detector(target, detector)
    add_companions(target)
    problem = add_onnx(target)
    card = name_repository((target / "README.md").read_text(), repo_id)
    if is_private(read_report(target)):
        card = choose_pictures(card, target, folder.parent / "figures", publish_examples)
    onnx = f"`{ONNX_FILE}` is the same network with its decoder for onnxruntime. Its metadata say how to prepare an image."
    onnx += " It looks at each photograph at two sizes." if is_detector(folder) else ""
    card = fill_block(card, "onnx", "" if problem else onnx)
    link = f"https://huggingface.co/spaces/{space}"
    text = f"Try it in the [Space]({link})." if space else ""
    if space and SCREENSHOT.is_file():
        (target / "figures").mkdir(exist_ok=True)
        shutil.copy(SCREENSHOT, target / "figures" / "space.jpg")
        picture = "![The Space: a photograph with a box and the skeleton, and a table of keypoints](figures/space.jpg)"
        text = f"Try it in the [Space]({link}):\n\n[{picture}]({link})"
    (target / "README.md").write_text(fill_block(card, "space", text))
    return problem


def read_report(folder: Path) -> dict:
    """What a saved folder says of its run.  Folders without a report are of drawn hands."""
    path = folder / "report.json"
    return json.loads(path.read_text()) if path.is_file() else {"source": {"private": False}}


def choose_pictures(card: str, target: Path, drawn: Path, shown: bool) -> str:
    """Add the figures that show private photographs to `target` from the run's folder `drawn`, or remove them; the card's
    text for that."""
    report = read_report(target)
    for name in PICTURES:
        picture = Path("figures", f"{name}.png")
        if not shown:
            (target / picture).unlink(missing_ok=True)
        elif (drawn / picture.name).is_file():
            (target / "figures").mkdir(exist_ok=True)
            shutil.copy(drawn / picture.name, target / picture)
    (target / "report.json").write_text(json.dumps(report | {"publish_examples": shown}, indent=2) + "\n")
    return fill_pictures(card, report, shown)


def add_onnx(folder: Path) -> str | None:
    """Add the ONNX file to a saved folder, and a pose model's detector beside it; returns why not, if packages are missing."""
    detector = folder / "detector"
    try:
        export(*load(folder), folder / ONNX_FILE)
        if detector.is_dir():
            export(*load(detector), (folder / ONNX_FILE).with_name("detector.onnx"))
    except ImportError as error:
        return str(error)
    return None


def assemble_space(target: Path, repo_id: str, license_name: str | None) -> None:
    """Write the Space for the model `repo_id` to `target`: the app, the package, and metadata with the model's name."""
    shutil.copytree(SPACE, target, ignore=shutil.ignore_patterns("__pycache__", "draw_examples.py", ".*"))
    shutil.copy(SERVING, target)
    package = ROOT / "modeling_handunet"
    shutil.copytree(package, target / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    card = RepoCard.load(target / "README.md", ignore_metadata_errors=True)
    card.data.models = [repo_id]
    card.data.title = f"Hand keypoints: {repo_id.split('/')[-1]}"
    if license_name == RESEARCH_ONLY:
        card.data.short_description = "21 keypoints of a hand; research only"
    link = f"https://huggingface.co/{repo_id}"
    card.text = f"\n# Hand keypoints\n\nA page to try the model [{repo_id}]({link}). Its terms are on the model's page.\n"
    card.save(target / "README.md")


def describe_files(folder: Path, heading: str) -> str:
    """The files of a folder with their sizes, and which of them are pictures, as text."""
    sizes = {name: path.stat().st_size for name, path in list_files(folder).items()}
    lines = [f"{size:>12,}  {name}" for name, size in sizes.items()]
    pictures = [name for name in sizes if name.lower().endswith(PICTURE_FILES)]
    listed = f"Pictures that everybody who can open it will see: {', '.join(pictures) or 'none'}."
    return "\n".join([f"{heading}, {len(sizes)} files, {sum(sizes.values()):,} bytes:", *lines, listed])


def list_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names in a repository."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def send(folder: Path, repo_id: str, repo_type: str, private: bool) -> str:
    """Send all files of a folder in one commit, which also removes what an earlier push left of other weights; its address."""
    api = HfApi()
    try:
        sdk = "gradio" if repo_type == "space" else None
        url = api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=sdk, exist_ok=True)
        repo_id, files = url.repo_id, list_files(folder)
        # `upload_folder` might split a push into several commits.
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        for name in api.list_repo_files(repo_id, repo_type=repo_type):
            if name not in files and name.startswith(FOLDERS_OF_WEIGHTS):
                operations.append(CommitOperationDelete(name))
        title = "Upload HandUNet" if repo_type == "model" else "Upload the page to try HandUNet"
        return str(api.create_commit(repo_id, operations, commit_message=title, repo_type=repo_type).commit_url)
    except (httpx2.HTTPError, OSError, RuntimeError) as error:  # the threads that upload raise RuntimeError
        raise OSError(
            f"The push to the {repo_type} {repo_id} failed: {error.__cause__ or error}\nThe repository is as it was before, "
            "and the folder on this machine is complete. To send it again: `python -m scripts.publish FOLDER USER/NAME`."
        ) from error
