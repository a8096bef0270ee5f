"""The rows of one GPU: training with augmentation and inference in bf16, eager and compiled, beside what the memory's
bandwidth would allow; training on more images; drawing hands and making scenes.
"""

import functools
import sys
import time

import torch

from benchmarks.rows import GPU_TARGETS
from dataset_script import SyntheticHands
from dataset_script.layers import layer_rows
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, render_heatmaps
from dataset_script.augmentation import Augmentation, augmentation_keys
from dataset_script.scenes import Scenes
from training.data import LAYER_SIZE
from training.evaluation import normalize

BATCH, SIZE = 256, 128
IMAGES = (32_560, 130_240)


def activation_bytes(config: HandUNetConfig, training: bool, width: int = 2) -> int:
    """Bytes that the activations of one image must move: each layer reads its input and writes its output once.

    Layers are batch normalisations, convolutions with their ReLU, poolings, enlargements, concatenations and the head;
    training moves each again for the gradient of its output and of its input, and reads the input once more.
    """
    sizes = config.hidden_sizes
    pixels = [(config.image_size >> level) ** 2 for level in range(len(sizes))]
    moved = 0

    def block(channels: int, filters: int, area: int) -> int:
        return area * ((channels + channels) + (channels + filters) + (filters + filters) + (filters + filters))

    for level, (channels, filters) in enumerate(zip((config.num_channels, *sizes), sizes)):
        moved += block(channels, filters, pixels[level])
        if level:
            moved += channels * (pixels[level - 1] + pixels[level])  # pooling
    for level in range(len(sizes) - 2, -1, -1):
        deep, filters = sizes[level + 1], sizes[level]
        moved += deep * (pixels[level + 1] + pixels[level])  # enlarging
        moved += 2 * (deep + filters) * pixels[level]  # concatenation
        moved += block(deep + filters, filters, pixels[level])
    moved += (sizes[0] + 3 * config.num_keypoints) * pixels[0]  # the head and the sigmoid
    return moved * width * (3 if training else 1)


def copy_rate() -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), 20)


def seconds(act, turns: int) -> float:
    """Of one `act()`, over `turns` without waiting in between."""
    for _ in range(5):
        act()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(turns):
        act()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / turns


def measure() -> dict:
    """All rows, each as text with its target and verdict; one that fails says why."""
    torch.backends.cudnn.benchmark = True  # as train.py has it
    rate = copy_rate()
    rows = [{"what": "copying", "figure": f"{rate / 1e9:.0f} GB/s"}]

    def row(what: str, action, **wanted: str) -> None:
        try:
            found = action()
        except Exception as error:  # a compiler has many ways to fail, and the other rows are worth having
            found = {"figure": f"failed: {(str(error) or repr(error)).splitlines()[0]}"}
        rows.append({"what": what, **wanted, **found})
        torch.cuda.empty_cache()
        print(rows[-1], file=sys.stderr, flush=True)

    def ways(compiled: bool) -> None:
        for (name, target), way, training in zip(GPU_TARGETS.items(), (train, infer), (True, False)):
            measured = functools.partial(share, way, compiled, training, target, rate)
            row(name + (", compiled" if compiled else ""), measured, target=f"{target:,} images/s", verdict="missed")

    ways(compiled=False)
    for count in IMAGES:
        row(f"training on {count:,} images", functools.partial(scaling, count))
    row(f"drawing hands without backgrounds at {LAYER_SIZE} px", drawing)
    row(f"putting them into scenes at {SIZE} px", composing)
    ways(compiled=True)
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}


def share(way, compiled: bool, training: bool, target: int, rate: float) -> dict:
    """A rate beside its target and beside what the memory's bandwidth allows."""
    per_second = way(compiled)
    limit = rate / activation_bytes(HandUNetConfig(), training)
    figure = f"{per_second:,.0f} images/s, {per_second / limit:.0%} of the bandwidth's {limit:,.0f}"
    return {"figure": figure, "verdict": "reached" if per_second >= target else "missed"}


def drawing() -> dict:
    """Hands a second that are posed, lit and drawn on the GPU."""
    hands = SyntheticHands(1, image_size=LAYER_SIZE, difficulty="layers")
    numbers = iter(range(0, 10**9, BATCH))
    per_second = BATCH / seconds(lambda: hands.layers(torch.arange(BATCH) + next(numbers), "cuda"), 20)
    return {"figure": f"{per_second:,.0f} hands/s"}


def composing() -> dict:
    """Scenes a second of hands that the GPU holds."""
    rows = layer_rows(SyntheticHands(1, image_size=LAYER_SIZE, difficulty="layers").layers(torch.arange(BATCH), "cuda"))
    scenes, numbers = Scenes(SIZE, 0.45), iter(range(0, 10**9, BATCH))

    def act():
        keys = augmentation_keys(0, 0, torch.arange(BATCH, device="cuda") + next(numbers))
        scenes(rows["rgba"], rows["keypoints"], rows["skin"], keys)

    return {"figure": f"{BATCH / seconds(act, 20):,.0f} scenes/s"}


def network(compiled: bool) -> HandUNetForPoseEstimation:
    """A new one on the GPU."""
    model = HandUNetForPoseEstimation(HandUNetConfig()).cuda().to(memory_format=torch.channels_last)
    if compiled:
        model.compile()
    return model


def trainer(compiled: bool, images: torch.Tensor, keypoints: torch.Tensor):
    """A step on random samples of resident 8-bit images (N, 3, 128, 128) and keypoints (N, 21, 2)."""
    model = network(compiled).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    def inputs(chosen):
        pictures, points = Augmentation()(images[chosen].float() / 255, keypoints[chosen], augmentation_keys(0, 0, chosen))
        return normalize(pictures), render_heatmaps(points, SIZE, 3.0)

    inputs = torch.compile(inputs) if compiled else inputs

    def step():
        pixel_values, labels = inputs(torch.randint(len(images), (BATCH,), device="cuda"))
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(pixel_values=pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def resident(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and keypoints of noise on the GPU, as a training set that stays there."""
    images = torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, device="cuda")
    return images, torch.rand(count, 21, 2, device="cuda") * SIZE


def train(compiled: bool) -> float:
    """Images a second."""
    return BATCH / seconds(trainer(compiled, *resident(IMAGES[0])), 100)


def infer(compiled: bool) -> float:
    """Images a second."""
    model = network(compiled).eval().bfloat16()
    images = torch.randn(1024, 3, SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
    images = images.contiguous(memory_format=torch.channels_last)

    def act():
        with torch.inference_mode():
            model(images)

    return len(images) / seconds(act, 50)


def scaling(count: int) -> dict:
    """The rate and memory of training on `count` resident images, beside those images' own bytes."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    images, keypoints = resident(count)
    per_second = BATCH / seconds(trainer(False, images, keypoints), 50)
    beside = torch.cuda.max_memory_allocated() - images.nbytes - keypoints.nbytes
    return {"figure": f"{per_second:,.0f} images/s, {beside / 2**20:,.0f} MB beside the images' {images.nbytes / 2**20:,.0f}"}
