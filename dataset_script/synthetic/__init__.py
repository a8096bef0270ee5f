"""Synthetic hands: modelled, posed and drawn without any data (see :mod:`.synthetic_hands`)."""

from dataset_script.synthetic.synthetic_hands import SyntheticHands

__all__ = ["SyntheticHands"]
