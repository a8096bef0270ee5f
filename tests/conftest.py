"""Every test is offline and repeatable, and leaves the user's caches alone."""

import os
import tempfile

_home = tempfile.TemporaryDirectory(prefix="handunet-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = _home.name
os.environ["HF_MODULES_CACHE"] = os.path.join(_home.name, "modules")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout. It is not part of the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}, the folder of real data beside the checkout")
    return folder
