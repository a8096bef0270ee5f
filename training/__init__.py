"""The parts of `train.py`, one file each: the command line, batches, inputs and targets, optimizer, checkpoints, evaluation,
figures.  `train.py` has the loop and reads from top to bottom; nothing here imports it."""
