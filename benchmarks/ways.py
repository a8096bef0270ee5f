"""The ways of doing something: ours, and the plain reference beside it.

`WAY(folder, how, count)` sets one up with what [`prepare`] made in `folder`; it returns what does it once and how many items
that makes.  The reference is how the student project that this design comes from did it, written anew from its description:
PIL decodes, OpenCV blurs one image a keypoint, the network runs in float32, eager and contiguous, SGD trains it.
What only some ways need is imported in them, so that a prediction's memory is its own.
"""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import EXAMPLE, ROOT
from handunet.backends import OWN_MODELS, load_onnx
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor, IoULoss
from modeling_handunet.heatmaps import decode_heatmaps, render_heatmaps
from modeling_handunet.images import load_image
from training.memory import keep_freed_memory

SIZE, KEYPOINTS, SIGMA, PHOTOGRAPHS, PHOTOGRAPH_SIZE = 128, 21, 3.0, 96, 224
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
MODEL = ROOT / "weights" / "handunet"
FILES = {"onnx": OWN_MODELS["float32"], "int8": OWN_MODELS["int8"]}  # by how onnxruntime runs them, with the detectors beside
Way = tuple[Callable[[], object], int]


def prepare(folder: Path) -> None:
    """Make drawn photographs in FreiHAND's layout, if they are missing in `folder`."""
    if not (folder / "freihand" / "training_K.json").exists():
        from dataset_script import SyntheticHands

        hands = SyntheticHands(PHOTOGRAPHS, image_size=PHOTOGRAPH_SIZE)
        rows = [hands[index] for index in range(PHOTOGRAPHS)]
        (folder / "freihand" / "training" / "rgb").mkdir(parents=True, exist_ok=True)
        for index, row in enumerate(rows):
            row["image"].save(folder / "freihand" / "training" / "rgb" / f"{index:08d}.jpg", quality=95)
        for name in ("xyz", "K"):
            values = [np.asarray(row[name], np.float64).tolist() for row in rows]
            (folder / "freihand" / f"training_{name}.json").write_text(json.dumps(values))


def jpgs(folder: Path, count: int) -> list[Path]:
    return sorted((folder / "freihand" / "training" / "rgb").glob("*.jpg"))[:count]


def freihand_rows(folder: Path, count: int):
    """The photographs' rows, `count` of them, over and over."""
    from dataset_script import FreiHAND

    built = FreiHAND(folder / "freihand", cache_dir=folder / "cache").build()["train"]
    return built.select([index % len(built) for index in range(count)])


def crops_of(rows, cache: Path) -> Dataset:
    from dataset_script import HandCrops

    return HandCrops(rows, cache_dir=cache)


def inputs(batch: dict) -> tuple[Tensor, Tensor]:
    """Pixels (B, 3, S, S) and target heatmaps (B, 21, S, S) of a batch of crops."""
    from training.evaluation import normalize

    return normalize(batch["image"]), render_heatmaps(batch["keypoints"], SIZE, SIGMA)


def heatmaps(folder: Path, how: str, count: int = 48) -> Way:
    """Targets: `ours` or the `reference`'s."""
    keypoints = torch.rand(count, KEYPOINTS, 2) * SIZE
    if how == "reference":
        return lambda: np.stack([blur_targets(points) for points in keypoints.numpy()]), count
    keep_freed_memory()  # as train.py does
    return lambda: render_heatmaps(keypoints, SIZE, SIGMA), count


def samples(folder: Path, how: str, count: int = 1920) -> Way:
    """Batches of inputs: `first`, from jpgs; `later`, from the crops' cache; the `reference`'s, always from jpgs."""
    if how == "reference":
        photographs = Photographs(folder)
        return lambda: [None for _ in DataLoader(photographs, 48)], len(photographs)
    keep_freed_memory()
    rows = freihand_rows(folder, count)
    crops = crops_of(rows, folder / "cache") if how == "later" else None

    def act() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            for batch in DataLoader(crops or crops_of(rows, Path(cache)), 48):
                inputs(batch)

    return act, count


