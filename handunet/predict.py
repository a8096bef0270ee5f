"""Find the hands of photographs and films, draw them, and write their keypoints.

    handunet photo.jpg                                    # all hands, left and right
    handunet holiday.mp4                                  # a film with skeletons, with its sound
    handunet --camera 0                                   # live, in a window
    handunet photos 'more/**/*.jpg' --output drawn        # a folder with its subfolders, and a pattern
    find . -name '*.jpg' | handunet - --format csv        # names from standard input, one in a line
    handunet photo.jpg --boxes 120,80,200,180 --left      # a left hand in the box x,y,width,height; nothing is searched for
    handunet photo.jpg --model outputs/handunet/model     # a model that train.py wrote; needs torch
    handunet photo.jpg --model model.onnx                 # written by `handunet export`; needs no torch

The folder --output gets each photograph with its skeletons drawn over it, and `keypoints.json`.  That lists the hands of
each photograph or frame as the `keypoint-detection` pipeline gives them: label, scores, box, and 21 named keypoints with x, y
(pixels of the upright photograph, x right, y down) and score; in a film also an id that stays with the hand.  Photographs go
through one after another, and each answer is written before the next one is read.  What cannot be read is named at the end,
and the exit status is then 1.

Many photographs, in several processes or on several machines with one disk, and a data set:

    accelerate launch predict.py FOLDER --format parquet --no_drawings
    python predict.py --dataset NAME --split train --column image --format parquet --no_drawings

That writes shards.  The same command goes on after a stop, without doing a photograph twice or losing one.

`--format coco` writes a file of annotations that CVAT and train.py read: docs/own_data.md.
"""

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from handunet import sources
from handunet.answers import COCO_FILE, FORMATS, OutputError, open_answers, writing
from handunet.backends import OWN_MODELS, choose, load
from handunet.files import written_whole
from handunet.progress import Progress, shown
from handunet.shards import FORMATS as SHARED_FORMATS
from handunet.shards import SETTINGS, Shards, Share

MAX_LINES = 20  # with more sources, only the sums are printed
MAX_NAMED = 20  # problems at the end; all of them are in a file, if there are more
PROBLEMS_FILE = "problems.txt"


def parse_box(text: str) -> list[float] | str:
    """`x,y,width,height` in pixels, or "image"."""
    if text == "image":
        return text
    try:
        x, y, width, height = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y,width,height, four numbers in pixels") from None
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a box: width and height must be above 0, all of it finite")
    return [x, y, width, height]


def number_from(low: float, high: float, kind=float) -> Callable[[str], float]:
    """A reader of numbers from `low` to `high`."""

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return value

    return read


