"""The rows of one GPU: training with augmentation and inference in bf16, eager and compiled, beside what the memory's
bandwidth would allow; training on more images; drawing hands and making scenes.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.benchmark import Timer

from benchmarks.measure import GPU_TARGETS
from dataset_script import SyntheticHands
from dataset_script.augmentation import Augmentation, augmentation_keys
from dataset_script.layers import layer_rows
from dataset_script.scenes import Scenes
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, render_heatmaps
from training.evaluation import normalize

BATCH, SIZE, LAYER_SIZE = 256, 128, 160
IMAGES = (32_560, 130_240)  # FreiHAND's, without and with its background versions


def activation_bytes(config: HandUNetConfig, training: bool) -> int:
    """Bytes in bf16 that the activations of one image must move: each layer reads its input and writes its output once.

    Layers are batch normalisations, convolutions with their ReLU, poolings, enlargements, concatenations and the head.
    Training moves each again for the gradient of its output and of its input, and reads the input once more.
    """
    sizes = config.hidden_sizes
    areas = [(config.image_size >> level) ** 2 for level in range(len(sizes))]
    moved = (sizes[0] + 3 * config.num_keypoints) * areas[0]  # the head and the sigmoid
    for level, (channels, filters, area) in enumerate(zip((config.num_channels, *sizes), sizes, areas)):
        moved += area * (3 * channels + 5 * filters)  # two normalisations and two convolutions
        if level:
            moved += channels * (areas[level - 1] + area)  # pooling to this level
            moved += filters * (area + areas[level - 1])  # enlarging from it
            both = channels + filters
            moved += areas[level - 1] * (2 * both + 3 * both + 5 * channels)  # concatenation, and the block behind it
    return moved * 2 * (3 if training else 1)


def rate(act: Callable[[], object], items: int) -> float:
    """Items a second; the timer waits for the GPU before and after all calls, not between them."""
    return items / Timer("act()", globals={"act": act}).timeit(50).median


def network(compiled: bool, device: str = "cuda") -> HandUNetForPoseEstimation:
    model = HandUNetForPoseEstimation(HandUNetConfig()).to(device, memory_format=torch.channels_last)
    if compiled:
        model.compile()
    return model


def training_step(compiled: bool, count: int, batch: int = BATCH, device: str = "cuda") -> Callable[[], None]:
    """A step on random samples of `count` 8-bit images of noise that stay on the device, in bf16."""
    images = torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, device=device)
    keypoints = torch.rand(count, 21, 2, device=device) * SIZE
    model = network(compiled, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    def inputs(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pictures, points = Augmentation()(images[chosen].float() / 255, keypoints[chosen], augmentation_keys(0, 0, chosen))
        return normalize(pictures), render_heatmaps(points, SIZE, 3.0)

    inputs = torch.compile(inputs) if compiled else inputs

    def step() -> None:
        pixel_values, labels = inputs(torch.randint(count, (batch,), device=device))
        with torch.autocast(device, torch.bfloat16):
            loss = model(pixel_values=pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(compiled: bool, count: int = IMAGES[0]) -> float:
    """Images a second of steps on `count` images."""
    return rate(training_step(compiled, count), BATCH)


def infer(compiled: bool) -> float:
    """Images a second."""
    model, images = network(compiled).eval().bfloat16(), torch.randn(1024, 3, SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
    images = images.contiguous(memory_format=torch.channels_last)
    return rate(torch.inference_mode()(lambda: model(images)), len(images))


def scaling(count: int) -> dict[str, str]:
    """The rate and memory of training on `count` images, beside those images' own bytes."""
    torch.cuda.reset_peak_memory_stats()
    per_second, own = train(False, count), count * (3 * SIZE**2 + 21 * 2 * 4)
    beside = torch.cuda.max_memory_allocated() - own
    figure = f"{per_second:,.0f} images/s, {beside / 2**20:,.0f} MB beside the images' {count * 3 * SIZE**2 / 2**20:,.0f}"
    return {"figure": figure}


def beside_bandwidth(way: Callable[[bool], float], compiled: bool, target: int, copied: float) -> dict[str, str]:
    """A way's rate beside what copying `copied` bytes a second allows, and whether it reaches its target."""
    per_second, limit = way(compiled), copied / activation_bytes(HandUNetConfig(), training=way is train)
    figure = f"{per_second:,.0f} images/s, {per_second / limit:.0%} of the bandwidth's {limit:,.0f}"
    return {"figure": figure, "verdict": "reached" if per_second >= target else "missed"}


def measure() -> dict:
    """All rows, each as text, some with a target and its verdict; one that fails says why."""
    torch.backends.cudnn.benchmark = True  # as in train.py
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    copied = rate(partial(torch.empty_like(source).copy_, source), 2 * source.nbytes)  # bytes a second, read and written
    rows = [{"what": "copying", "figure": f"{copied / 1e9:.0f} GB/s"}]

    def row(what: str, action: Callable[[], dict[str, str]]) -> None:
        try:
            found = action()
        except Exception as error:
            reason = f"failed: {(str(error) or repr(error)).splitlines()[0]}"
            found = {"figure": reason, "verdict": "missed" if what.removesuffix(", compiled") in GPU_TARGETS else ""}
        rows.append({"what": what, **found})
        torch.cuda.empty_cache()
        print(rows[-1], file=sys.stderr, flush=True)

    def against_targets(compiled: bool) -> None:
        for way, name in ((train, "training with augmentation"), (infer, "inference")):
            row(name + ", compiled" * compiled, partial(beside_bandwidth, way, compiled, GPU_TARGETS[name][0], copied))

    against_targets(compiled=False)
    for count in IMAGES:
        row(f"training on {count:,} images", partial(scaling, count))
    draw = partial(SyntheticHands(1, image_size=LAYER_SIZE, difficulty="layers").layers, torch.arange(BATCH), "cuda")
    row(f"drawing hands without backgrounds at {LAYER_SIZE} px", lambda: {"figure": f"{rate(draw, BATCH):,.0f} hands/s"})
    hands, keys = layer_rows(draw()), augmentation_keys(0, 0, torch.arange(BATCH, device="cuda"))
    make = partial(Scenes(SIZE, 0.45), hands["rgba"], hands["keypoints"], hands["skin"], keys)
    row(f"putting them into scenes at {SIZE} px", lambda: {"figure": f"{rate(make, BATCH):,.0f} scenes/s"})
    against_targets(compiled=True)
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
