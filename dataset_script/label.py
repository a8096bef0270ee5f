"""Label photographs of hands with a teacher that looks at each hand several times, and write them as a COCO file.

    python -m dataset_script.label PHOTOS --output labelled              # whole photographs, for train.py --annotations
    python -m dataset_script.label PHOTOS --output labelled --squares    # small squares, for train.py --photographs
    python -m dataset_script.label PHOTOS --teacher handunet --model weights/handunet-base --boxes boxes.json

PHOTOS are photographs and folders.  The teacher first looks for hands in the whole photograph, then at crops round each.
A hand's keypoints are the median of the looks that agree.  A hand is left out if fewer than three looks show it, or if under
60 % of them agree.
`--boxes` is a COCO file whose annotations need only `bbox` (and may have `handedness`): no hands are searched for then.  Those
with a true `ignore` are left out.
HandUNet does not search: without boxes it takes each photograph for one hand.  It reads a hand as the side that is given.

The folder --output gets `annotations.json`; `report.json`, which names what was left out and why; `images/` with
`--squares`; and `looks.jsonl`, a line for each photograph that is done, with which the same command goes on after a stop.
Each folder in PHOTOS is a source, except where the images of `--boxes` have a `source`.  Whole sources are held out for
validation, or whole photographs if there are under four.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset_script.files import MAX_JSON_BYTES, FileTree, parse_json
from dataset_script.photographs import FILL, SIDE
from dataset_script.teachers import ENVIRONMENT, HandUNet, Look, MediaPipe
from modeling_handunet.crops import Crop, check_box
from modeling_handunet.images import load_image
from modeling_handunet.keypoints import KEYPOINT_NAMES
from modeling_handunet.nesting import HANDEDNESS

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff"}
LONGEST, CROP_SIZE = 640, 256  # px of the teacher's pictures: at most of the first looks; of a crop round a hand
TILES = {0.6: 2, 0.36: 3}  # share of each side: tiles a side, of photographs over 640 px
SAME_HAND = 0.35  # of the box's longer side: how far apart the middles of two looks at one hand may be
MIN_LOOKS = 3
SAME_LOOK = 0.1  # of the box's longer side: looks agree if their keypoints are, on average, so near those of one of them
MIN_AGREEING = 0.6  # share of the looks
MIN_SOURCES = 4  # to hold out whole ones: validation and test need one each

Teacher = Callable[[Image.Image], list[Look]]


def box_of(keypoints: np.ndarray) -> tuple[float, float, float, float]:
    """The box (x, y, width, height) of keypoints (21, 2)."""
    low, high = keypoints.min(0), keypoints.max(0)
    return (*low.tolist(), *(high - low).tolist())


def is_inside(points: np.ndarray, size) -> np.ndarray:
    """Which of the points (N, 2) are in a picture of this (width, height)."""
    return ((points >= 0) & (points < size)).all(1)


def is_same_hand(box, other) -> bool:
    """Whether the middles of two boxes are less than `SAME_HAND` of the first one's longer side apart."""
    middles = [np.array([x + width / 2, y + height / 2]) for x, y, width, height in (box, other)]
    return bool(np.linalg.norm(middles[0] - middles[1]) < SAME_HAND * max(box[2:]))


def look_at(picture: Image.Image, crop: Crop, teacher: Teacher, **known) -> list[Look]:
    """What the teacher finds in a crop, in pixels of the picture.  A hand in a mirrored crop is the other hand."""
    looks = teacher(crop.cut(picture), **known)
    return [Look(crop.back(points), 1 - right if crop.mirrored else right) for points, right in looks]


def first_views(width: int, height: int) -> Iterator[Crop]:
    """The whole picture, and of one over 640 px overlapping tiles, too."""
    longer = max(width, height)
    yield Crop.of_image(width, height, min(longer, LONGEST))
    for share, count in TILES.items() if longer > LONGEST else ():
        side, places = share * longer, np.linspace(share / 2, 1 - share / 2, count)
        for x, y in ((x * width, y * height) for y in places for x in places):
            yield Crop((x - side / 2, y - side / 2, side), min(round(side), LONGEST))


