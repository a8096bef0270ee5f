"""Arrays on disk: complete or not there, and the same for any number of processes."""

import errno
import os

import numpy as np
import pytest

from dataset_script import caches

SHAPES = {"squares": ((10,), np.int64), "rows": ((10, 3), np.float32)}


def squares(rows: range) -> dict[str, np.ndarray]:
    numbers = np.array(rows)
    return {"squares": numbers**2, "rows": np.repeat(numbers[:, None], 3, 1)}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_is_written_once_by_any_number_of_processes(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(caches, "worker_count", lambda: workers)
    caches.write_arrays(tmp_path, SHAPES, squares, batch_size=4)
    arrays = caches.open_arrays(tmp_path, tuple(SHAPES))
    np.testing.assert_array_equal(arrays["squares"], np.arange(10) ** 2)
    np.testing.assert_array_equal(arrays["rows"], np.repeat(np.arange(10.0)[:, None], 3, 1))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve room for a file")
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room for the .* MB of .*squares\.npy.*No space left"):
        caches.written_once(tmp_path, "numbers", lambda folder: caches.write_arrays(folder, SHAPES, squares, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.lock"]


def test_an_error_while_rows_are_made_leaves_nothing(tmp_path):
    def fail(rows: range):
        raise ValueError(f"row {rows.start} cannot be made")

    with pytest.raises(ValueError, match="row 0 cannot be made"):
        caches.written_once(tmp_path, "numbers", lambda folder: caches.write_arrays(folder, SHAPES, fail, 10))
    assert not (tmp_path / "numbers").exists()
