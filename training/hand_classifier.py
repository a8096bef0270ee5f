"""Teach a pose network's hand classifier what is a right hand, a left hand and no hand; the network stays as it is.

    python -m training.hand_classifier weights/handunet-base --detector weights/handunet-detector --people people \\
        --photographs photographs --false_hands false_hands --output outputs/handunet-base

Keypoints are known of few natural hands, but boxes of many, and that is enough here: the classifier is two layers on what the
network sees, which is computed once for each crop (dataset_script/hand_looks.py).  So it takes minutes.  The folder --output is
the model's with the classifier; its keypoints do not change.
"""

import argparse
import functools
import json
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset_script.caches import default_cache
from dataset_script.hand_looks import KINDS, Look, Looks
from dataset_script.sources import Source, make_source
from modeling_handunet import (
    HandUNetDetectorImageProcessor,
    HandUNetForObjectDetection,
    HandUNetForPoseEstimation,
    HandUNetImageProcessor,
)
from modeling_handunet.losses import NO_HAND, hand_loss
from modeling_handunet.modeling_handunet import HandClassifier
from modeling_handunet.torch_hands import detect_hands
from release.card import make_card
from release.files import write_json, written_whole
from training.arguments import bf16_is_fast, make_arguments, public_name
from training.confidence import hand_figures
from training.initial_weights import CLASSIFIER_SIZE

BATCH_SIZE = 64  # crops that go through the network together
EPOCHS, STEP_SIZE = 16, 256  # passes over all crops, and crops of a step
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2


@torch.inference_mode()
def see(model: HandUNetForPoseEstimation, processor: HandUNetImageProcessor, looks: Iterable[Look]) -> dict:
    """What the classifier reads of N crops, `features` (N, F) float16, with their `shows` (N,), `kind` and `source` (N,)."""
    features, shows, kinds, sources, pixels = [], [], [], [], []

    def flush() -> None:
        inputs = torch.from_numpy(processor.normalize_pixels(np.stack(pixels))).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16_is_fast()):
            states = model(inputs, output_hidden_states=True).hidden_states
        features.append(HandClassifier.pool(*(state.float() for state in model.deepest(states))).half().cpu())
        pixels.clear()

    for look in looks:
        pixels.append(look.pixels)
        shows.append(look.shows)
        kinds.append(look.kind)
        sources.append(look.source)
        if len(pixels) == BATCH_SIZE:
            flush()
    if pixels:
        flush()
    if not features:
        raise ValueError("There is no crop to look at: the photographs need hands for training and for validation.")
    return {"features": torch.cat(features), "shows": torch.tensor(shows), "kind": kinds, "source": sources}


def of_other_sources(seen: dict, taught: dict) -> dict:
    """The rows of `seen` whose source has no photograph of people or hands in `taught`."""
    known = {source for source, kind in zip(taught["source"], taught["kind"]) if kind != "found before, no hand"}
    rows = [row for row, source in enumerate(seen["source"]) if source not in known]
    return {
        name: values[rows] if isinstance(values, Tensor) else [values[row] for row in rows] for name, values in seen.items()
    }


