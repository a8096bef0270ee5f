"""The command `handunet`: what `pip install` puts on the path, and what `predict.py` and `scripts/export_onnx.py` run."""
