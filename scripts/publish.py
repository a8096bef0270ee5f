"""Put a saved model on the Hub, and the Space to try it.

    python -m scripts.publish outputs/handunet/model USER/NAME                         # the model
    python -m scripts.publish outputs/handunet/model USER/NAME --space USER/SPACE      # and its Space
    python -m scripts.publish outputs/handunet/model USER/NAME --dry_run               # only list the files

Log in first with `hf auth login`.  The model's repository gets weights, configuration, processor, code, card, figures,
examples, the endpoint's handler and an ONNX file (which needs the extra `onnx`) in one commit.  A push that
breaks leaves a repository as it was.  `train.py --push_to_hub USER/NAME` does the same at the end of a training.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file of a checkout

from transformers.utils import logging

from release.hub import push_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a model/ that train.py wrote")
    parser.add_argument("repo_id", metavar="USER/NAME", help="the model's repository; created if there is none")
    parser.add_argument("--space", metavar="USER/SPACE", help="also put the page to try the model into this repository")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--publish_examples", action="store_true", help="also publish figures that show your photographs")
    parser.add_argument("--dry_run", action="store_true", help="list the files and the pictures among them, and send nothing")
    args = parser.parse_args()
    logging.disable_progress_bar()
    try:
        push_model(
            args.folder, args.repo_id, space=args.space, private=args.private, publish_examples=args.publish_examples,
            dry_run=args.dry_run,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: the ONNX file does not give what torch gives
        sys.exit(f"publish.py: {error}")


if __name__ == "__main__":
    main()
