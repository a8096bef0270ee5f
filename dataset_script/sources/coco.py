"""The user's own photographs as a source: one COCO keypoint file and a folder."""

from dataclasses import dataclass
from pathlib import Path

from dataset_script.coco import CocoHands
from dataset_script.hand_crops import HandCrops
from dataset_script.sources.base import UNKNOWN, Description, FileOptions, Rule, Source, Splits, Terms, first_rows, option


@dataclass(frozen=True)
class CocoOptions(FileOptions):
    """Where the photographs are, and how many are held out."""

    annotations: str | None = option(None, "own photographs: a COCO keypoint file; docs/own_data.md has others")
    images: str | None = option(None, "own photographs: their folder (default: images/ beside the file, or its folder)")
    validation_share: float = option(0.2, "own photographs: share that is held out for validation and test")


class CocoSource(Source):
    """Annotated photographs of the user's own.  Validation and test are the same held-out photographs."""

    name = "coco"
    Options = CocoOptions
    defaults = {"epochs": 50, "batch_size": 16, "augmentation": 1.0}
    places = ("cache_dir", "annotations", "images")
    same_validation_and_test = True

    @classmethod
    def is_named_by(cls, options) -> bool:
        return bool(options.annotations)

    @classmethod
    def rules(cls, args) -> list[Rule]:
        return [(("validation_share",), not args.eval_only, "a training on --annotations has it")]

    @classmethod
    def check(cls, options) -> None:
        if not options.annotations:
            raise ValueError("--dataset coco has no --annotations: name the COCO keypoint file, and --images.")

    def load(self) -> Splits:
        options = self.options
        share = 0.0 if self.eval_only else options.validation_share
        builder = CocoHands(
            options.annotations,
            options.images,
            validation_share=share,
            max_unreadable_share=options.max_unreadable_share,
            cache_dir=options.cache_dir,
        )
        rows = builder.build()
        self._report = builder.report()

        def crops(chosen) -> HandCrops:
            return HandCrops(chosen, self.image_size, box_fill=self.box_fill, cache_dir=self.cache)

        if self.eval_only:
            (everything,) = rows.values()
            everything = first_rows(everything, options.test_samples)
            groups = everything["source"][:]
            groups = groups if len(set(groups)) > 1 else None
            return Splits(None, None, crops(everything), groups, "source", left_out=builder.left_out())
        if missing := {"train", "validation"} - rows.keys():
            raise ValueError(
                f"{options.annotations} leaves no photograph for {' and '.join(sorted(missing))} when --validation_share "
                f"{share:g} of them is held out: annotate two or more, or give another share."
            )
        return Splits(
            crops(first_rows(rows["train"], options.train_samples)),
            crops(first_rows(rows["validation"], options.validation_samples)),
            crops(first_rows(rows["validation"], options.test_samples)),
            left_out=builder.left_out(),
        )

    def summary(self) -> str:
        self.splits()
        return self._report.sentence()

    def describe(self) -> Description:
        name = Path(self.options.annotations).name
        terms = f". {self.options.credits}" if self.options.credits else ", whose terms are not stated."
        return Description(
            name=name,
            data=f"Annotated hands of the trainer's own photographs ({name}){terms}",
            limits="It knows the photographs that it was trained on: check it on others before you rely on it.",
            pictures="The photographs are the trainer's own.",
            private=True,
        )

    def terms(self) -> Terms:
        return Terms(UNKNOWN)  # the trainer states them in the card
