"""Files of answers.  Each grows by one photograph or one frame at a time, and is whole after each, also if the program is
killed or the disk is full.

An answer is `{"photo", "hands"}`, of a film's frame also with `"frame"`, from 0, and `"time"` in seconds.  Hands are as the
`keypoint-detection` pipeline gives them; in a film with an `"id"`.
"""

import csv
import io
import json
import os
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMATS = ("json", "jsonl", "csv", "parquet", "coco")
COLUMNS = ("photo", "frame", "time", "hand", "id", "label", "hand_score", "keypoints_score", "xmin", "ymin", "xmax", "ymax")
COLUMNS += ("keypoint", "x", "y", "score")
COCO_FILE, COCO_IMAGES = "annotations.json", "images"
# The COCO file, which is written anew each time, takes at most this share of the time, and is at most so old.
COCO_SHARE, COCO_SECONDS = 0.05, 10.0
# A keypoint of at least this score is said to be visible (v = 2), and others to be hidden (v = 1): look at those first.
SEEN = 0.5


class OutputError(Exception):
    """What cannot be written, in a sentence."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system into an [`OutputError`] that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {reason}. What was done before is kept.") from error


def answer_of(photo: str, hands: list[dict], frame: int | None = None, seconds: float | None = None) -> dict:
    """An answer as it is written."""
    place = {} if frame is None else {"frame": frame, "time": seconds}
    return {"photo": photo, **place, "hands": hands}


def open_answers(folder: Path, format: str):
    """A writer with `add(photo, hands, ...)` and `close()`; its file appears with the first answer."""
    if format == "coco":
        return CocoAnswers(folder)
    return Answers(folder, format)


class Answers:
    """A file of answers: "json" is a list of them, "jsonl" has one in each line, and "csv" a keypoint in each line."""

    def __init__(self, folder: Path, format: str):
        self.path, self.format, self.end, self.file = folder / f"keypoints.{format}", format, 0, None

    def add(self, photo: str, hands: list[dict], frame: int | None = None, seconds: float | None = None, **_) -> None:
        """Write the hands of one photograph or frame; `OutputError` if that is not possible."""
        answer = answer_of(photo, hands, frame, seconds)
        with writing(self.path):
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("wb", buffering=0)
                if self.format == "csv":
                    self.end = self.write(0, csv_lines([COLUMNS]))
            if self.format == "json":  # write over the list's last bracket
                text = (",\n" if self.end else "[\n") + textwrap.indent(json.dumps(answer, indent=2), "  ")
                self.end = self.write(self.end, text, "\n]\n")
            elif self.format == "jsonl":
                self.end = self.write(self.end, json.dumps(answer) + "\n")
            else:
                self.end = self.write(self.end, csv_lines(rows(answer)))

    def write(self, position: int, text: str, last: str = "") -> int:
        """Write `text` and then `last`; returns where `last` begins.  After an error the file is as it was."""
        # surrogateescape: a file's name is written with the bytes that it has on the disk.
        data, last = (part.encode(errors="surrogateescape") for part in (text, last))
        try:
            write_all(self.file, position, data + last)
        except OSError:
            last = last if position else b""
            write_all(self.file, position, last)  # what was there before, so that there is room for it
            self.file.truncate(position + len(last))
            raise
        return position + len(data)

    def close(self) -> None:
        """No more answers follow."""
        if self.file is not None:
            self.file.close()


def write_all(file, position: int, data: bytes) -> None:
    """Write all bytes, or raise `OSError`."""
    file.seek(position)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def csv_lines(table) -> str:
    """Rows as lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()


def rows(answer: dict) -> Iterator[list]:
    """A row of `COLUMNS` for each keypoint."""
    for index, hand in enumerate(answer["hands"]):
        first = [answer["photo"], answer.get("frame"), answer.get("time"), index, hand.get("id"), hand["label"]]
        first += [hand.get("hand_score"), hand["score"], *hand["box"].values()]
        for keypoint in hand["keypoints"]:
            yield [*first, *keypoint.values()]


