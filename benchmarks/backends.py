"""Accuracy, time and size of a model on each backend, beside each other; writes the table of docs/backends.md.

    python -m benchmarks.backends --photographs ../shared/data/photographs        # the shipped models: half an hour
    python -m benchmarks.backends --photographs FOLDER --models weights/handunet  # this one; the others' rows stay
    python -m benchmarks.backends --print                                         # what docs/backends.json has

FOLDER has annotations.json (COCO, each photograph with its `split` and `source`) and images/.  Photographs of the split
"train" calibrate the files in 8 bits; those of "validation" are read.  A pose model's figure is the mean error over the longer
side of the box, a detector's the share of the marked hands that it finds, both as the mean over sources.

The backends run in turns in one process with one thread, one hand or photograph a call, decoder included.  A time is the median
of seconds of processor time, so that other work on the machine changes all alike.  OpenVINO has rows if it is installed.
"""

import argparse
import copy
import importlib
import importlib.util
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import ROOT, describe_machine
from handunet import graphs
from handunet.export import export, load
from handunet.quantization import cut, normalized, photographs, quantize
from modeling_handunet.hands import DETECTION_THRESHOLD, overlap
from release.card import fill_block

MODELS = ("weights/handunet", "weights/handunet-base", "weights/handunet-detector")
FOUND_IOU = 0.5
BLOCK = 16  # hands that one backend reads before the next one's turn
# From normalised pixels (1, 3, size, size) to the answers of an exported graph, by name.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def samples(folder: Path, settings: dict, every: int) -> Iterator[tuple[np.ndarray, str, Callable[[dict], float]]]:
    """Of each hand or photograph of the split "validation": the network's input, the source, and what judges an answer."""
    boxes = defaultdict(list)
    for hand in json.loads((folder / "annotations.json").read_text())["annotations"]:
        boxes[hand["image_id"]].append(hand["bbox"])
    marked = [pair for pair in photographs(folder, settings, "validation") if pair[0]["id"] in boxes]
    for image, hand in marked[::every]:
        crop, pixels = cut(folder, image, hand, settings)
        judge = partial(error_over_box, crop, hand) if hand else partial(share_found, crop, boxes[image["id"]])
        yield normalized([pixels], settings), image["source"], judge


def error_over_box(crop, hand: dict, answer: dict) -> float:
    """Mean distance of the marked keypoints over the longer side of the hand's box."""
    truth = np.reshape(hand["keypoints"], (-1, 3))
    distances = np.linalg.norm(crop.back(answer["keypoints"][0].astype(float)) - truth[:, :2], axis=1)
    return distances[truth[:, 2] > 0].mean() / max(hand["bbox"][2:])


def share_found(crop, boxes: list, answer: dict) -> float:
    """The share of hands with these boxes (x, y, width, height) that a detected box overlaps by `FOUND_IOU`."""
    sure = answer["boxes"][0][answer["scores"][0] >= DETECTION_THRESHOLD].astype(float)
    found = crop.back(sure.reshape(-1, 2, 2) * crop.size).reshape(-1, 4)
    truths = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    return float(np.mean([any(overlap(truth, box) >= FOUND_IOU for box in found) for truth in truths]))


