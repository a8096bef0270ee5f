"""What a long run says while it works: a line that is written over on a terminal, and elsewhere a line a minute."""

import sys
import time

SECONDS_ON_A_TERMINAL = 0.2
SECONDS_ELSEWHERE = 60.0
SECONDS_BEFORE_THE_FIRST = 1.0  # on a terminal, so that short runs show nothing
CLEAR = "\r\x1b[K"


class Progress:
    """Counts images: how many of how many, images/s, and the time left.

    total: how many there will be; None if nobody knows.  `expect` adds to it.
    """

    def __init__(self, total: int | None = None, *, stream=None, clock=time.monotonic):
        self.total, self.count = total, 0
        self.stream, self.clock = stream or sys.stderr, clock
        self.is_terminal, self.is_shown = self.stream.isatty(), False
        self.begin()

    def begin(self) -> None:
        """The work begins now, and not when the networks were loaded."""
        self.begun = self.clock()
        self.next = self.begun + (SECONDS_BEFORE_THE_FIRST if self.is_terminal else SECONDS_ELSEWHERE)

    def expect(self, more: int) -> None:
        """So many images more will come than was thought."""
        if self.total is not None:
            self.total += more

    def step(self, count: int = 1) -> None:
        """So many images are done."""
        self.count += count
        now = self.clock()
        if now < self.next:
            return
        self.next = now + (SECONDS_ON_A_TERMINAL if self.is_terminal else SECONDS_ELSEWHERE)
        text = self.text()
        self.stream.write(CLEAR + text if self.is_terminal else text + "\n")
        self.stream.flush()
        self.is_shown = self.is_terminal

    def text(self) -> str:
        """Such as "120 of 4,000 images, 35.2 images/s, 1:50 left"."""
        seconds = max(self.clock() - self.begun, 1e-9)
        rate = self.count / seconds
        if self.total is None:
            return f"{self.count:,} images, {rate:.1f} images/s"
        left = max(self.total - self.count, 0) / rate if rate else 0.0
        return f"{self.count:,} of {self.total:,} images, {rate:.1f} images/s, {clock_time(left)} left"

    def say(self, text: str) -> None:
        """Print a line on standard output at once, whatever characters it has."""
        self.clear()
        print(shown(text), flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self.is_shown:
            self.stream.write(CLEAR)
            self.stream.flush()
            self.is_shown = False


def clock_time(seconds: float) -> str:
    """Minutes and seconds, from an hour on hours, too: "0:07", "12:30", "3:04:05"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def shown(text: str) -> str:
    """`text` as any terminal prints it: line breaks, control characters and undecodable bytes as escapes, shortened."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return text if len(text) <= 500 else f"{text[:480]}... ({len(text)} characters)"
