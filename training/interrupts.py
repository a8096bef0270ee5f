"""SIGTERM and Ctrl-C end a run after its step, with a checkpoint, on all processes together."""

import os
import signal
import sys

from accelerate import Accelerator


def trigger_on_signals(accelerator: Accelerator) -> list[int]:
    """Let SIGTERM and the first Ctrl-C set the accelerator's trigger; a second Ctrl-C ends the program at once.

    Returns a list that will hold the signals which this process received.
    """
    received = []

    def receive(number: int, frame) -> None:
        if received and number == signal.SIGINT:
            os._exit(128 + number)  # at once: what is half-written is never taken for whole
        received.append(number)
        accelerator.set_trigger()
        if accelerator.is_main_process:  # past the buffers of `print`, which the signal may have interrupted
            name = signal.Signals(number).name
            text = f"{name}: finishing the step and writing a checkpoint; Ctrl-C again stops at once.\n"
            os.write(sys.stdout.fileno(), text.encode())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, receive)
    return received
