"""The two ways to run the networks: torch with transformers, or onnxruntime alone.

Both give a [`HandModels`], so that everything behind them is the same.
"""

import ctypes
import importlib.util
import json
import math
import os
import sys
import weakref
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The small model of `weights/handunet` and the detector, exported as they are and in 8 bits. They travel with the package.
OWN_MODELS = {precision: HERE / "models" / precision / "pose.onnx" for precision in ("float32", "int8")}
OWN_MODEL = OWN_MODELS["float32"]
OWN_DETECTOR = OWN_MODEL.with_name("detector.onnx")
# What Linux calls the instructions that multiply 8-bit integers: VNNI, AMX, and Arm's dot product.
EIGHT_BITS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}
# The larger one and its detector, which are in a clone.
CLONE_MODEL, CLONE_DETECTOR = (HERE.parent / "weights" / name for name in ("handunet-base", "handunet-detector"))
BATCH_SIZE = 8  # hands that go through the network together
# By the kind of an exported file, what its graph answers; a pose model with a hand classifier also has "chances".
OUTPUTS = {
    "pose": {"heatmaps", "keypoints", "scores"},
    "detector": {"scores", "labels", "boxes", "directions"},
}
TORCH = "pip install 'handunet[torch]'"


def multiplies_8_bits_fast() -> bool:
    """Whether this processor has instructions for it; only Linux is asked, and elsewhere the answer is no."""
    try:
        return not EIGHT_BITS.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def choose(model: str | None, backend: str | None, precision: str | None = None) -> tuple[str, str]:
    """The backend, "torch" or "onnx", and the model, a folder, an id on the Hub or an ONNX file, from what the user named.

    Without a model: the larger one of a clone where torch is installed, and otherwise the package's own, in "float32" or
    "int8".  By default it is in int8 where that is faster.  Raises `ValueError` if they do not fit, or if torch is needed and
    not installed.
    """
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    if model is None:
        if backend == "onnx" or (backend is None and (precision or not (has_torch and CLONE_MODEL.exists()))):
            return "onnx", str(OWN_MODELS[precision or ("int8" if multiplies_8_bits_fast() else "float32")])
    if precision:
        raise ValueError("--precision is of the model that comes with the package: leave out --model and --backend torch")
    if model is None:
        model = str(CLONE_MODEL)
        if not CLONE_MODEL.exists():
            raise ValueError(f"there is no model in {CLONE_MODEL}: name one with --model")
    exported = next((path for path in (Path(model, "onnx", "model.onnx"), Path(model, "pose.onnx")) if path.is_file()), None)
    if backend is None:
        backend = "onnx" if model.endswith(".onnx") or (not has_torch and exported) else "torch"
    if backend == "torch" and not has_torch:
        raise ValueError(f"--model {model} needs torch: {TORCH}, or give a file that `handunet export` wrote")
    if backend == "onnx" and exported:
        model = str(exported)
    if backend == "onnx" and not Path(model).is_file():
        raise ValueError(f"--model {model} is no file: run `handunet export {model} model.onnx`")
    return backend, model


def load(model: str, backend: str, detector: str | None = None, *, finds: bool = True):
    """The [`HandModels`] of a model and a detector; `OSError`, `ValueError` or `ImportError` for what cannot be used.

    The detector is an ONNX file, or for torch a folder or an id on the Hub.  By default it is the one that came with the
    model, and otherwise the package's own.  Without `finds` it is loaded when it is first asked.
    """
    return (load_onnx if backend == "onnx" else load_torch)(model, detector, finds)


def load_torch(model: str, detector: str | None, finds: bool):
    """Models as transformers loads them, on the accelerator of this process if there is one."""
    from transformers import AutoImageProcessor, AutoModelForPoseEstimation
    from transformers.utils import logging

    from modeling_handunet.torch_hands import TorchHands, load_detector

    logging.disable_progress_bar()
    network = AutoModelForPoseEstimation.from_pretrained(model).eval().to(device())
    processor = AutoImageProcessor.from_pretrained(model)
    if finds:
        try:
            detector = load_detector(network, detector)
        except OSError:
            if detector or not CLONE_DETECTOR.is_dir():
                raise
            detector = load_detector(network, CLONE_DETECTOR)
        detector[0].eval().to(network.device)
    return TorchHands(network, processor, detector)


