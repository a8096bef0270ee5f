"""The parts of `train.py`: one file each for the command line, data, augmentation, checkpoints, evaluation, figures and
the saved model.  `train.py` holds the loop and reads top to bottom; nothing here imports it."""
