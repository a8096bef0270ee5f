"""Draw the hands of photographs and write their keypoints: the command `handunet photo.jpg`, from a clone.

    python predict.py photo.jpg --boxes 120,80,200,180

`handunet/predict.py` has the manual, which `--help` prints.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # so that it also runs from another folder

from handunet.predict import main

if __name__ == "__main__":
    main()
