"""The sources that `train.py` can read.  A new one is a file in this folder and a name in `SOURCES`."""

import dataclasses
from collections.abc import Sequence

from dataset_script.sources.base import Description, Inputs, Source, SourceOptions, Splits, Stream, Terms
from dataset_script.sources.coco import CocoSource
from dataset_script.sources.detection import DetectionInputs, PeopleSource
from dataset_script.sources.freihand import FreiHANDSource
from dataset_script.sources.mixture import Mixture
from dataset_script.sources.photographs import PhotographsSource
from dataset_script.sources.scenes import ScenesSource
from dataset_script.sources.synthetic import SyntheticSource

# --help lists their options in this order.  A run without options reads the first of its task.  A source whose options extend
# another's stands before it.
SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (SyntheticSource, PeopleSource, ScenesSource, FreiHANDSource, CocoSource, PhotographsSource)
}


def make_source(names: Sequence[str], shares: Sequence[float] | None, options, *, validate_on=None, **settings) -> Source:
    """The source of one name, or the [`Mixture`] of several; `settings` as [`Source`] takes them."""
    if len(names) == 1:
        return SOURCES[names[0]](options, **settings)
    judges = validate_on or names
    few = dataclasses.replace(options, validation_samples=1, test_samples=1)  # for a source that is not validated on
    sources = [SOURCES[name](options if name in judges else few, **settings) for name in names]
    return Mixture(sources, shares or [1] * len(names), judges)


__all__ = [
    "SOURCES", "Description", "DetectionInputs", "Inputs", "Mixture", "Source", "SourceOptions", "Splits", "Stream", "Terms",
    "make_source",
]  # fmt: skip
