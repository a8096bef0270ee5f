"""What the builders of this package share: how they fail, and how they are built in one call."""

from collections.abc import Iterator

import datasets
from datasets.exceptions import DatasetGenerationError


class HandRowsBuilder(datasets.GeneratorBasedBuilder):
    """A builder used by instantiation, whose errors reach the caller as they were raised.

    Rows are written to `<folder>.incomplete` and renamed when they are all there (by `datasets`), so that a build that
    fails or is killed leaves nothing that could be taken for whole.
    """

    DEFAULT_WRITER_BATCH_SIZE = 100  # rows held in memory before they are written

    def build(self, num_proc: int | None = None) -> datasets.DatasetDict:
        """All splits, built on first use and read from the cache afterwards; `num_proc` processes build at once."""
        self.download_and_prepare(num_proc=num_proc)
        return self.as_dataset()

    def _prepare_split_single(self, *args, **kwargs) -> Iterator:
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError):  # the sentence that names the file, rather than its wrapper
                raise error.__cause__ from None
            raise

    def _forget_earlier_splits(self) -> None:
        """Let a forced rebuild count other rows than the build before it, as after an image was repaired."""
        self.info.splits = None
