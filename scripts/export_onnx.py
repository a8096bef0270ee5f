"""Write a HandUNet as one ONNX file that needs neither torch nor transformers.

    python -m scripts.export_onnx MODEL OUTPUT.onnx

MODEL is a folder written by `save_pretrained`, or an id on the Hub.  `release/onnx.py` describes the graph's inputs and
outputs.  Before the file gets its name, it is compared with torch: heatmaps within 1e-4, keypoints within 0.01 px.

Exporting needs `pip install -e '.[onnx]'`.  Using the file needs onnxruntime, an image reader and the README's ten lines,
or `python predict.py photo.jpg --backend onnx --model OUTPUT.onnx`.
"""

import argparse
import sys
from pathlib import Path

from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file of a checkout

from modeling_handunet import HandUNetForPoseEstimation, HandUNetImageProcessor
from release.onnx import export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder written by save_pretrained, or id on the Hub")
    parser.add_argument("output", type=Path, help="ONNX file to write; an older one is replaced")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    try:
        if arguments.output.is_dir():
            raise IsADirectoryError(f"{arguments.output} is a folder: name the file to write, such as model.onnx.")
        model = HandUNetForPoseEstimation.from_pretrained(arguments.model, revision=arguments.revision)
        processor = HandUNetImageProcessor.from_pretrained(arguments.model, revision=arguments.revision)
        export(model, processor, arguments.output)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"Wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB), compared with torch.")


if __name__ == "__main__":
    main()