def trainer(how: str, whole: bool = False) -> Callable[[Tensor, Tensor], float]:
    """A step on images and targets: ours in `bf16` or `float32`, the `reference`'s, or a `bare` loop that has no loss.

    `bf16_compiled` and `float32_compiled` are ours by `torch.compile`.  A `whole` step also clips the gradient and averages the
    weights, as train.py does.
    """
    torch.manual_seed(0)
    how, _, compiled = how.partition("_")
    if how in DTYPES:
        keep_freed_memory()
        network = HandUNetForPoseEstimation(HandUNetConfig()).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(network.parameters(), 2.5e-3)
    else:
        network = PlainUNet().train()
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
    if compiled:
        network.compile()
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=True) if whole else None

    def train(images: Tensor, targets: Tensor) -> float:
        optimizer.zero_grad()
        if how in DTYPES:
            with torch.autocast("cpu", torch.bfloat16, enabled=how == "bf16"):
                loss = network(images, targets).loss
        else:
            loss = IoULoss()(network(images), targets) if how == "reference" else network(images).square().mean()
        loss.backward()
        if whole:
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if whole:
            average.update_parameters(network)
        return loss.item()

    return train


def step(folder: Path, how: str, batch_size: int = 48) -> Way:
    """One step on a batch that is ready; `how` as for [`trainer`]."""
    layout = torch.contiguous_format if how in ("reference", "bare") else torch.channels_last
    images = torch.randn(batch_size, 3, SIZE, SIZE).contiguous(memory_format=layout)
    train, targets = trainer(how), render_heatmaps(torch.rand(batch_size, KEYPOINTS, 2) * SIZE, SIZE, SIGMA)
    return lambda: train(images, targets), batch_size


def epoch(folder: Path, how: str, batch_size: int = 48) -> Way:
    """Whole steps with their data: ours in `bf16` or `float32` from the crops' cache, or the `reference`'s from jpgs."""
    if how == "reference":
        train, dataset, prepared = trainer(how), Photographs(folder), lambda batch: batch
    else:
        train, prepared = trainer(how, whole=True), inputs
        dataset = crops_of(freihand_rows(folder, PHOTOGRAPHS), folder / "cache")
    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
    return lambda: [train(*prepared(batch)) for batch in loader], len(loader) * batch_size


def onnx_session(how: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(FILES[how], options, providers=["CPUExecutionProvider"])


def predict(folder: Path, how: str, count: int = 1) -> Way:
    """From jpg bytes to keypoints: our pipeline in `bf16` or `float32`, onnxruntime with the file as exported (`onnx`) or in
    8 bits (`int8`), or the `reference`'s."""
    files = [path.read_bytes() for path in jpgs(folder, count)]
    if how in DTYPES:
        from transformers import pipeline

        pipe = pipeline("keypoint-detection", model=str(MODEL), dtype=DTYPES[how])
        # As the other ways: one reading a hand.  With an unknown side there are two.
        return lambda: pipe(files, boxes="image", handedness="right", batch_size=count), count
    if how in FILES:
        session, processor = onnx_session(how), HandUNetImageProcessor()

        def act():
            pixel_values = processor([load_image(file) for file in files], return_tensors="np")["pixel_values"]
            keypoints, scores = session.run(["keypoints", "scores"], {"pixel_values": pixel_values})
            return keypoints * PHOTOGRAPH_SIZE / SIZE, scores
    else:
        plain = plain_network()

        @torch.no_grad()
        def act():
            images = torch.stack([read_image(io.BytesIO(file)) for file in files])
            return mean_position(plain(images)) * PHOTOGRAPH_SIZE / SIZE

    return act, count


def photo(folder: Path, how: str) -> Way:
    """A whole decoded photograph to its hands, as `handunet --backend onnx` finds them; `how` is `onnx` or `int8`."""
    from modeling_handunet.hands import find_hands

    hands = load_onnx(str(FILES[how]), None, finds=True)
    image = Image.open(EXAMPLE).convert("RGB")
    if len(find_hands(hands, image)) != 1:
        raise SystemExit("not one hand was found")
    return lambda: find_hands(hands, image), 1


def network(folder: Path, how: str, batch_size: int = 1) -> Way:
    """The network alone, on inputs that are ready; `how` as for [`predict`]."""
    images = torch.randn(batch_size, 3, SIZE, SIZE, dtype=DTYPES.get(how))
    if how in FILES:
        session, pixel_values = onnx_session(how), images.numpy()
        return lambda: session.run(["heatmaps"], {"pixel_values": pixel_values}), batch_size
    model = plain_network() if how == "reference" else HandUNetForPoseEstimation.from_pretrained(MODEL, dtype=DTYPES[how])
    return torch.inference_mode()(lambda: model(images)), batch_size


def decoding(folder: Path, how: str, count: int = 32) -> Way:
    """`decode_heatmaps` with its default method, on heatmaps in `channels_last`, as the network gives them, or `contiguous`."""
    maps = render_heatmaps(torch.rand(count, KEYPOINTS, 2) * SIZE, SIZE, SIGMA)
    maps = maps.contiguous(memory_format=torch.channels_last) if how == "channels_last" else maps
    return lambda: decode_heatmaps(maps), count


class PlainUNet(nn.Module):
    """The network of `HandUNetForPoseEstimation`'s default, with the same weights, without what makes it fast."""

    def __init__(self):
        super().__init__()

        def block(channels: int, filters: int) -> nn.Sequential:
            pairs = ((channels, filters), (filters, filters))
            layers = [(nn.BatchNorm2d(a), nn.Conv2d(a, b, 3, padding=1, bias=False), nn.ReLU()) for a, b in pairs]
            return nn.Sequential(*layers[0], *layers[1])

        self.down = nn.ModuleList([block(3, 16), block(16, 32), block(32, 64), block(64, 128)])
        self.up = nn.ModuleList([block(192, 64), block(96, 32), block(48, 16)])
        self.head = nn.Conv2d(16, KEYPOINTS, 3, padding=1, bias=False)
        self.pool, self.enlarge = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1]):
            x = block(torch.cat([self.enlarge(x), skip], dim=1))
        return torch.sigmoid(self.head(x))


