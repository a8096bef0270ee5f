"""Draw the hands of photographs and write their keypoints.

    python predict.py photo.jpg                                    # one right hand, about half as large as the photograph
    python predict.py photo.jpg --boxes 120,80,200,180 --left      # a left hand in the box x,y,width,height
    python predict.py a.jpg b.jpg --output drawn --model outputs/handunet/model
    python predict.py photo.jpg --backend onnx --model model.onnx  # written by scripts/export_onnx.py; needs no torch

The folder --output gets each photograph with its skeletons drawn over it, and `keypoints.json`.  That lists the hands of
each photograph as the `keypoint-detection` pipeline gives them: label, score, box, and 21 named keypoints with x, y (pixels
of the upright photograph, x right, y down) and score.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

DEFAULT_MODEL = str(Path(__file__).resolve().parent / "weights" / "handunet-base")
BATCH_SIZE = 8  # hands that go through the network together


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


def predict_with_torch(model: str, photos: list, boxes: list | None, handedness: str) -> list[list[dict]]:
    """The hands of each photograph, as the pipeline gives them; each photograph has the same `boxes`."""
    from transformers import pipeline
    from transformers.utils import logging

    import modeling_handunet  # noqa: F401  registers the model, so that no trust_remote_code is needed

    logging.disable_progress_bar()
    pipe = pipeline("keypoint-detection", model=model)
    boxes = None if boxes is None else [boxes] * len(photos)
    return pipe(photos, boxes=boxes, handedness=handedness, batch_size=BATCH_SIZE)


def leave_out_torch() -> None:
    """Allow to import single files of the package without its `__init__`, which imports transformers and torch."""
    if "modeling_handunet" not in sys.modules:
        spec = importlib.util.find_spec("modeling_handunet")
        sys.modules["modeling_handunet"] = importlib.util.module_from_spec(spec)


def predict_with_onnx(model: str, photos: list, boxes: list | None, handedness: str) -> list[list[dict]]:
    """As `predict_with_torch`, from a file that scripts/export_onnx.py wrote."""
    import numpy as np

    from modeling_handunet.crops import Crop, check_box, normalize_crops
    from modeling_handunet.keypoints import describe_hand

    session, settings = open_onnx(model)
    size, mirrored = settings["image_size"], handedness == "left"
    hands = []  # of all photographs: the pixels of its crop, the crop, the corners of its box
    for photo in photos:
        for box in [(0, 0, *photo.size)] if boxes is None else boxes:
            check_box(box, *photo.size)
            if boxes is None:
                crop = Crop.of_image(*photo.size, size, mirrored=mirrored)
            else:
                crop = Crop.around_box(box, size, settings["box_fill"], mirrored=mirrored)
            x, y, width, height = map(float, box)
            hands.append((np.asarray(crop.cut(photo)), crop, (x, y, x + width, y + height)))
    answers = []
    for first in range(0, len(hands), BATCH_SIZE):
        batch = hands[first : first + BATCH_SIZE]
        pixels = np.stack([pixels for pixels, _, _ in batch])  # (B, size, size, 3)
        inputs = normalize_crops(pixels, settings["rescale_factor"], settings["image_mean"], settings["image_std"])
        keypoints, scores = session.run(["keypoints", "scores"], {"pixel_values": inputs})
        for points, confidences, (_, crop, corners) in zip(keypoints.astype(np.float64), scores, batch):
            points = crop.back(points).astype(np.float32).tolist()
            answers.append(describe_hand(handedness, corners, settings["keypoint_names"], points, confidences.tolist()))
    count = len(answers) // len(photos)
    return [answers[index * count : (index + 1) * count] for index in range(len(photos))]


def open_onnx(model: str, options=None):
    """The session and settings of an exported file; `OSError` for another file, `ImportError` without onnxruntime."""
    try:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile
    except ImportError as error:
        raise ImportError(f"--backend onnx needs onnxruntime ({error}): pip install onnxruntime") from None
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return session, json.loads(session.get_modelmeta().custom_metadata_map["handunet"])
    except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile, KeyError, ValueError) as error:
        raise OSError(f"{model} is no file that `python -m scripts.export_onnx` wrote: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="files or URLs")
    parser.add_argument("--output", default="predictions", help="folder for the drawings and keypoints.json")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a folder, an id on the Hub or an ONNX file (default: weights/handunet-base)"
    )
    parser.add_argument(
        "--backend", choices=("torch", "onnx"), default="torch", help="library that runs the network (default: torch)"
    )
    parser.add_argument(
        "--boxes", nargs="+", type=parse_box, metavar="X,Y,W,H", help="the hands' boxes, for each photograph the same"
    )
    parser.add_argument("--left", action="store_true", help="the hands are left hands (default: right)")
    args = parser.parse_args()
    if args.model == DEFAULT_MODEL and not Path(args.model).exists():
        parser.error(f"there is no model in {DEFAULT_MODEL}: name one with --model")
    predict = predict_with_torch
    if args.backend == "onnx":
        if not Path(args.model).is_file():
            parser.error(f"--model {args.model} is no file: run `python -m scripts.export_onnx {args.model} model.onnx`")
        leave_out_torch()
        predict = predict_with_onnx
    from modeling_handunet.drawing import draw_hand
    from modeling_handunet.images import load_image

    output, names = Path(args.output), output_names(args.photos)
    try:
        photos = [load_image(photo) for photo in args.photos]
        if output.exists() and not output.is_dir():
            raise ValueError(f"--output {output} is a file: name a folder")
        inputs = {Path(photo).resolve(): photo for photo in args.photos}
        overwritten = [inputs[path] for path in ((output / name).resolve() for name in names) if path in inputs]
        if overwritten:
            raise ValueError(f"--output {output} would write over {', '.join(overwritten)}: name another folder")
        results = predict(args.model, photos, args.boxes, "left" if args.left else "right")
        output.mkdir(parents=True, exist_ok=True)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"predict.py: {error}")
    for photo, name, hands in zip(photos, names, results):
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
