"""What a run tells while it works: a progress bar on a terminal, a line a minute in a log file."""

import sys
import time

from accelerate import Accelerator
from tqdm import tqdm

from dataset_script.files import shorten

SECONDS_BETWEEN_LINES = 60


def say(accelerator: Accelerator, text: str) -> None:
    """Print from one process, without tearing a progress bar."""
    if accelerator.is_main_process:
        tqdm.write(text)
        sys.stdout.flush()


def say_what_is_left_out(accelerator: Accelerator, images: dict[str, str]) -> None:
    """Name the images that have no sample, whether their dataset was built now or earlier."""
    if images:
        named = shorten([f"{name} ({reason})" for name, reason in images.items()])
        say(accelerator, f"Left out {len(images)} images that cannot be read: {named}.")


class EpochProgress:
    """The batches of one epoch as they are done; `speed` is in images/s over all processes."""

    def __init__(self, accelerator: Accelerator, epoch: int, total: int, done: int):
        terminal = sys.stderr.isatty()
        self.accelerator, self.epoch, self.total, self.done = accelerator, epoch, total, done
        quiet = not accelerator.is_main_process or not terminal
        self.bar = tqdm(total=total, initial=done, desc=f"epoch {epoch + 1}", disable=quiet, leave=False)
        self.lines = not terminal
        self.first, self.images, self.started = done, 0, time.perf_counter()
        self.said = self.started

    @property
    def speed(self) -> float:
        """Images a second since this epoch started or was resumed."""
        return self.images / (time.perf_counter() - self.started)

    def advance(self, images: int) -> None:
        """Count one batch of so many images on each process."""
        self.images += images * self.accelerator.num_processes
        self.done += 1
        self.bar.update()

    def show(self, loss: float) -> None:
        """Show the loss of a step and the speed."""
        self.bar.set_postfix(loss=f"{loss:.3f}", images_per_s=f"{self.speed:.0f}")
        now = time.perf_counter()
        if self.lines and now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            left = (now - self.started) * (self.total - self.done) / max(self.done - self.first, 1)
            say(
                self.accelerator,
                f"epoch {self.epoch + 1}: batch {self.done} of {self.total}, loss {loss:.4f}, {self.speed:.0f} images/s, "
                f"{left / 60:.0f} minutes to the end of the epoch",
            )

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()
