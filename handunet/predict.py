"""Draw the hands of photographs and write their keypoints.

    handunet photo.jpg                                    # one right hand, about half as large as the photograph
    handunet photo.jpg --boxes 120,80,200,180 --left      # a left hand in the box x,y,width,height
    handunet photos 'more/**/*.jpg' --output drawn        # a folder and a pattern
    handunet photo.jpg --model outputs/handunet/model     # a model that train.py wrote; needs torch
    handunet photo.jpg --model model.onnx                 # written by `handunet export`; needs no torch

The folder --output gets each photograph with its skeletons drawn over it, and `keypoints.json`.  That lists the hands of
each photograph as the `keypoint-detection` pipeline gives them: label, score, box, and 21 named keypoints with x, y (pixels
of the upright photograph, x right, y down) and score.  Photographs go through one after another, and each answer is written
before the next one is read.  What cannot be read is named at the end, and the exit status is then 1.
"""

import argparse
import math
import os
import re
import sys
from pathlib import Path

from handunet.backends import choose, load
from handunet.photographs import FORMATS, Answers, drawing_names, find_photographs, shown


def parse_box(text: str) -> list[float]:
    """`x,y,width,height` in pixels."""
    try:
        x, y, width, height = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y,width,height, four numbers in pixels") from None
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a box: width and height must be above 0, all of it finite")
    return [x, y, width, height]


def parse(arguments: list[str], program: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="files, folders, patterns or URLs")
    parser.add_argument("--output", default="predictions", help="folder for the drawings and the keypoints")
    parser.add_argument(
        "--model", help="a folder, an id on the Hub or an ONNX file (default: weights/handunet-base in a clone with torch, "
        "else the small model that comes with the package)"
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=("torch", "onnx"), help="library that runs the network (default: the one that the model needs)"
    )
    parser.add_argument(
        "--boxes", nargs="+", type=parse_box, metavar="X,Y,W,H", help="the hands' boxes, for each photograph the same"
    )
    parser.add_argument("--left", action="store_true", help="the hands are left hands (default: right)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the keypoints (default: json)")
    # argparse takes a box that begins with a minus for an option, but not one that begins with a space.
    args = parser.parse_args([f" {word}" if re.match(r"-[\d.]+(e[+-]?\d+)?,", word) else word for word in arguments])
    try:
        args.backend, args.model = choose(args.model, args.backend)
    except ValueError as error:
        parser.error(str(error))
    return args


def check_output(output: Path, photographs: list[str], names: list[str]) -> None:
    """Raise `ValueError` if the drawings cannot go to `output` or would replace a photograph."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file: name a folder")
    inputs = {os.path.realpath(photograph): photograph for photograph in photographs}
    overwritten = [inputs[path] for path in (os.path.realpath(output / name) for name in names) if path in inputs]
    if overwritten:
        raise ValueError(f"--output {output} would write over {', '.join(overwritten)}: name another folder")


def draw(photo, name: str, hands: list[dict]):
    """The photograph with its hands drawn over it.  Says what was found."""
    from modeling_handunet.drawing import draw_hand
    from modeling_handunet.keypoints import NO_CLEAR_HAND

    for hand in hands:
        points = [(keypoint["x"], keypoint["y"]) for keypoint in hand["keypoints"]]
        scores = [keypoint["score"] for keypoint in hand["keypoints"]]
        clear = hand["score"] >= NO_CLEAR_HAND
        photo = draw_hand(photo, points, scores, label=None if clear else f"no clear {hand['label']}")
        if clear:
            say(f"{name}: {hand['label']}, score {hand['score']:.2f}")
        else:
            say(f"{name}: no clear {hand['label']}, score only {hand['score']:.2f}. Give the hand's box with --boxes.")
    return photo


def say(text: str) -> None:
    """Print a line at once, whatever characters it has."""
    print(shown(text), flush=True)


def predict(args: argparse.Namespace) -> list[str]:
    """Answer all photographs.  Returns a sentence for each that could not be answered.

    Raises `ImportError`, `OSError` or `ValueError` for what makes all of them impossible.
    """
    photographs, problems = find_photographs(args.photos)
    output, names = Path(args.output), drawing_names(photographs)
    check_output(output, photographs, names)
    if not photographs:
        return problems
    detect = load(args.model, args.backend)
    from modeling_handunet.images import load_image

    answers = None
    for photograph, name in zip(photographs, names):
        try:
            photo = load_image(photograph)
            hands = detect(photo, args.boxes, "left" if args.left else "right")
        except (OSError, ValueError, MemoryError) as error:
            text = str(error) or type(error).__name__
            problems.append(text if photograph in text or repr(photograph) in text else f"{photograph}: {text}")
            continue
        if answers is None:
            output.mkdir(parents=True, exist_ok=True)
            answers = Answers(output, args.format)
        draw(photo, name, hands).save(output / name, compress_level=1)  # several times as fast as 6
        answers.add(photograph, hands)
    if answers:
        answers.close()
        say(f"Drawings and {answers.path.name} are in {output}.")
    return problems


def main(arguments: list[str] | None = None, program: str = "predict.py") -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for terminals that lack a character of a file's name
    args = parse(sys.argv[1:] if arguments is None else arguments, program)
    try:
        problems = predict(args)
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{program}: {shown(str(error))}")
    except KeyboardInterrupt:
        sys.exit(130)
    if problems:
        lines = "\n".join(f"  {shown(problem)}" for problem in problems)
        sys.exit(f"{program}: {len(problems)} could not be answered:\n{lines}")
