"""JPEG's losses on tensors, against what Pillow writes and reads."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script.augmentation import augmentation_keys
from dataset_script.jpeg import compress
from dataset_script.synthetic.backgrounds import fractal_noise


def picture(size: int) -> torch.Tensor:
    """(1, 3, size, size) of whole 255ths."""
    noise = fractal_noise(augmentation_keys(0, 0, torch.tensor([5])), "picture", size, 3, (2, 4, 8, 16, 32))
    return ((0.5 + 0.2 * noise).clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize("size", [64, 72])
@pytest.mark.parametrize("quality", [15, 50, 90])
def test_it_loses_what_a_jpeg_file_loses(size, quality):
    image = picture(size)
    file = io.BytesIO()
    Image.fromarray((image[0] * 255).byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    saved = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] / 255
    mine = compress(image, torch.tensor([float(quality)]))
    assert mine.shape == image.shape
    lost = (image - saved).abs().mean()
    assert (mine - saved).abs().mean() < 0.35 * lost


def test_each_picture_of_a_batch_has_its_own_quality():
    images = picture(32).repeat(2, 1, 1, 1)
    good, bad = compress(images, torch.tensor([95.0, 10.0])) - images
    assert bad.abs().mean() > 2 * good.abs().mean()
    torch.testing.assert_close(compress(images[1:], torch.tensor([10.0]))[0] - images[1], bad)
