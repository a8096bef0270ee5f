"""MediaPipe Hands, what a user would pick instead, in a virtual environment of its own.

Run by that environment's Python as a way (see `worker.py`): the whole call on a decoded image, its own detection of the
hand included, static images.
"""

import subprocess
import sys
import venv
from pathlib import Path

VERSION = "0.10.14"


def environment(folder: Path) -> Path:
    """The Python of an environment that has MediaPipe, made where it is missing.

    Raises `RuntimeError` with the reason where it cannot be installed or does not work.
    """
    python = folder / "mediapipe" / "bin" / "python"
    try:
        if not python.exists():
            venv.create(python.parent.parent, with_pip=True)
            command = [python, "-m", "pip", "install", "--quiet", f"mediapipe=={VERSION}"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise RuntimeError(f"MediaPipe {VERSION} could not be installed: {reason[-1] if reason else error}") from None
    return python


def main() -> None:
    """Answer as a way; arguments as `worker.py`'s."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import mediapipe
    import numpy as np
    from PIL import Image
    from worker import serve

    _, _, folder = sys.argv[1:]
    path = sorted((Path(folder) / "freihand" / "training" / "rgb").glob("*.jpg"))[0]
    image = np.asarray(Image.open(path).convert("RGB"))
    hands = mediapipe.solutions.hands.Hands(static_image_mode=True, max_num_hands=1)
    found = hands.process(image).multi_hand_landmarks is not None
    serve(lambda: hands.process(image), 1, found_a_hand=found)


if __name__ == "__main__":
    main()