def load_onnx(model: str, detector: str | None, finds: bool):
    """Files that `handunet export` wrote; imports neither torch nor transformers."""
    leave_out_torch()
    hands = OnnxHands(model, detector)
    if finds:
        hands.load_detector()
    return hands


class OnnxHands:
    """A [`HandModels`] of a pose network and detectors, which are loaded when they are first asked.

    A file looks at a photograph once or twice, as it was exported: in 8 bits once.  So the package's own model in 8 bits has
    the detector in float32 for photographs, and that in 8 bits for films.
    """

    def __init__(self, model: str, detector: str | None = None):
        self.model, self.detector, self._detectors = model, detector, {}
        self.pose = OnnxPose(model)
        self.image_size, self.box_fill, self.keypoint_names = self.pose.image_size, self.pose.box_fill, self.pose.keypoint_names

    def read(self, photo, crops):
        """As `HandModels.read` says."""
        return read_crops(self.pose, photo, crops)

    def detect(self, photo, twice: bool = True):
        """As `HandModels.detect` says."""
        return self.load_detector(twice)(photo)

    def load_detector(self, twice: bool = True):
        """The detector for photographs, or that for films, loaded if it is not; errors as of `load`."""
        if self.detector:
            places = (Path(self.detector),)
        elif twice and Path(self.model) in OWN_MODELS.values():
            places = (OWN_DETECTOR,)
        else:
            places = Path(self.model).with_name("detector.onnx"), OWN_DETECTOR
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise OSError(
                f"There is no hand detector at {places[0]}: name a file that `handunet export` wrote with --detector, or "
                "give the hands' boxes with --boxes."
            )
        if found not in self._detectors:
            self._detectors[found] = OnnxDetector(str(found))
        return self._detectors[found]


def read_crops(network, photo, crops):
    """Keypoints (N, 21, 2) in pixels of the photograph, scores (N, 21) and chances (N, 2) of N crops, a batch at a time."""
    import numpy as np

    from modeling_handunet.crops import normalize_crops

    keypoints, scores, chances = [], [], []
    for first in range(0, len(crops), BATCH_SIZE):
        batch = crops[first : first + BATCH_SIZE]
        pixels = np.stack([np.asarray(crop.cut(photo)) for crop in batch])  # (B, size, size, 3)
        points, confidences, sides = network(normalize_crops(pixels, *network.normalization))
        keypoints += [crop.back(of_crop) for crop, of_crop in zip(batch, points.astype(np.float64))]
        scores += list(confidences)
        chances += list(sides)
    count = len(network.keypoint_names)
    shapes = (-1, count, 2), (-1, count), (-1, 2)
    return tuple(np.asarray(values).reshape(shape) for values, shape in zip((keypoints, scores, chances), shapes))


class OnnxPose:
    """Inputs (B, 3, size, size) to keypoints (B, 21, 2) in pixels of the crop, scores (B, 21) and chances (B, 2), NaN without a
    hand classifier, by onnxruntime."""

    def __init__(self, file: str):
        self.file = file
        self.session, settings = open_onnx(file, "pose")
        self.image_size, self.box_fill = settings["image_size"], settings["box_fill"]
        self.keypoint_names = settings["keypoint_names"]
        self.normalization = normalization_of(settings)
        has_classifier = "chances" in {output.name for output in self.session.get_outputs()}
        self.outputs = ["heatmaps", "keypoints", "scores", *(["chances"] if has_classifier else [])]

    def __call__(self, inputs):
        import numpy as np

        heatmaps, keypoints, scores, *chances = self.session.run(self.outputs, {"pixel_values": inputs})
        if not scores.all() and np.isnan(heatmaps).any():  # a score is 0 where a heatmap holds NaN, else hardly ever
            raise ValueError(f"The network in {self.file} answered NaN: its weights are damaged, export them again.")
        return keypoints, scores, chances[0] if chances else np.full((len(inputs), 2), np.nan)