def backends(name: str, folder: Path, calibration: Path) -> tuple[dict, dict[str, tuple[Run, int]]]:
    """The settings of the model, and each backend with the bytes of its file.  A detector looks once in all of them."""
    model, processor = load(name)
    settings, graph = graphs.settings_of(model, processor), graphs.graph_of(model, processor, twice=False)
    files = {"float32": folder / "model.onnx", "8 bits": folder / "model_8bit.onnx"}
    export(model, processor, files["float32"], twice=False)
    quantize(files["float32"], files["8 bits"], calibration)
    weights = sum(path.stat().st_size for path in Path(name).glob("*.safetensors"))
    ways = {
        "torch, float32": (run_torch(graph, torch.float32), weights),
        "torch, bf16": (run_torch(graph, torch.bfloat16), weights // 2),
        "torch, float32, compiled": (run_torch(graph, torch.float32, compiled=True), weights),
        "torch, bf16, compiled": (run_torch(graph, torch.bfloat16, compiled=True), weights // 2),
    }
    runs = {"onnxruntime": run_onnx} | ({"OpenVINO": run_openvino} if importlib.util.find_spec("openvino") else {})
    for library, make in runs.items():
        for bits, file in files.items():
            ways[f"{library}, {bits}"] = make(file, graph.outputs), file.stat().st_size
    return settings, ways


def run_torch(graph, dtype: torch.dtype, compiled: bool = False) -> Run:
    model = copy.deepcopy(graph.model).to(dtype)
    if compiled:
        model.compile()
    maps = ("heatmaps",) if graph.kind == "pose" else ("centres", "boxes", "directions")
    names = ("keypoints", "scores") if graph.kind == "pose" else graph.outputs

    @torch.inference_mode()
    def run(inputs: np.ndarray) -> dict[str, np.ndarray]:
        outputs = model(torch.from_numpy(inputs).to(dtype))
        answers = graph.decode(*(outputs[part].float().contiguous() for part in maps))
        return {name: value.numpy() for name, value in zip(names, answers)}

    return run


def run_onnx(file: Path, names: tuple[str, ...]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda inputs: dict(zip(names, session.run(names, {"pixel_values": inputs})))


def run_openvino(file: Path, names: tuple[str, ...]) -> Run:
    openvino = importlib.import_module("openvino")  # no dependency: its rows are there if it is
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(file, "CPU", options)
    return lambda inputs: {name: model([inputs])[name] for name in names}


def measure(name: str, folder: Path, every: int) -> dict[str, dict]:
    """By backend: `figure`, `time` in seconds, `bytes`, and how many hands or photographs were read."""
    with tempfile.TemporaryDirectory() as temporary:
        settings, ways = backends(name, Path(temporary), folder)
        marks, times = {way: defaultdict(list) for way in ways}, {way: [] for way in ways}
        rest = samples(folder, settings, every)
        while block := list(islice(rest, BLOCK)):
            for way, (run, _) in ways.items():
                run(block[0][0])  # the first call compiles, and the caches are filled
                for inputs, source, judge in block:
                    begin = time.process_time()
                    answer = run(inputs)
                    times[way].append(time.process_time() - begin)
                    marks[way][source].append(judge(answer))
    return {
        way: {
            "figure": float(np.mean([np.mean(values) for values in marks[way].values()])),
            "time": float(np.median(times[way])),
            "bytes": size,
            "count": len(times[way]),
        }
        for way, (_, size) in ways.items()
    }


def table(results: dict) -> str:
    """The figures as Markdown."""
    lines = ["| model | backend | error / box, or hands found | time | | size |", "|---|---|---|---|---|---|"]
    for name, rows in results["models"].items():
        first = next(iter(rows.values()))
        for way, row in rows.items():
            figure, faster = f"{row['figure']:.4f}", first["time"] / row["time"]
            what = f"`{name}` ({row['count']})" if row is first else ""
            size = f"{row['bytes'] / 1e6:.1f} MB"
            lines.append(f"| {what} | {way} | {figure} | {row['time'] * 1e3:.1f} ms | {faster:.2g} x | {size} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder with annotations.json and images/")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--every", type=int, default=1, help="read every so-manieth hand or photograph only")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "backends.json", help="and the .md beside it")
    parser.add_argument("--print", action="store_true", help="print the table in --output and end")
    args = parser.parse_args()
    results = json.loads(args.output.read_text()) if args.output.exists() else {"models": {}}
    if not args.print:
        if args.photographs is None:
            parser.error("name the folder of --photographs")
        torch.set_num_threads(1)
        results["machine"] = describe_machine(1)
        for name in args.models:
            results["models"][Path(name).name] = measure(name, args.photographs, args.every)
            args.output.write_text(json.dumps(results, indent=1) + "\n")
        page = args.output.with_suffix(".md")
        page.write_text(fill_block(page.read_text(), "backends", table(results).rstrip()))
    print(table(results))


if __name__ == "__main__":
    main()
