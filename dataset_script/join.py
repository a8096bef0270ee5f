"""Join folders of labelled squares into one, for `train.py --photographs`.

    python -m dataset_script.join photographs natural --output joined --max_disagreement 0.03 0.05

Each folder is laid out as `dataset_script/photographs.py` says, and so is --output.  Hands with a larger `disagreement` than
their folder's are left out.  Images are copied under a name that has the folder's, and the tables of SOURCES.md are put one
after the other.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from dataset_script.photographs import MAX_DISAGREEMENT, read_photographs


def join(folders: list[Path], limits: list[float], output: Path) -> int:
    """Write the folder `output`; the number of hands.  ValueError or OSError for what cannot be joined, before anything is
    written."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"two folders are called {max(names, key=names.count)}: rename one")
    if output.exists():
        raise ValueError(f"{output} exists: name a new folder")
    whole = {"images": [], "annotations": []}
    copies, sources = [], {}
    for folder, name, limit in zip(folders, names, limits, strict=True):
        kept = {hand["annotation_id"] for hand in read_photographs(folder) if hand["disagreement"] <= limit}
        coco = json.loads((folder / "annotations.json").read_text())
        images = {image["id"]: image for image in coco["images"]}
        numbers = {}
        for hand in coco["annotations"]:
            if str(hand["id"]) not in kept:
                continue
            if hand["image_id"] not in numbers:
                image = images[hand["image_id"]]
                numbers[hand["image_id"]] = len(whole["images"])
                file = f"{name}/{image['file_name']}"
                whole["images"].append({**image, "id": numbers[hand["image_id"]], "file_name": file})
                copies.append((folder / "images" / image["file_name"], file))
            whole["annotations"].append({**hand, "id": len(whole["annotations"]), "image_id": numbers[hand["image_id"]]})
        if whole.setdefault("categories", coco.get("categories", [])) != coco.get("categories", []):
            raise ValueError(f"{folder} has other categories than {folders[0]}: give both the same")
        sources |= {path.read_text(): None for path in (folder.parent / "SOURCES.md", folder / "SOURCES.md") if path.is_file()}
    for source, file in copies:
        target = output / "images" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (output / "annotations.json").write_text(json.dumps(whole) + "\n")
    (output / "SOURCES.md").write_text("\n".join(sources))
    return len(whole["annotations"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--max_disagreement", type=float, nargs="+", default=[MAX_DISAGREEMENT], metavar="SHARE",
                        help="one for all folders, or one for each (default: %(default)s)")  # fmt: skip
    args = parser.parse_args()
    limits = args.max_disagreement * (len(args.folders) if len(args.max_disagreement) == 1 else 1)
    if len(limits) != len(args.folders):
        parser.error(f"--max_disagreement has {len(limits)} values for {len(args.folders)} folders: give one, or one for each")
    try:
        count = join(args.folders, limits, args.output)
    except (OSError, ValueError) as error:
        sys.exit(f"join: {error}")
    print(f"{count} hands of {len(args.folders)} folders are in {args.output}.")
    print(f"Train: train.py --photographs {args.output} --max_disagreement {max(limits):g}")


if __name__ == "__main__":
    main()