def plain_network(folder: Path = MODEL) -> PlainUNet:
    """The network with the weights in `folder`."""
    from safetensors.torch import load_file

    network = PlainUNet()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval()


def blur_targets(keypoints: np.ndarray) -> np.ndarray:
    """Heatmaps (21, 128, 128) of keypoints (21, 2) in pixels: one pixel, blurred, over its maximum."""
    import cv2

    heatmaps = np.zeros((KEYPOINTS, SIZE, SIZE), dtype=np.float32)
    for heatmap, (x, y) in zip(heatmaps, keypoints):
        if 0 <= x < SIZE and 0 <= y < SIZE:
            heatmap[int(y), int(x)] = 1
            blurred = cv2.GaussianBlur(heatmap, (51, 51), SIGMA)
            heatmap[:] = blurred / blurred.max()
    return heatmaps


def read_image(file) -> Tensor:
    """Normalised pixels (3, 128, 128) of a path or a file."""
    image = Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    mean = np.array(HandUNetImageProcessor.image_mean, np.float32)
    std = np.array(HandUNetImageProcessor.image_std, np.float32)
    return torch.from_numpy(((np.array(image, np.float32) / 255 - mean) / std).transpose(2, 0, 1).copy())


class Photographs(Dataset):
    """FreiHAND's folder as it is usually read: every sample is decoded and its heatmaps blurred in every epoch."""

    def __init__(self, folder: Path):
        self.paths = jpgs(folder, PHOTOGRAPHS)
        xyz, K = (np.array(json.loads((folder / "freihand" / f"training_{name}.json").read_text())) for name in ("xyz", "K"))
        projected = np.einsum("nij,nkj->nki", K, xyz)
        self.keypoints = projected[..., :2] / projected[..., 2:] * SIZE / PHOTOGRAPH_SIZE

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return read_image(self.paths[index]), torch.from_numpy(blur_targets(self.keypoints[index]))


def mean_position(heatmaps: Tensor) -> Tensor:
    """Keypoints (B, 21, 2) as the average position over each heatmap."""
    weights = heatmaps / heatmaps.sum(dim=(2, 3), keepdim=True)
    centers = torch.arange(SIZE) + 0.5
    return torch.stack([(weights.sum(2) * centers).sum(2), (weights.sum(3) * centers).sum(2)], dim=2)