def find_hands(picture: Image.Image, teacher: Teacher) -> list[list[Look]]:
    """The first looks at each hand of a picture."""
    looks = [look for crop in first_views(*picture.size) for look in look_at(picture, crop, teacher)]
    if not looks:  # MediaPipe finds a hand that fills the picture only from further away
        width, height = picture.size
        wide = Image.new("RGB", (2 * width, 2 * height), (128, 128, 128))
        wide.paste(picture, (width // 2, height // 2))
        crop = Crop.of_image(*wide.size, min(max(wide.size), LONGEST))
        looks = [Look(points - (width // 2, height // 2), right) for points, right in look_at(wide, crop, teacher)]
    hands: list[list[Look]] = []
    for look in looks:
        box = box_of(look.keypoints)
        for hand in hands:
            if is_same_hand(box_of(hand[0].keypoints), box):
                hand.append(look)
                break
        else:
            hands.append([look])
    return hands


def look_round(picture: Image.Image, box, teacher, crops, handedness: str | None = None) -> list[Look]:
    """At most one look from each of `crops` (fill, degrees, mirrored) round a box; looks at another hand are left out."""
    looks, known = [], {} if handedness is None or teacher.detects else {"side": handedness}
    for fill, angle, mirrored in crops:
        crop = Crop.around_box(box, CROP_SIZE, fill, mirrored=mirrored, angle=angle)
        same = [look for look in look_at(picture, crop, teacher, **known) if is_same_hand(box, box_of(look.keypoints))]
        looks += same[:1]
    return looks


def agreeing(looks: list[Look]) -> list[Look]:
    """The largest group of looks that agree with one of them; all if that is too small, so that they disagree."""
    points = np.stack([look.keypoints for look in looks])  # (L, 21, 2)
    distances = np.linalg.norm(points[:, None] - points, axis=3).mean(2)  # (L, L)
    sizes = np.ptp(points, axis=1).max(1)
    is_near = distances <= SAME_LOOK * sizes[:, None]
    group = is_near[is_near.sum(1).argmax()]
    enough = max(MIN_LOOKS, MIN_AGREEING * len(looks))
    return [look for look, is_in in zip(looks, group) if is_in] if group.sum() >= enough else looks


def consensus(looks: list[Look]) -> dict:
    """Of the looks that agree: `keypoints` (21, 2), the median; `disagreement`, the mean distance from it over its box's longer
    side; `handedness` by the mean probability, and `handedness_agreement`, that mean; `looks`, their number."""
    looks = agreeing(looks)
    points = np.stack([look.keypoints for look in looks])  # (L, 21, 2)
    median, right = np.median(points, 0), float(np.mean([look.right for look in looks]))
    distance = np.linalg.norm(points - median, axis=2).mean()
    return {
        "keypoints": np.round(median, 2).tolist(),
        "handedness": "right" if right >= 0.5 else "left",
        "handedness_agreement": round(max(right, 1 - right), 3),
        "looks": len(looks),
        "disagreement": round(float(distance / max(*box_of(median)[2:], 1e-6)), 4),
    }


def label(picture: Image.Image, teacher, given: list | None, max_disagreement: float) -> tuple[list[dict], list[str]]:
    """The hands of a picture as [`consensus`] gives them, and why others were left out.

    given: (box, handedness or None) of each hand; None to search for hands.
    """
    if given is None:
        found = find_hands(picture, teacher)
        hands = [(box_of(looks[0].keypoints), None, looks if teacher.detects else []) for looks in found]
    else:
        hands = [(box, handedness, []) for box, handedness in given]
    crops = teacher.crops if given is None else teacher.box_crops
    labelled, left_out = [], [] if hands else ["no hand was found" if given is None else "no box was given"]
    for box, handedness, looks in hands:
        looks = [*looks, *look_round(picture, box, teacher, crops, handedness)] if max(box[2:]) >= 1 else []
        if len(looks) < MIN_LOOKS:
            left_out.append(f"fewer than {MIN_LOOKS} looks show the hand")
            continue
        hand = consensus(looks)
        points = np.array(hand["keypoints"])
        if hand["disagreement"] >= max_disagreement:
            left_out.append(f"the looks disagree by {max_disagreement:g} or more")
        elif not is_inside(points, picture.size).any():
            left_out.append("all keypoints are outside the photograph")
        elif any(is_same_hand(box_of(np.array(other["keypoints"])), box_of(points)) for other in labelled):
            left_out.append("the same hand was found twice")
        else:
            labelled.append(hand | ({"handedness": handedness, "handedness_agreement": 1.0} if handedness else {}))
    return labelled, left_out


def held_out(names: Iterable[str], share: float) -> set[str]:
    """`share` of the names (at least two, and never all), those with the lowest hashes."""
    names = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(names[: min(max(2, round(share * len(names))), len(names) - 1)]) if share else set()


def square_of(hand: dict) -> Crop:
    """The square of 224 px with the hand in its middle."""
    return Crop.around_box(box_of(np.array(hand["keypoints"])), SIDE, FILL)


def square_name(picture: str, number: int) -> str:
    return f"{picture.replace('/', '+')}_{number}.webp"


def to_coco(records: list[dict], squares: bool, share: float, teacher: str) -> dict:
    """The COCO file of all photographs' records; one image for each hand with `squares`, for each photograph without."""
    records = [record for record in records if record["hands"]]
    unit = "source" if len({record["source"] for record in records}) >= MIN_SOURCES else "picture"
    validation = held_out((record[unit] for record in records), share)
    images, annotations = [], []
    for record in records:
        split = "validation" if record[unit] in validation else "train"
        about = {"source": record["source"], "picture": record["picture"], "split": split}
        for number, hand in enumerate(record["hands"]):
            name, size, points = record["picture"], record["size"], np.array(hand["keypoints"])
            inside = is_inside(points, size)
            if squares:
                name, size, points = square_name(name, number), [SIDE, SIDE], square_of(hand).to(points)
            if squares or not number:
                images.append({"id": len(images), "file_name": name, "width": size[0], "height": size[1], **about})
            annotations.append({
                **hand, "id": len(annotations), "image_id": images[-1]["id"], "category_id": 1,
                "bbox": np.round(box_of(points), 2).tolist(), "num_keypoints": int(inside.sum()), "label": "teacher",
                "keypoints": np.round(np.c_[points, 2.0 * inside], 2).reshape(-1).tolist(),
            })  # fmt: skip
    categories = [{"id": 1, "name": "hand", "keypoints": [*KEYPOINT_NAMES]}]
    info = {"description": f"Keypoints by a teacher: {teacher}, the median of several looks at each hand."}
    return {"info": info, "images": images, "categories": categories, "annotations": annotations}


def read_boxes(path: Path) -> tuple[dict[str, list[tuple]], dict[str, str]]:
    """By the photograph's file name, (box, handedness or None) of each hand, and the photograph's `source` where it has one;
    ValueError for anything else than COCO boxes."""
    coco, boxes = parse_json(FileTree(path.parent).read(path.name, MAX_JSON_BYTES), str(path)), {}
    try:
        images = {entry["id"]: entry for entry in coco["images"]}
        for entry in coco["annotations"]:
            if entry.get("ignore"):
                continue
            image, handedness = images[entry["image_id"]], entry.get("handedness")
            if handedness not in (None, *HANDEDNESS):
                raise ValueError(f"annotation {entry['id']} has handedness {handedness!r}, expected 'right' or 'left'")
            check_box(entry["bbox"], image["width"], image["height"])
            boxes.setdefault(image["file_name"], []).append((tuple(map(float, entry["bbox"])), handedness))
        sources = {entry["file_name"]: str(entry["source"]) for entry in images.values() if entry.get("source")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a COCO file with boxes: {error!r}") from None
    return boxes, sources


def photographs_in(places: list[Path], output: Path) -> tuple[Path, list[Path]]:
    """The folder that holds all of them, and the photographs, without those in `output`; errors name a missing place."""
    places = [place.resolve() for place in places]
    if missing := [place for place in places if not place.exists()]:
        raise FileNotFoundError(f"{missing[0]} does not exist: name photographs and folders of photographs")
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    files = [file for file in dict.fromkeys(files) if file.suffix.lower() in SUFFIXES and output.resolve() not in file.parents]
    if not files:
        raise FileNotFoundError(f"{places[0]} has no photograph: expected files that end in {', '.join(sorted(SUFFIXES))}")
    folder = os.path.commonpath([place if place.is_dir() else place.parent for place in places])
    return Path(folder), files


def done_before(log: Path, settings: dict) -> list[dict]:
    """The records of a stopped run; a line that was not written whole is removed.  ValueError for other settings."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    lines = [line for line in lines if line.endswith("\n")] or [json.dumps(settings) + "\n"]
    begun_with, *records = map(json.loads, lines)
    if begun_with != settings:
        raise ValueError(f"{log.parent} was begun with {begun_with}, not {settings}: give the same options or another --output")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(lines))
    return records


def run(
    places: list[Path], output: Path, teacher, *, boxes=None, sources=None, squares=False, max_disagreement=0.05, share=0.1
) -> dict:
    """Label all photographs, or go on with it, and write the files; the report."""
    folder, files = photographs_in(places, output)
    log = output / "looks.jsonl"
    given = boxes and hashlib.sha256(json.dumps(boxes, sort_keys=True).encode()).hexdigest()[:16]
    settings = {"teacher": teacher.sentence, "folder": str(folder), "boxes": given, "squares": squares}
    records = done_before(log, {**settings, "max_disagreement": max_disagreement})
    done = {record["picture"] for record in records}
    if squares:
        (output / "images").mkdir(exist_ok=True)
    with open(log, "a") as file:
        for path in tqdm(files, disable=None, unit=" photographs"):
            name = path.relative_to(folder)
            if name.as_posix() in done:
                continue
            source = name.parts[0] if len(name.parts) > 1 else folder.name
            record = {"picture": name.as_posix(), "source": (sources or {}).get(name.as_posix(), source)}
            try:
                picture = load_image(path)
            except (OSError, ValueError) as error:
                tqdm.write(f"{error}", file=sys.stderr)
                record |= {"hands": [], "left_out": ["the file cannot be read"]}
            else:
                given = None if boxes is None else boxes.get(record["picture"], [])
                hands, left_out = label(picture, teacher, given, max_disagreement)
                record |= {"size": picture.size, "hands": hands, "left_out": left_out}
                for number, hand in enumerate(hands if squares else ()):
                    square_of(hand).cut(picture).save(output / "images" / square_name(record["picture"], number), quality=90)
            file.write(json.dumps(record) + "\n")
            file.flush()
            records.append(record)
    coco = to_coco(records, squares, share, teacher.sentence)
    report = {"photographs": len(records), "folder": str(folder), "hands": len(coco["annotations"]), "left_out": {}}
    for reason, picture in ((reason, record["picture"]) for record in records for reason in record["left_out"]):
        report["left_out"].setdefault(reason, []).append(picture)
    for name, content in (("annotations", coco), ("report", report)):
        (output / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTOS", help="photographs and folders of photographs")
    parser.add_argument("--output", type=Path, default=Path("labelled"), help="folder for the results (default: labelled)")
    parser.add_argument("--teacher", choices=("mediapipe", "handunet"), default="mediapipe")
    parser.add_argument("--model", default="weights/handunet-base", help="of --teacher handunet")
    parser.add_argument("--boxes", type=Path, help="a COCO file with the hands' boxes, instead of a search for hands")
    parser.add_argument("--squares", action="store_true", help=f"write squares of {SIDE} px that a hand fills by {FILL}")
    parser.add_argument("--max_disagreement", type=float, default=0.05, help="over the hand's box (default: 0.05)")
    parser.add_argument("--validation_share", type=float, default=0.1, help="of sources or photographs (default: 0.1)")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="gets MediaPipe, if it is not installed here")
    args = parser.parse_args()
    try:
        boxes, sources = read_boxes(args.boxes) if args.boxes else (None, {})
        teacher = MediaPipe(args.environment) if args.teacher == "mediapipe" else HandUNet(args.model)
        options = {"squares": args.squares, "max_disagreement": args.max_disagreement, "share": args.validation_share}
        report = run(args.photos, args.output, teacher, boxes=boxes, sources=sources, **options)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"label: {error}")
    print(f"{report['hands']} hands of {report['photographs']} photographs are in {args.output / 'annotations.json'}.")
    for reason, pictures in report["left_out"].items():
        print(f"Left out {len(pictures)} times, because {reason}: {', '.join(pictures[:3])}{' ...' * (len(pictures) > 3)}")
    images = f"--photographs {args.output}" if args.squares else f"--annotations {args.output}/annotations.json --images "
    print(f"Train: train.py {images}{'' if args.squares else report['folder']}")


if __name__ == "__main__":
    main()
