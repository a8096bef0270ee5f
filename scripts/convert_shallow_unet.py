"""Convert weights of 2D-Hand-Pose-Estimation-RGB (https://github.com/OlgaChernytska/2D-Hand-Pose-Estimation-RGB).

    python scripts/convert_shallow_unet.py CHECKPOINT OUTPUT_DIR

CHECKPOINT is a state dict of its `ShallowUNet`, written by `torch.save`.  OUTPUT_DIR becomes a folder that
`from_pretrained` and `pipeline` load: weights as safetensors, configuration, processor, and their code.
"""

import argparse
import pickle
import struct
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file of a checkout

from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from release.files import written_whole
from release.saving import save_weights

# Our modules and theirs.
MODULES = {
    "down.0": "conv_down1.double_conv",
    "down.1": "conv_down2.double_conv",
    "down.2": "conv_down3.double_conv",
    "down.3": "conv_bottleneck.double_conv",
    "up.0": "conv_up1.double_conv",
    "up.1": "conv_up2.double_conv",
    "up.2": "conv_up3.double_conv",
    "head": "conv_out.0",
}
NAMED_TENSORS = 5
# What torch.load raises for damaged files and for files of another kind.
UNREADABLE_CHECKPOINT_ERRORS = (pickle.UnpicklingError, struct.error, EOFError, LookupError, RuntimeError, ValueError)
UNREADABLE_CHECKPOINT_ERRORS += (AttributeError, TypeError)


def their_name(name: str) -> str:
    """Their name for our tensor `name`."""
    module = next(module for module in MODULES if name.startswith(f"{module}."))
    return MODULES[module] + name.removeprefix(module)


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file written by `torch.save`; a `ValueError` if it holds anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE_CHECKPOINT_ERRORS as error:
        # Without torch's own message, which recommends to load the file unsafely.
        raise ValueError(f"{path} is not a state dict written by torch.save, or it is damaged.") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds {type(state).__name__}, expected a state dict: a dict of tensors by name.")
    return state


def convert(checkpoint: Path, output_dir: Path) -> None:
    """Write the converted model to `output_dir`, which appears whole or not at all.

    Raises `OSError` if the checkpoint is missing or `output_dir` is not empty, `ValueError` for a checkpoint of another model.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} is not an empty folder: name another one, or remove it first.")
    state = load_checkpoint(checkpoint)
    model = HandUNetForPoseEstimation(HandUNetConfig())
    expected = {their_name(name): (name, tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(shape)}"
        for name, (_, shape) in expected.items()
        if name in state and state[name].shape != shape
    ]
    problems += [f"{name} has no counterpart" for name in state if name not in expected]
    if problems:
        more = f", and {len(problems) - NAMED_TENSORS} more" if len(problems) > NAMED_TENSORS else ""
        raise ValueError(
            f"{checkpoint} holds another model than the ShallowUNet: {'; '.join(problems[:NAMED_TENSORS])}{more}. "
            "Give its `model_final`."
        )
    model.load_state_dict({name: state[theirs] for theirs, (name, _) in expected.items()})
    with written_whole(output_dir) as partial:
        save_weights(partial, model, HandUNetImageProcessor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="state dict written by torch.save")
    parser.add_argument("output_dir", type=Path, help="folder to make; must not hold anything")
    arguments = parser.parse_args()
    try:
        convert(arguments.checkpoint, arguments.output_dir)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"Wrote {arguments.output_dir}")


if __name__ == "__main__":
    main()
