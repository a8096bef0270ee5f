"""Draw the hands of photographs and write their keypoints.

    python predict.py photo.jpg                                    # one right hand that fills about half the picture
    python predict.py photo.jpg --boxes 120,80,200,180 --left      # a left hand in the box x,y,width,height
    python predict.py a.jpg b.jpg --output drawn --model outputs/handunet/model

Each photograph is written with its skeletons to --output, and `keypoints.json` there lists, for each photograph, its
hands as the `keypoint-detection` pipeline gives them: label, score, box, and 21 named keypoints with x, y (pixels of the
upright photograph, x right, y down) and score.
"""

import argparse
import json
import sys
from pathlib import Path

from transformers import pipeline
from transformers.utils import logging

import modeling_handunet  # noqa: F401  registers the model, so that no trust_remote_code is needed
from modeling_handunet import draw_hand
from modeling_handunet.crops import load_image

DEFAULT_MODEL = "outputs/handunet/model"


def parse_box(text: str) -> list[float]:
    """`x,y,width,height` in pixels."""
    try:
        x, y, width, height = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y,width,height, four numbers in pixels") from None
    return [x, y, width, height]


def output_names(photos: list[str]) -> list[str]:
    """One file name for each photograph; photographs of the same name get a number."""
    names, taken = [], set()
    for photo in photos:
        stem = Path(photo.split("?")[0]).stem or "photo"
        name, number = f"{stem}.png", 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}.png"
        taken.add(name)
        names.append(name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="files or URLs")
    parser.add_argument("--output", default="predictions", help="folder for the drawings and keypoints.json")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"a folder or an id on the Hub (default: {DEFAULT_MODEL})")
    parser.add_argument(
        "--boxes", nargs="+", type=parse_box, metavar="X,Y,W,H", help="the hands' boxes, the same in every photograph"
    )
    parser.add_argument("--left", action="store_true", help="left hands; right by default")
    args = parser.parse_args()
    logging.disable_progress_bar()
    if args.model == DEFAULT_MODEL and not Path(args.model).exists():
        parser.error(f"there is no model in {DEFAULT_MODEL} yet: run `accelerate launch train.py`, or name one with --model")
    try:
        pipe = pipeline("keypoint-detection", model=args.model)
        photos = [load_image(photo) for photo in args.photos]
        results = pipe(
            photos,
            boxes=None if args.boxes is None else [args.boxes] * len(photos),
            handedness="left" if args.left else "right",
            batch_size=8,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"predict.py: {error}")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for photo, name, hands in zip(photos, output_names(args.photos), results):
        for hand in hands:
            points = [(keypoint["x"], keypoint["y"]) for keypoint in hand["keypoints"]]
            photo = draw_hand(photo, points, [keypoint["score"] for keypoint in hand["keypoints"]])
            print(f"{name}: {hand['label']}, score {hand['score']:.2f}")
        photo.save(output / name)
    answers = [{"photo": photo, "hands": hands} for photo, hands in zip(args.photos, results)]
    (output / "keypoints.json").write_text(json.dumps(answers, indent=2) + "\n")
    print(f"Drawings and keypoints.json are in {output}.")


if __name__ == "__main__":
    main()
