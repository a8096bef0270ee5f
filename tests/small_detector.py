"""A detector's graph as `handunet export` writes it, with hands that are always at the same place."""

import json
from pathlib import Path

import numpy as np

SIZE = 32


def write_detector(path: Path, hands=(((0.25, 0.25, 0.75, 0.75), 0, 0.9),)) -> Path:
    """An ONNX file that finds `hands`: (x_min, y_min, x_max, y_max) as shares of the letterboxed square, label, score."""
    from onnx import TensorProto, helper, numpy_helper, save

    count = 100
    scores, labels = np.zeros((1, count), np.float32), np.zeros((1, count), np.int64)
    boxes, directions = np.zeros((1, count, 4), np.float32), np.tile(np.float32([0, -1]), (1, count, 1))
    for index, (box, label, score) in enumerate(hands):
        scores[0, index], labels[0, index], boxes[0, index] = score, label, box
    values = {"scores": scores, "labels": labels, "boxes": boxes, "directions": directions}
    nodes = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(v)) for n, v in values.items()]
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    outputs = [helper.make_tensor_value_info(name, types[v.dtype], v.shape) for name, v in values.items()]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    graph = helper.make_graph(nodes, "detector", [pixels], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    settings = {"kind": "detector", "image_size": SIZE}
    settings |= {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    helper.set_model_props(model, {"handunet": json.dumps(settings)})
    save(model, path)
    return path
