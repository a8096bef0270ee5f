"""FreiHAND as a source: photographs of right hands, on a green screen or on four backgrounds."""

from dataclasses import dataclass
from typing import Literal

from dataset_script.freihand import FreiHAND
from dataset_script.hand_crops import HandCrops
from dataset_script.sources.base import (
    RESEARCH_ONLY,
    Description,
    FileOptions,
    Rule,
    Source,
    Splits,
    Terms,
    first_rows,
    option,
)  # fmt: skip

PAGE = "https://lmb.informatik.uni-freiburg.de/projects/freihand/"
CITATION = """@inproceedings{freihand,
  title = {FreiHAND: A Dataset for Markerless Capture of Hand Pose and Shape from Single RGB Images},
  author = {Zimmermann, Christian and Ceylan, Duygu and Yang, Jimei and Russell, Bryan and Argus, Max and Brox, Thomas},
  booktitle = {ICCV},
  year = {2019}
}
"""


@dataclass(frozen=True)
class FreiHANDOptions(FileOptions):
    """Where FreiHAND is, and which of its images are read."""

    data_dir: str | None = option(None, "FreiHAND: the extracted folder or the official zip")
    backgrounds: Literal["raw", "all"] = option("raw", "FreiHAND: the raw photographs, or all four background versions")
    split: Literal["train", "validation", "test", "evaluation"] = option("test", "FreiHAND: what --eval_only scores")


class FreiHANDSource(Source):
    """FreiHAND (Zimmermann et al., ICCV 2019)."""

    name = "freihand"
    Options = FreiHANDOptions
    defaults = {"epochs": 100, "batch_size": 32, "augmentation": 1.0}
    places = ("cache_dir", "data_dir")

    @classmethod
    def is_named_by(cls, options) -> bool:
        return bool(options.data_dir)

    @classmethod
    def rules(cls, args) -> list[Rule]:
        return [(("split",), args.eval_only, "--eval_only with --data_dir has it")]

    @classmethod
    def check(cls, options) -> None:
        if not options.data_dir:
            raise ValueError("--dataset freihand has no --data_dir: name the folder or zip of FreiHAND.")

    def load(self) -> Splits:
        options = self.options
        builder = FreiHAND(
            options.data_dir,
            options.backgrounds,
            max_unreadable_share=options.max_unreadable_share,
            cache_dir=options.cache_dir,
        )
        splits = builder.build()

        def rows(name: str, count: int | None):
            if name not in splits:
                raise ValueError(
                    f"{options.data_dir} has no frame of the {name} split (it has {', '.join(splits)}): training needs "
                    "FreiHAND's frames 0-25999 (train), 26000-30999 (validation) and 31000-32559 (test); --eval_only needs "
                    "those of its --split."
                )
            return first_rows(splits[name], count)

        def crops(chosen) -> HandCrops:
            return HandCrops(chosen, self.image_size, box_fill=self.box_fill, cache_dir=self.cache)

        tested = rows(options.split if self.eval_only else "test", options.test_samples)
        result = Splits(None, None, crops(tested), left_out=builder.left_out())
        result.test_groups = tested["background"][:] if options.backgrounds == "all" else None
        if not self.eval_only:
            result.train = crops(rows("train", options.train_samples))
            result.validation = crops(rows("validation", options.validation_samples))
        return result

    def describe(self) -> Description:
        raw = self.options.backgrounds == "raw"
        return Description(
            name=f"FreiHAND ({self.options.backgrounds})",
            data=(
                f"Trained on [FreiHAND]({PAGE}) (Zimmermann et al., ICCV 2019). Its terms allow research only and prohibit "
                "commercial use. That holds for these weights too."
            ),
            limits=(
                "FreiHAND's raw photographs have a green screen: check the model on your own backgrounds."
                if raw
                else "FreiHAND's backgrounds are put in by computer: check the model on photographs of your own."
            ),
            pictures="The photographs are FreiHAND's, for research only.",
        )

    def terms(self) -> Terms:
        return Terms("other", RESEARCH_ONLY, PAGE, datasets=("freihand",), citation=CITATION)