class OnnxDetector:
    """A photograph to its hands, by onnxruntime."""

    def __init__(self, file: str):
        self.session, settings = open_onnx(file, "detector")
        self.file, self.size, self.normalization = file, settings["image_size"], normalization_of(settings)

    def __call__(self, photo):
        import numpy as np

        from modeling_handunet.crops import Crop, normalize_crops
        from modeling_handunet.hands import found_hands

        pixels = np.asarray(Crop.of_image(*photo.size, self.size).cut(photo))[None]  # (1, size, size, 3)
        inputs = {"pixel_values": normalize_crops(pixels, *self.normalization)}
        names = ["scores", "labels", "boxes", "directions"]
        scores, labels, boxes, directions = (values[0] for values in self.session.run(names, inputs))
        if np.isnan(boxes).any():  # scores of NaN are 0
            raise ValueError(f"The detector in {self.file} answered NaN: its weights are damaged, export them again.")
        # Shares of the letterboxed square to pixels of the photograph.
        corners = Crop.of_image(*photo.size, 1).back(boxes.astype(np.float64).reshape(-1, 2, 2))
        corners = np.clip(corners, 0, photo.size).reshape(-1, 4)
        return found_hands(scores.tolist(), labels.tolist(), corners.tolist(), directions.tolist())


def kind_of(settings: dict) -> str:
    """ "pose" or "detector"; files of older exports do not say."""
    return settings.get("kind", "pose")


def normalization_of(settings: dict) -> tuple:
    """What `normalize_crops` is given after the pixels."""
    return settings["rescale_factor"], settings["image_mean"], settings["image_std"]


def device() -> str:
    """The accelerator that belongs to this process, where several run; "cpu" without one."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def leave_out_torch() -> None:
    """Allow to import single files of `modeling_handunet` without its `__init__`, which imports transformers and torch."""
    if "modeling_handunet" not in sys.modules:
        spec = importlib.util.find_spec("modeling_handunet")
        sys.modules["modeling_handunet"] = importlib.util.module_from_spec(spec)


# The sessions of this process, which a forked one must not free: it would wait for their threads, which it does not have.
_sessions = weakref.WeakSet()


def _keep_sessions() -> None:
    """One reference more than there are: so nothing frees them, not even the end of the process."""
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_sessions)


def open_onnx(model: str, kind: str | None = None):
    """The session and settings of an exported file.

    Raises `OSError` for another file or one of the other `kind`, "pose" or "detector", `ImportError` without onnxruntime.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError as error:
        raise ImportError(f"an ONNX model needs onnxruntime ({error}): pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait leave the cores to others
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        _sessions.add(session)
        settings = json.loads(session.get_modelmeta().custom_metadata_map["handunet"])
        is_kind = check_settings(settings, session)
    except (
        errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile,
        errors.NotImplemented, errors.RuntimeException, KeyError, RecursionError, ValueError,
    ) as error:  # fmt: skip
        raise OSError(f"{model} is no file that `handunet export` wrote: {str(error)[:300]}") from None
    if kind and is_kind != kind:
        raise OSError(f"{model} is a {is_kind} model, and a {kind} model is needed here.")
    return session, settings


def check_settings(settings, session) -> str:
    """The kind of an exported file; `ValueError` unless its settings and its graph are what that kind has."""
    if not isinstance(settings, dict) or kind_of(settings) not in OUTPUTS:
        raise ValueError("its metadata do not say what it is")
    kind = kind_of(settings)
    numbers = [settings.get("rescale_factor"), *(settings.get("box_fill", 0) for _ in range(kind == "pose"))]
    triples = [settings.get("image_mean"), settings.get("image_std")]
    for triple in triples:
        numbers += triple if isinstance(triple, list) and len(triple) == 3 else [None]
    if not all(type(number) in (int, float) and math.isfinite(number) and abs(number) < 1e6 for number in numbers):
        raise ValueError("its metadata do not say how to prepare an image")
    size, names = settings.get("image_size"), settings.get("keypoint_names")
    if type(size) is not int or not 1 <= size <= 4096 or 0 in settings["image_std"]:
        raise ValueError("its metadata do not say how to prepare an image")
    if kind == "pose":
        if not 0 < settings["box_fill"] <= 1:
            raise ValueError(f"its metadata have a box_fill of {settings['box_fill']}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("its metadata do not name the keypoints")
    inputs = {entry.name: entry.shape for entry in session.get_inputs()}
    outputs = {entry.name: entry.shape for entry in session.get_outputs()}
    if list(inputs) != ["pixel_values"] or inputs["pixel_values"][1:] != [3, size, size] or not OUTPUTS[kind] <= outputs.keys():
        raise ValueError(f"its graph is not that of a {kind} model of {size} px")
    if kind == "pose" and outputs["keypoints"][1:] != [len(names), 2]:
        raise ValueError(f"its metadata name {len(names)} keypoints, its graph has {outputs['keypoints'][1:]}")
    return kind
