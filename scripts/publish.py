"""Put a saved model on the Hub, and a page to try it on.

    python -m scripts.publish outputs/handunet/model USER/NAME                         # the model
    python -m scripts.publish outputs/handunet/model USER/NAME --space USER/SPACE      # and its Space
    python -m scripts.publish outputs/handunet/model USER/NAME --dry_run               # only list what would go

Log in first with `hf auth login`.  The model's repository gets weights, configuration, processor, code, card, figures,
examples, the endpoint's handler and an ONNX file (which needs `pip install -e '.[onnx]'`) in one commit; a push that
breaks leaves a repository as it was.  `train.py --push_to_hub USER/NAME` does the same at the end of a training.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from a checkout

from transformers.utils import logging  # noqa: E402

from training.publishing import push_model  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a model/ that train.py wrote")
    parser.add_argument("repo_id", metavar="USER/NAME", help="the model's repository; made where there is none")
    parser.add_argument("--space", metavar="USER/SPACE", help="also put the page to try the model on into this repository")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--dry_run", action="store_true", help="list what would go, with sizes, and send nothing")
    args = parser.parse_args()
    logging.disable_progress_bar()
    try:
        push_model(args.folder, args.repo_id, space=args.space, private=args.private, dry_run=args.dry_run)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: an ONNX file that does not agree with torch
        sys.exit(f"publish.py: {error}")


if __name__ == "__main__":
    main()
