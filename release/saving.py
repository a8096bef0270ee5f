"""The finished model as a folder that is a Hub repository: weights, configuration, processor, code, card, figures.

The folder's card and JSON files are made from a run's `report`, which is plain JSON data:

    repo_id            "USER/NAME", or None while that is not known
    output_name        the name of the output folder, which names the model until it is pushed
    task               what transformers calls it: "keypoint-detection" or "object-detection"
    model              num_parameters, image_size and, of a pose model, sigma (px)
    arguments          every setting, by name, without places on this machine; saved as `training_arguments.json`
    command            the command line that started the run
    init               None, or the weights that it started from: the name for the card, and the path (a folder or an id
                       on the Hub) of the card that states their terms
    loss               its name and a sentence of what it computes
    samples_per_epoch  of the training split
    source             of the data: type, name, data, limits, pictures, private, grouped_by, same_validation_and_test, terms
    publish_examples   whether figures that show private photographs are in the folder
    metrics            every figure; saved as `metrics.json`

The rest is saved as `report.json`, with the `terms` that were found instead of the path of `init`.  So `make_card` can make
the card again from the three files, also where the weights of `init` cannot be read any more.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from handunet.export import load
from modeling_handunet import HandUNetConfig, HandUNetDetectorConfig
from modeling_handunet.torch_hands import is_on_hub
from release.card import make_card
from release.files import DETECTOR, ENDPOINT, EXAMPLES, SERVING, written_whole
from release.terms import find_terms

# What a saved folder must have to be a model's repository.
REQUIRED = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
# What a folder such as `weights/handunet` is stored without; [`add_code`] adds it.
CODE = ("modeling_handunet.py", "image_processing_handunet.py", "pipeline_handunet.py")


def save_model(
    folder: Path,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    report: dict,
    figures: Sequence[Path],
    detector: Path = DETECTOR,
) -> None:
    """Write the whole repository to `folder`, which appears, or replaces an older one, when it is complete.

    A pose model gets the saved detector `detector` with it, if there is one.
    """
    report = {**report, "terms": find_terms(report), "init": report["init"] and {"name": report["init"]["name"]}}
    rest = {name: value for name, value in report.items() if name not in ("arguments", "metrics")}
    files = {"training_arguments.json": report["arguments"], "metrics.json": report["metrics"], "report.json": rest}
    with written_whole(folder) as partial:
        save_weights(partial, model.cpu().eval(), processor)
        (partial / "figures").mkdir()
        for figure in figures:
            shutil.copy(figure, partial / "figures" / figure.name)
        for name, content in files.items():
            (partial / name).write_text(json.dumps(content, indent=2) + "\n")
        make_card(report).save(partial / "README.md")
        if not is_detector(partial):
            add_detector(partial, detector)
        add_companions(partial)


def save_weights(folder: Path, model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    """Write weights, configuration and processor, with the code that loads them where this package is not installed."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def add_code(folder: Path) -> None:
    """Add the code of model, processor and pipeline to a folder that was stored without it."""
    save_weights(folder, *load(folder))


def add_detector(folder: Path, detector: Path) -> bool:
    """Put a saved detector, with its code and card, into a pose model's folder, and name it in its `config.json`.

    Returns False, and changes nothing, if there is no detector.
    """
    if not (detector / "config.json").is_file():
        return False
    own = folder / "detector"
    save_weights(own, *load(detector))
    if (detector / "README.md").is_file():  # states its terms
        shutil.copy(detector / "README.md", own)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "detector": own.name}, indent=2) + "\n")
    return True


def named_detector(folder: Path) -> Path | None:
    """The folder of the detector that a saved pose model names; None for one on the Hub."""
    named = HandUNetConfig.from_pretrained(folder).detector
    return None if is_on_hub(named) else folder / named


def is_detector(folder: Path) -> bool:
    """Whether a saved folder holds a hand detector."""
    return json.loads((folder / "config.json").read_text()).get("model_type") == HandUNetDetectorConfig.model_type


def add_companions(folder: Path) -> None:
    """Add what every model's repository has: the example pictures and, for a pose model, the endpoint's files."""
    for path in () if is_detector(folder) else (ENDPOINT / "handler.py", ENDPOINT / "requirements.txt", SERVING):
        shutil.copy(path, folder)
    shutil.copytree(EXAMPLES, folder / "examples", dirs_exist_ok=True)