def fit(classifier: HandClassifier, seen: dict, seed: int = 0) -> None:
    """Train the classifier's layers on what [`see`] gave, by AdamW with a cosine."""
    torch.manual_seed(seed)
    features, shows = seen["features"], seen["shows"]
    weights = torch.tensor([KINDS[kind][1] for kind in seen["kind"]])
    for layer in classifier.layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    steps = EPOCHS * -(-len(shows) // STEP_SIZE)
    optimizer = torch.optim.AdamW(classifier.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    classifier.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(shows)).split(STEP_SIZE):
            if len(rows) == 1:
                continue  # of one crop there is no variance
            loss = hand_loss(classifier.layers(features[rows].float()), shows[rows]) * weights[rows]
            optimizer.zero_grad()
            (loss.sum() / weights[rows].sum()).backward()
            optimizer.step()
            schedule.step()
    classifier.eval()


@torch.inference_mode()
def figures(classifier: HandClassifier, seen: dict) -> dict:
    """How well it separates hands from other crops (AUROC) and right hands from left ones (share), of all and of each kind.

    A kind's AUROC is that of its hands against everything that is no hand.
    """
    chances = classifier.layers(seen["features"].float()).softmax(1).numpy()
    shows, kinds = seen["shows"].numpy(), np.array(seen["kind"])
    nothing = shows == NO_HAND

    def of(rows: np.ndarray) -> dict:
        return {**hand_figures(chances[rows | nothing], shows[rows | nothing]), "crops": int(rows.sum())}

    names = [kind for kind in KINDS if (kinds == kind).any() and not nothing[kinds == kind].all()]
    return {**of(np.ones(len(shows), bool)), "by_kind": {kind: of(kinds == kind) for kind in names}}


def save(model: HandUNetForPoseEstimation, source: Path, output: Path, found: dict, command: str) -> None:
    """Write the model's folder with its classifier: new weights, and what its report, its figures and its card say of it."""
    with written_whole(output) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        config = json.loads((source / "config.json").read_text())
        model.save_pretrained(partial)
        for path in partial.iterdir():
            if not (source / path.name).exists():  # code, in a folder that was stored without it
                path.unlink()
        write_json(partial / "config.json", {**config, "classifier_size": model.config.classifier_size})
        if (source / "report.json").is_file():
            names = ("report", "metrics", "training_arguments")
            parts = {name: json.loads((source / f"{name}.json").read_text()) for name in names}
            parts["report"]["model"]["num_parameters"] = model.num_parameters()
            parts["metrics"]["hand_classifier"] = {**found, "command": command}
            for name, content in parts.items():
                write_json(partial / f"{name}.json", content)
            report = parts["report"] | {"metrics": parts["metrics"], "arguments": parts["training_arguments"]}
            make_card(report).save(partial / "README.md")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder of a pose model")
    parser.add_argument("--detector", required=True, help="a folder or Hub id of a hand detector, whose finds are looked at")
    parser.add_argument("--people", help="a folder of photographs with boxes round hands")
    parser.add_argument("--photographs", help="a folder of labelled close hands")
    parser.add_argument("--false_hands", help="a folder of what a detector took for hands")
    parser.add_argument("--scenes", type=int, default=0, help="so many drawn hands or, with --cutouts, cut-out ones")
    parser.add_argument("--hand_mesh", help="scenes: a second body, a rigged glTF hand")
    parser.add_argument("--cutouts", help="scenes: a folder of cut-out hands")
    parser.add_argument("--photos", help="scenes: a folder of photographs to put behind")
    parser.add_argument("--layers", type=int, help="scenes: hands that are drawn once and used in many")
    parser.add_argument("--output", required=True)
    parser.add_argument("--cache_dir", help="where prepared images are stored (default: the cache of the datasets library)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not Path(args.model).is_dir():
        sys.exit(f"hand_classifier: {args.model} is no folder: give the folder of a pose model.")
    if not (args.people or args.photographs or args.false_hands):
        sys.exit("hand_classifier: There is nothing to learn from: name --people, --photographs or --false_hands.")
    try:
        words = map(public_name, sys.argv[1:] if argv is None else argv)
        teach(args, f"python -m training.hand_classifier {shlex.join(words)}")
    except (ValueError, OSError) as error:
        sys.exit(f"hand_classifier: {error}")


def teach(args: argparse.Namespace, command: str) -> None:
    """What the command line asks for."""
    model = HandUNetForPoseEstimation.from_pretrained(args.model)
    model.add_classifier(CLASSIFIER_SIZE)
    model.eval()
    processor = HandUNetImageProcessor.from_pretrained(args.model)
    finder = HandUNetForObjectDetection.from_pretrained(args.detector).eval()
    finder_processor = HandUNetDetectorImageProcessor.from_pretrained(args.detector)
    looks = functools.partial(
        Looks,
        detect=lambda photo: detect_hands(finder, finder_processor, [photo])[0],
        people=args.people,
        photographs=args.photographs,
        false_hands=args.false_hands,
        scenes=make_scenes(args, model.config.image_size, processor.box_fill) if args.scenes else None,
        cache_dir=Path(args.cache_dir or default_cache()),
        size=model.config.image_size,
        box_fill=processor.box_fill,
        seed=args.seed,
    )
    seen = {part: see(model, processor, looks(part)) for part in ("train", "validation")}
    seen["validation"] = of_other_sources(seen["validation"], seen["train"])
    fit(model.classifier, seen["train"], args.seed)
    found = {part: figures(model.classifier, rows) for part, rows in seen.items()}
    print(json.dumps(found, indent=2))
    save(model, Path(args.model), Path(args.output), found, command)


def make_scenes(args: argparse.Namespace, image_size: int, box_fill: float) -> Source:
    """The source of scenes that the command line asks for, all of them with a right hand."""
    names = ("hand_mesh", "cutouts", "photos", "layers", "cache_dir")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    data = make_arguments(
        dataset=["scenes"], negatives=0.0, train_samples=args.scenes, validation_samples=1, test_samples=1, **options
    ).data
    return make_source(data.dataset, None, data, validate_on=None, image_size=image_size, box_fill=box_fill, seed=args.seed)


if __name__ == "__main__":
    main()