def parse(arguments: list[str], program: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given = parser.add_argument_group("what to answer")
    given.add_argument("photos", nargs="*", metavar="PHOTO", help="files, folders, patterns, URLs, or - for a list of names")
    given.add_argument("--camera", metavar="NUMBER", help="a camera, live in a window; with --output it is also written")
    given.add_argument("--dataset", metavar="NAME", help="a data set of the Hub or of a local folder")
    given.add_argument("--split", default="train", help="of --dataset (default: train)")
    given.add_argument("--column", default="image", help="of --dataset that has the images (default: image)")
    given.add_argument("--every", type=number_from(0, 86400), default=0.0, metavar="SECONDS", help="take one frame of a film "
                       "in so many seconds (default: all)")  # fmt: skip
    network = parser.add_argument_group("the networks")
    network.add_argument(
        "--model", help="a folder, an id on the Hub or an ONNX file (default: weights/handunet-base in a clone with torch, "
        "else the small model that comes with the package)"
    )  # fmt: skip
    network.add_argument("--detector", help="the same, of the network that finds hands (default: the model's own)")
    network.add_argument(
        "--backend", choices=("torch", "onnx"), help="library that runs the network (default: the one that the model needs)"
    )
    network.add_argument(
        "--precision", choices=tuple(OWN_MODELS), help="of the model that comes with the package (default: int8 where the "
        "processor multiplies 8-bit integers fast, which is seen on Linux, else float32)"
    )  # fmt: skip
    hands = parser.add_argument_group("what is known of the hands")
    hands.add_argument(
        "--boxes", nargs="+", type=parse_box, metavar="X,Y,W,H", help="their boxes, for each photograph the same, instead of a "
        "search; 'image' if one hand takes about half of each photograph"
    )  # fmt: skip
    side = hands.add_mutually_exclusive_group()
    side.add_argument("--left", action="store_const", dest="side", const="left", help="they are left hands")
    side.add_argument("--right", action="store_const", dest="side", const="right", help="they are right hands")
    hands.add_argument("--max_hands", type=number_from(1, 10**6, int), metavar="N", help="at most so many in a photograph")
    hands.add_argument("--detection_threshold", type=number_from(0, 1), metavar="SCORE", help="leave out found hands "
                       "with a lower `hand_score`")  # fmt: skip
    written = parser.add_argument_group("what to write")
    written.add_argument("--output", help="folder for the drawings and the keypoints (default: predictions)")
    written.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the keypoints (default: json)")
    written.add_argument("--no_drawings", action="store_true", help="write the keypoints only")
    # argparse takes a box that begins with a minus for an option, but not one that begins with a space.
    args = parser.parse_args([f" {word}" if re.match(r"-[\d.]+(e[+-]?\d+)?,", word) else word for word in arguments])
    if sum(map(bool, (args.photos, args.camera is not None, args.dataset))) != 1:
        parser.error("name photographs, films or folders, or give --camera or --dataset")
    if args.boxes and "image" in args.boxes:
        if len(args.boxes) > 1:
            parser.error("--boxes image says where the one hand is: give no other boxes")
        args.boxes = "image"
    args.share = Share.of_this_process()
    if args.share.count > 1 and args.format not in SHARED_FORMATS:
        parser.error(f"{args.share.count} processes write shards: give --format {' or '.join(SHARED_FORMATS)}")
    if args.camera is not None and (args.share.count > 1 or args.format == "parquet"):
        parser.error("--camera is for one process and needs --format json, jsonl, csv or coco")
    try:
        args.backend, args.model = choose(args.model, args.backend, args.precision)
    except ValueError as error:
        parser.error(str(error))
    return args


class Problems:
    """Sentences about what could not be answered.  The first ones are kept; with more, all of them are in a file."""

    def __init__(self, folder: Path):
        self.first, self.count, self.path, self.file = [], 0, folder / PROBLEMS_FILE, None

    def add(self, text: str) -> None:
        """Note a sentence."""
        self.count += 1
        if self.count <= MAX_NAMED:
            self.first.append(shown(text))
            return
        with writing(self.path):
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
                self.file.writelines(f"{line}\n" for line in self.first)
            self.file.write(f"{shown(text)}\n")

    def text(self) -> str:
        """All that is said at the end."""
        if self.file is not None:
            self.file.close()
        more = [f"{self.count - MAX_NAMED} more: {shown(str(self.path))} lists all"] if self.count > MAX_NAMED else []
        return f"{self.count} could not be answered:\n" + "\n".join(f"  {line}" for line in (*self.first, *more))


class Run:
    """What one call of the command does: sources in, answers and drawings out."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.output = Path(args.output or "predictions")
        self.problems = Problems(self.output)
        self.progress, self.hands, self.empty, self.are_told = Progress(), 0, 0, True
        self.answers = self.models = None
        self.dataset = None

    # What to answer

    def waiting(self, problem: Callable[[str], None]) -> Iterator[sources.Source]:
        """The sources of this process that are not done."""
        args = self.args
        if args.dataset:
            found = sources.rows(self.dataset, f"{args.dataset}/{args.split}")
        else:
            is_placed = not args.no_drawings or args.format == "coco"
            found = sources.find(sources.names_of(args.photos), self.output, problem, drawn=is_placed)
        for source in found:
            if self.args.share.has(source.name) and not (self.is_shared and self.answers.is_done(source.name)):
                yield source

    @property
    def is_shared(self) -> bool:
        """Whether the answers are shards."""
        return isinstance(self.answers, Shards)

    def count(self) -> int | None:
        """How many sources there are; None for a list, which can be read only once.

        Raises `ValueError` if a drawing would replace one of them.
        """
        if sources.LIST in self.args.photos:
            return None
        count, inside = 0, set()
        folder = os.path.join(os.path.realpath(self.output), "")
        for source in self.waiting(lambda text: None):
            count += 1
            if source.read is None and os.path.realpath(source.name).startswith(folder):
                inside.add(os.path.realpath(source.name))
        if inside and not self.args.no_drawings:
            drawings = (os.path.realpath(self.drawing(source)) for source in self.waiting(lambda text: None))
            if overwritten := sorted(inside.intersection(drawings)):
                raise ValueError(f"--output {self.output} would write over {', '.join(overwritten[:3])}: name another folder")
        return count

    def drawing(self, source: sources.Source) -> Path:
        """The path of a source's drawing."""
        return self.output / f"{source.place}{'.mp4' if source.is_film else '.png'}"

    # How to answer

    def load(self) -> None:
        """Load the networks."""
        args = self.args
        self.models = load(args.model, args.backend, args.detector, finds=args.boxes is None)

    def find(self, photo) -> list[dict]:
        """The hands of a photograph."""
        from modeling_handunet.hands import find_hands

        return find_hands(self.models, photo, self.args.boxes, self.args.side, **self.search())

    def tracker(self) -> Callable[[object, float], list[dict]]:
        """What answers the frames of one film, given in order with their times in seconds."""
        if self.args.boxes is not None:
            return lambda photo, seconds: self.find(photo)
        from modeling_handunet.tracking import HandTracks

        return HandTracks(self.models, handedness=self.args.side, **self.search())

    def search(self) -> dict:
        """The options of the search for hands."""
        threshold = self.args.detection_threshold
        options = {"max_hands": self.args.max_hands, "detection_threshold": threshold}
        return {name: value for name, value in options.items() if value is not None}

    def run(self) -> None:
        """Answer all sources.

        Raises `ImportError`, `OSError`, `ValueError` or `OutputError` for what makes all, or all others, impossible.
        """
        args = self.args
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"--output {self.output} is a file: name a folder")
        is_gone_on = args.format in SHARED_FORMATS and (self.output / SETTINGS).exists()
        if args.format == "parquet" or args.share.count > 1 or is_gone_on:
            names = ("model", "detector", "boxes", "side", "every", "max_hands", "detection_threshold", "format", "column")
            made_with = {name: getattr(args, name) for name in names}
            self.answers = Shards(self.output, args.format, args.share, made_with)
        else:
            self.answers = open_answers(self.output, args.format)
        if args.dataset:
            self.dataset = sources.open_dataset(args.dataset, args.split, args.column)
        self.progress.total = total = self.count()
        self.are_told = total is not None and total <= MAX_LINES and args.share.count == 1
        with contextlib.ExitStack() as ending:
            ending.callback(self.answers.close)
            ending.callback(self.progress.clear)
            for source in self.waiting(self.problems.add):
                if self.models is None:
                    self.load()
                    self.progress.begin()
                try:
                    self.answer_film(source) if source.is_film else self.answer_photograph(source)
                except (ImportError, OSError, ValueError, MemoryError) as error:
                    self.problems.add(named(str(error) or type(error).__name__, source.name))
        self.say_what_is_done()

    def answer_photograph(self, source: sources.Source) -> None:
        """Find, draw and write the hands of one photograph."""
        from modeling_handunet.images import load_image

        photo = load_image(source.name if source.read is None else source.read())
        hands = self.find(photo)
        if not self.args.no_drawings:
            path = self.drawing(source)
            with writing(path), written_whole(path) as partial:
                self.draw(photo, hands).save(partial, compress_level=1)  # several times as fast as 6
        self.add(source, hands, photo)
        self.tell(source, hands)
        self.progress.step()

    def answer_film(self, source: sources.Source) -> None:
        """Find, draw and write the hands of a film, frame by frame."""
        from handunet.films import Film, FilmWriter

        with Film(source.name) as film:
            writer = None if self.args.no_drawings else FilmWriter(self.drawing(source), film)
            self.progress.expect(max(round(film.frame_count() if not self.args.every else 1), 1) - 1)
            track, begun = self.tracker(), self.progress.count
            sound = writer.add_sound if writer and film.sound is not None else None
            try:
                for frame in film.frames(sound, every=self.args.every):
                    hands = track(frame.image, frame.seconds)
                    if writer:
                        writer.add(self.draw(frame.image, hands), frame.pts)
                    self.add(source, hands, frame.image, frame.number, frame.seconds)
                    self.progress.step()
                if self.is_shared:
                    self.answers.end(source.name, is_film=True)
            finally:
                if writer:
                    writer.close()
        for sentence in film.notes:
            self.progress.say(sentence)
        for sentence in film.troubles:
            self.problems.add(sentence)
        if self.are_told and self.progress.count > begun:
            self.progress.say(f"{source.name}: {self.progress.count - begun} frames")

    def show_camera(self) -> None:
        """Show a camera's picture with its hands until somebody ends it."""
        from handunet import camera
        from handunet.films import FilmWriter

        window, name = camera.Window(), f"camera-{re.sub(r'[^0-9A-Za-z]+', '-', self.args.camera).strip('-')}"
        source = sources.Source(name, name, read=lambda: None)
        is_written = self.args.output is not None
        answers = open_answers(self.output, self.args.format) if is_written else None
        self.answers = answers
        writer = FilmWriter(self.output / f"{name}.mp4", None) if is_written and not self.args.no_drawings else None
        self.load()
        track, milliseconds = self.tracker(), -1
        try:
            for number, (image, seconds) in enumerate(camera.frames(self.args.camera)):
                milliseconds = max(milliseconds + 1, round(seconds * 1000))  # of two frames of one time, a film keeps one
                hands = track(image, seconds)
                drawn = self.draw(image, hands)
                if writer:
                    writer.add(drawn, milliseconds)
                if answers:
                    self.add(source, hands, image, number, round(seconds, 3))
                if not window.show(drawn):
                    break
        except camera.CameraError as error:
            self.problems.add(str(error))
        finally:
            window.close()
            for file in filter(None, (writer, answers)):
                file.close()
        if answers:
            self.say_what_is_done()

    # What to write and to say

    def add(self, source, hands, image, frame: int | None = None, seconds: float | None = None) -> None:
        """Write the hands of one photograph or frame."""
        self.hands += len(hands)
        self.empty += not hands
        is_file = frame is None and source.read is None and not source.name.startswith(sources.URLS)
        place = {"image": image, "place": source.place, "file": source.name if is_file else None}
        self.answers.add(source.name, hands, frame, seconds, **place)

    def draw(self, photo, hands: list[dict]):
        """The photograph with its hands drawn over it, those that are not clear faintly."""
        from modeling_handunet.drawing import draw_hand

        for hand in hands:
            points = [(keypoint["x"], keypoint["y"]) for keypoint in hand["keypoints"]]
            scores = [keypoint["score"] for keypoint in hand["keypoints"]]
            photo = draw_hand(photo, points, scores, label=None if is_clear(hand) else f"no clear {hand['label']}")
        return photo

    def tell(self, source: sources.Source, hands: list[dict]) -> None:
        """Say what was found, if there are not too many photographs."""
        if not self.are_told:
            return
        name = self.drawing(source).name
        hint = "" if self.args.boxes and self.args.boxes != "image" else " Give the hand's box with --boxes."
        if not hands:
            self.progress.say(f"{name}: no hand found." + ("" if self.args.boxes == [] else hint))
        if len(hands) > MAX_LINES:
            self.progress.say(f"{name}: {len(hands)} hands, {sum(map(is_clear, hands))} of them clear.")
            return
        for hand in hands:
            if is_clear(hand):
                self.progress.say(f"{name}: {hand['label']}, score {hand['score']:.2f}")
            else:
                self.progress.say(f"{name}: no clear {hand['label']}, score only {hand['score']:.2f}.{hint}")

    def say_what_is_done(self) -> None:
        """The last line, which says where the answers are."""
        share, where = self.args.share, shown(str(self.output))
        who = f"Process {share.number + 1} of {share.count}: " if share.count > 1 else ""
        if not self.are_told and self.progress.count:
            self.progress.say(f"{who}{self.progress.text()}; {self.hands:,} hands, {self.empty:,} images without one.")
        if self.args.format == "coco" and self.answers.count:
            images = self.answers.folder_of_photographs
            self.progress.say(f"{COCO_FILE} is in {where}. Correct it, and train on it: accelerate launch train.py "
                              f"--dataset coco --annotations {self.output / COCO_FILE} --images {images}")  # fmt: skip
            if self.answers.unclear:
                self.progress.say(f"{self.answers.unclear} hands that are not clear are not in it.")
        elif self.progress.count or self.hands or self.empty:
            name = "shards" if self.is_shared else self.answers.path.name
            what = ("Shards" if self.is_shared else f"{name}: keypoints") if self.args.no_drawings else f"Drawings and {name}"
            self.progress.say(f"{what} are in {where}.")
        elif self.is_shared and not self.problems.count:
            self.progress.say(f"{who}all of it is done already: {where}")


def is_clear(hand: dict) -> bool:
    """Whether a person would call it a hand."""
    from modeling_handunet.keypoints import NO_CLEAR_HAND

    return hand["score"] >= NO_CLEAR_HAND


def named(text: str, name: str) -> str:
    """A sentence that names what it is about."""
    return text if name in text or repr(name) in text else f"{name}: {text}"


def main(arguments: list[str] | None = None, program: str = "predict.py") -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for terminals that lack a character of a file's name
    args = parse(sys.argv[1:] if arguments is None else arguments, program)
    failed, run = "", Run(args)
    try:
        run.run() if args.camera is None else run.show_camera()
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ImportError, OSError, ValueError, OutputError) as error:
        failed = f"{program}: {shown(str(error))}"
    except KeyboardInterrupt:
        sys.exit(130)
    if run.problems.count:
        failed = f"{failed}\n" * bool(failed) + f"{program}: {run.problems.text()}"
    if failed:
        sys.exit(failed)
