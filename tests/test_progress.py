"""What a long run says while it works."""

import io

from handunet.progress import Progress, clock_time


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self):
        return self.now


def test_without_a_terminal_there_is_a_line_a_minute():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(400, stream=stream, clock=clock)
    for second in range(1, 191):
        clock.now = second
        progress.step()
    assert stream.getvalue().splitlines() == [
        "60 of 400 images, 1.0 images/s, 5:40 left",
        "120 of 400 images, 1.0 images/s, 4:40 left",
        "180 of 400 images, 1.0 images/s, 3:40 left",
    ]


def test_on_a_terminal_one_line_is_written_over_and_makes_room_for_others(capsys):
    stream, clock = Terminal(), Clock()
    progress = Progress(stream=stream, clock=clock)
    progress.step()
    assert stream.getvalue() == ""  # a short run shows nothing
    clock.now = 2.0
    progress.step(99)
    progress.say("a line")
    assert stream.getvalue() == "\r\x1b[K100 images, 50.0 images/s\r\x1b[K"
    assert capsys.readouterr().out == "a line\n"


def test_more_may_come_than_was_thought():
    progress = Progress(1, stream=io.StringIO(), clock=Clock())
    progress.expect(1999)
    assert progress.text() == "0 of 2,000 images, 0.0 images/s, 0:00 left"
    assert [clock_time(seconds) for seconds in (7, 750, 11045)] == ["0:07", "12:30", "3:04:05"]