class CocoAnswers:
    """A COCO keypoint file, which `train.py --annotations` and the annotation tools read: `annotations.json`.

    Frames of films, and photographs that are no files, lie in `images` beside it.  Hands that are not clear are left out.
    While it grows, `annotations.jsonl` has what is done, and the COCO file itself is at most `COCO_SECONDS` behind.
    """

    def __init__(self, folder: Path):
        self.folder, self.path, self.log_path = folder, folder / COCO_FILE, folder / "annotations.jsonl"
        self.images, self.log, self.next = folder / COCO_IMAGES, None, 0.0
        self.unclear = self.count = 0

    def add(self, photo: str, hands: list[dict], frame=None, seconds=None, *, image, place: str, file: str | None) -> None:
        """Write the hands of one photograph or frame.

        image: the RGB image; place: the path of its copy below `images`, without a suffix; file: the photograph's own path,
        if it needs no copy.
        """
        from modeling_handunet.keypoints import NO_CLEAR_HAND

        if file is None or not is_text(file):
            place = "".join(c if is_text(c) else "_" for c in place) if frame is None else f"{place}-{frame:07d}"
            path = self.images / f"{place}.jpg"
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    image.save(path, quality=95)
                except OSError:
                    path.unlink(missing_ok=True)  # half of it
                    raise
        else:
            path = Path(file)
        clear = [hand for hand in hands if hand["score"] >= NO_CLEAR_HAND]
        entry = {"file": os.path.abspath(path), "size": image.size, "source": photo if is_text(photo) else "", "hands": clear}
        self.unclear += len(hands) - len(clear)
        with writing(self.path):
            if self.log is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.log = Answers(self.folder, "jsonl")
                self.log.path = self.log_path
                self.log.file = self.log_path.open("w+b", buffering=0)
            self.log.end = self.log.write(self.log.end, json.dumps(entry) + "\n")
        self.count += 1
        if time.monotonic() >= self.next:
            self.write()

    def write(self) -> None:
        """Write the COCO file of all that is done."""
        begun = time.monotonic()
        with writing(self.path):
            write_coco(self.log_path, self.path)
        now = time.monotonic()
        self.next = now + max((now - begun) / COCO_SHARE, COCO_SECONDS)

    def close(self) -> None:
        """No more answers follow."""
        if self.log is not None:
            self.write()
            self.folder_of_photographs = common_folder(self.log_path)
            self.log.close()
            self.log_path.unlink(missing_ok=True)


def is_text(name: str) -> bool:
    """Whether a name can stand in a file of UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def entries(log: Path) -> Iterator[dict]:
    """What a log holds; the number of the image is its place."""
    with log.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def common_folder(log: Path) -> Path:
    """The folder that holds all images of a log."""
    folder = None
    for entry in entries(log):
        here = os.path.dirname(entry["file"])
        folder = here if folder is None else os.path.commonpath([folder, here])
    return Path(folder or ".")


def write_coco(log: Path, path: Path) -> None:
    """Write the entries of a log as a COCO file, which appears whole or not at all.  Memory does not grow with it."""
    from handunet.files import written_whole
    from modeling_handunet.keypoints import KEYPOINT_NAMES, SKELETON

    folder = common_folder(log)
    skeleton = [[parent + 1, child + 1] for parent, child in SKELETON]  # COCO counts keypoints from 1
    categories = [
        {"id": number, "name": f"{side}_hand", "supercategory": "hand", "keypoints": list(KEYPOINT_NAMES), "skeleton": skeleton}
        for number, side in ((1, "right"), (2, "left"))
    ]
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {{"description": "Hands that HandUNet found"}},\n"categories": {json.dumps(categories)},\n')
        file.write('"images": [')
        for index, entry in enumerate(entries(log)):
            width, height = entry["size"]
            name = Path(os.path.relpath(entry["file"], folder)).as_posix()
            image = {"id": index + 1, "file_name": name, "width": width, "height": height, "source": entry["source"]}
            file.write(("," if index else "") + "\n" + json.dumps(image))
        file.write('\n],\n"annotations": [')
        number = 0
        for index, entry in enumerate(entries(log)):
            for hand in entry["hands"]:
                if annotation := coco_hand(hand, entry["size"]):
                    file.write(("," if number else "") + "\n")
                    number += 1
                    file.write(json.dumps({"id": number, "image_id": index + 1, **annotation}))
        file.write("\n]}\n")


def coco_hand(hand: dict, size: tuple[int, int]) -> dict | None:
    """A hand as an annotation; None if its keypoints are not in the image.  The box is that of the keypoints."""
    points = [(keypoint["x"], keypoint["y"], keypoint["score"]) for keypoint in hand["keypoints"]]
    low, high = ([fold(point[axis] for point in points) for axis in (0, 1)] for fold in (min, max))
    low, high = [max(value, 0.0) for value in low], [min(value, float(side)) for value, side in zip(high, size)]
    width, height = high[0] - low[0], high[1] - low[1]
    inside = sum(0 <= x <= size[0] and 0 <= y <= size[1] for x, y, _ in points)
    if width <= 0 or height <= 0 or 2 * inside < len(points):
        return None
    side = hand["label"].split()[0]
    keypoints = [value for x, y, score in points for value in (round(x, 2), round(y, 2), 2 if score >= SEEN else 1)]
    # Not "track_id": CVAT makes tracks of it, and fills the frames between with hands.
    told = {"handedness": side} | ({"hand_id": hand["id"]} if hand.get("id") is not None else {})
    return {
        **{"category_id": 1 if side == "right" else 2, "iscrowd": 0, "num_keypoints": len(points), "keypoints": keypoints},
        **{"bbox": [round(value, 2) for value in (*low, width, height)], "area": round(width * height, 2)},
        "segmentation": [],  # readers of COCO, as CVAT's, expect it
        **{"handedness": side, "score": round(hand["score"], 4), "attributes": told},
    }
