"""What the builders of this package share: how they fail, what they leave out, and how they are built in one call."""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

from dataset_script.files import UnreadableImages


class HandRowsBuilder(datasets.GeneratorBasedBuilder):
    """A builder used by instantiation, whose errors reach the caller as they were raised.

    Rows are written to `<folder>.incomplete` and renamed when they are all there (by `datasets`), so that a build that
    fails or is killed leaves nothing that could be taken for whole.
    """

    DEFAULT_WRITER_BATCH_SIZE = 100  # rows held in memory before they are written
    unreadable: UnreadableImages | None = None  # of the part of a split that is being written

    def build(self, num_proc: int | None = None) -> datasets.DatasetDict:
        """All splits, built on first use and read from the cache afterwards; `num_proc` processes build at once."""
        self.download_and_prepare(num_proc=num_proc)
        return self.as_dataset()

    def left_out(self) -> dict[str, str]:
        """The images that cannot be read and have no row, with the reasons; also where the rows come from the cache."""
        files = sorted(Path(self.cache_dir).glob("*.left_out.json"))
        return {name: reason for file in files for name, reason in json.loads(file.read_text()).items()}

    def _prepare_split_single(self, gen_kwargs, fpath, *args, job_id: int, **kwargs) -> Iterator:
        self.unreadable = None
        try:
            yield from super()._prepare_split_single(gen_kwargs, fpath, *args, job_id=job_id, **kwargs)
            if self.unreadable is not None and self.unreadable.reasons:
                name = f"{Path(fpath).name.partition('-JJJJJ')[0]}-{job_id:05d}.left_out.json"
                Path(fpath).with_name(name).write_text(json.dumps(self.unreadable.reasons))
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError):  # the sentence that names the file, rather than its wrapper
                raise error.__cause__ from None
            raise

    def _forget_earlier_splits(self) -> None:
        """Let a forced rebuild count other rows than the build before it, as after an image was repaired."""
        self.info.splits = None
