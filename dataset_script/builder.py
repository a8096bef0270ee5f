"""The base class of the two `datasets` builders, FreiHAND and CocoHands."""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

from dataset_script.files import UnreadableImages


class HandRowsBuilder(datasets.GeneratorBasedBuilder):
    """A builder that is used by creating it, and whose errors reach the caller unchanged.

    `datasets` writes the rows to `<folder>.incomplete` and renames the folder when all are there. So a build that fails or
    is killed leaves no folder that looks complete.
    """

    DEFAULT_WRITER_BATCH_SIZE = 100  # rows held in memory before they are written
    unreadable: UnreadableImages | None = None  # in the part of a split that is being written

    def build(self, num_proc: int | None = None) -> datasets.DatasetDict:
        """All splits. The first call builds them, in `num_proc` processes; later calls read them from the cache."""
        self.download_and_prepare(num_proc=num_proc)
        return self.as_dataset()

    def left_out(self) -> dict[str, str]:
        """The images that have no row because they cannot be read, with the reasons. Also if the rows come from the cache."""
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
            if isinstance(error.__cause__, ValueError):  # it names the file, its wrapper does not
                raise error.__cause__ from None
            raise

    def _forget_earlier_splits(self) -> None:
        """Allow a forced rebuild to have another number of rows, for example after an image was repaired."""
        self.info.splits = None
