"""Write a HandUNet as one ONNX file that needs neither torch nor transformers: the command `handunet export`, from a clone.

    python -m scripts.export_onnx MODEL OUTPUT.onnx
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file of a checkout

from handunet.export import main

if __name__ == "__main__":
    main()
