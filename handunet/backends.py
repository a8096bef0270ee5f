"""The two ways to run the network: torch with transformers' pipeline, or onnxruntime alone."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

# The small model of `weights/handunet`, exported. It travels with the package.
OWN_MODEL = Path(__file__).resolve().parent / "model.onnx"
# The larger one, which is in a clone.
CLONE_MODEL = Path(__file__).resolve().parent.parent / "weights" / "handunet-base"
BATCH_SIZE = 8  # hands that go through the network together
TORCH = "pip install 'handunet[torch]'"

# Answers (photograph, boxes or None, handedness) with the hands as the `keypoint-detection` pipeline gives them.
Detector = Callable[[object, list | None, str], list[dict]]


def choose(model: str | None, backend: str | None) -> tuple[str, str]:
    """The backend, "torch" or "onnx", and the model, a folder, an id on the Hub or an ONNX file, from what the user named.

    Without a model: the larger one of a clone where torch is installed, and otherwise the package's own.  Raises
    `ValueError` if the two do not fit, or if torch is needed and not installed.
    """
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    if model is None:
        if backend == "onnx" or (backend is None and not (has_torch and CLONE_MODEL.exists())):
            return "onnx", str(OWN_MODEL)
        model = str(CLONE_MODEL)
        if not CLONE_MODEL.exists():
            raise ValueError(f"there is no model in {CLONE_MODEL}: name one with --model")
    exported = Path(model, "onnx", "model.onnx")
    if backend is None:
        backend = "onnx" if model.endswith(".onnx") or (not has_torch and exported.is_file()) else "torch"
    if backend == "torch" and not has_torch:
        raise ValueError(f"--model {model} needs torch: {TORCH}, or give a file that `handunet export` wrote")
    if backend == "onnx" and exported.is_file():
        model = str(exported)
    if backend == "onnx" and not Path(model).is_file():
        raise ValueError(f"--model {model} is no file: run `handunet export {model} model.onnx`")
    return backend, model


def load(model: str, backend: str) -> Detector:
    """The detector; `OSError`, `ValueError` or `ImportError` for a model that cannot be used."""
    return load_onnx(model) if backend == "onnx" else load_torch(model)


def load_torch(model: str) -> Detector:
    """A detector by the `keypoint-detection` pipeline."""
    from transformers import pipeline
    from transformers.utils import logging

    import modeling_handunet  # noqa: F401  registers the model, so that no trust_remote_code is needed

    logging.disable_progress_bar()
    pipe = pipeline("keypoint-detection", model=model)

    def detect(photo, boxes: list | None, handedness: str) -> list[dict]:
        return pipe(photo, boxes=boxes, handedness=handedness, batch_size=BATCH_SIZE)

    return detect


def leave_out_torch() -> None:
    """Allow to import single files of `modeling_handunet` without its `__init__`, which imports transformers and torch."""
    if "modeling_handunet" not in sys.modules:
        spec = importlib.util.find_spec("modeling_handunet")
        sys.modules["modeling_handunet"] = importlib.util.module_from_spec(spec)


def load_onnx(model: str) -> Detector:
    """A detector from a file that `handunet export` wrote; imports neither torch nor transformers."""
    import numpy as np

    leave_out_torch()
    from modeling_handunet.crops import Crop, check_box, normalize_crops
    from modeling_handunet.keypoints import describe_hand

    session, settings = open_onnx(model)
    size = settings["image_size"]

    def detect(photo, boxes: list | None, handedness: str) -> list[dict]:
        mirrored = handedness == "left"
        placed = []  # of each hand: its crop, the corners of its box
        for box in [(0, 0, *photo.size)] if boxes is None else boxes:
            check_box(box, *photo.size)
            if boxes is None:
                crop = Crop.of_image(*photo.size, size, mirrored=mirrored)
            else:
                crop = Crop.around_box(box, size, settings["box_fill"], mirrored=mirrored)
            x, y, width, height = map(float, box)
            placed.append((crop, (x, y, x + width, y + height)))
        hands = []
        for first in range(0, len(placed), BATCH_SIZE):
            batch = placed[first : first + BATCH_SIZE]
            pixels = np.stack([np.asarray(crop.cut(photo)) for crop, _ in batch])  # (B, size, size, 3)
            inputs = normalize_crops(pixels, settings["rescale_factor"], settings["image_mean"], settings["image_std"])
            heatmaps, keypoints, scores = session.run(["heatmaps", "keypoints", "scores"], {"pixel_values": inputs})
            if not scores.all() and np.isnan(heatmaps).any():  # a score is 0 where a heatmap holds NaN, else hardly ever
                raise ValueError(f"The network in {model} answered NaN: its weights are damaged, export them again.")
            for (crop, corners), points, confidences in zip(batch, keypoints.astype(np.float64), scores):
                points = crop.back(points).astype(np.float32).tolist()
                hands.append(describe_hand(handedness, corners, settings["keypoint_names"], points, confidences.tolist()))
        return hands

    return detect


def open_onnx(model: str, options=None):
    """The session and settings of an exported file; `OSError` for another file, `ImportError` without onnxruntime."""
    try:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile
    except ImportError as error:
        raise ImportError(f"an ONNX model needs onnxruntime ({error}): pip install onnxruntime") from None
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return session, json.loads(session.get_modelmeta().custom_metadata_map["handunet"])
    except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile, KeyError, ValueError) as error:
        raise OSError(f"{model} is no file that `handunet export` wrote: {error}") from None
