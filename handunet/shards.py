"""Many photographs shared among processes and machines, and gone on with after a kill.

Each process answers the sources whose name falls to it by a hash, so that none needs to know of the others.  It writes
answers into `partial-PROCESS-NUMBER.jsonl`, one at a time, and turns each `ANSWERS_IN_A_SHARD` of them into
`keypoints-PROCESS-NUMBER.parquet`.  A run that goes on reads the names in all of these files, and does the others.  So nothing
is done twice, whatever ended the run and however many processes go on.  A film counts when its last frame is written.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from handunet.answers import Answers, answer_of, writing
from handunet.files import written_whole

FORMATS = ("parquet", "jsonl")
ANSWERS_IN_A_SHARD = 5000
ANSWERS_IN_MEMORY = 500
SETTINGS = "settings.json"
END = "end"  # the key of the line that a film ends with


@dataclass(frozen=True)
class Share:
    """Which of `count` processes this one is: `number`, from 0."""

    number: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> "Share":
        """As `accelerate launch` and `torchrun` tell a process."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def has(self, name: str) -> bool:
        """Whether the source of this name is for this process."""
        return int.from_bytes(digest(name)[:8]) % self.count == self.number


def digest(name: str) -> bytes:
    """A short stand-in for a name."""
    return hashlib.blake2b(as_text(name).encode(), digest_size=12).digest()


def as_text(name: str) -> str:
    """A name as UTF-8 can hold it: with escapes for bytes that are none."""
    return name.encode("utf-8", "backslashreplace").decode()


class Shards:
    """The answers of one process, in shards.

    Raises `ValueError` if the folder was begun with other settings, or if pyarrow is missing.
    """

    def __init__(self, folder: Path, format: str, share: Share, settings: dict):
        if format == "parquet":
            check_pyarrow()
        self.folder, self.format, self.share, self.settings, self.path = folder, format, share, settings, folder
        self.log, self.in_log, self.film = None, 0, None
        self.number = 0
        self.done = self.finish_earlier_runs() if folder.is_dir() else set()

    def finish_earlier_runs(self) -> set[bytes]:
        """Turn what a stopped run left to this process into shards.  Returns the names that are done, as digests."""
        check_settings(self.folder, self.settings)
        for log in sorted(self.folder.glob("partial-*.jsonl")):
            process, number = map(int, log.stem.split("-")[1:])
            if process % self.share.count == self.share.number:
                self.finish(log, self.shard(process, number))
        while True:
            done = set()
            try:
                for file in [*self.folder.glob(f"keypoints-*.{self.format}"), *self.folder.glob("partial-*.jsonl")]:
                    done |= {digest(name) for name in finished_names(file) if self.share.has(name)}
            except FileNotFoundError:  # another process has just finished it
                continue
            taken = [int(file.stem.split("-")[2]) for file in self.folder.glob(f"keypoints-{self.share.number:05d}-*")]
            self.number = max(taken, default=-1) + 1
            return done

    def is_done(self, name: str) -> bool:
        """Whether an earlier run answered the source of this name, or this one did."""
        return digest(name) in self.done

    def add(self, photo: str, hands: list[dict], frame: int | None = None, seconds: float | None = None, **_) -> None:
        """Write the hands of one photograph or frame; `OutputError` if that is not possible."""
        with writing(self.folder):
            if self.log is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_settings(self.folder, self.settings, self.share.number)
                self.log = Answers(self.folder, "jsonl")
                self.log.path = self.folder / f"partial-{self.share.number:05d}-{self.number:05d}.jsonl"
                self.log.file = self.log.path.open("wb", buffering=0)
            self.log.end = self.log.write(self.log.end, json.dumps(answer_of(photo, hands, frame, seconds)) + "\n")
        self.in_log += 1
        if frame is None:
            self.end(photo)

    def end(self, name: str, is_film: bool = False) -> None:
        """All of a source is written."""
        if is_film and self.log is not None:
            with writing(self.folder):
                self.log.end = self.log.write(self.log.end, json.dumps({"photo": name, END: True}) + "\n")
        self.done.add(digest(name))
        if self.in_log >= ANSWERS_IN_A_SHARD:
            self.close()

    def close(self) -> None:
        """Turn the answers so far into a shard."""
        if self.log is not None:
            self.log.close()
            with writing(self.folder):
                self.finish(self.log.path, self.shard(self.share.number, self.number))
            self.log, self.in_log, self.number = None, 0, self.number + 1

    def shard(self, process: int, number: int) -> Path:
        """The path of a shard."""
        return self.folder / f"keypoints-{process:05d}-{number:05d}.{self.format}"

    def finish(self, log: Path, shard: Path) -> None:
        """Turn a log into a shard, without the frames of a film that was not ended."""
        names = set(finished_names(log))
        if names and not shard.exists():
            kept = (answer for answer in lines(log) if END not in answer and answer["photo"] in names)
            with written_whole(shard) as partial:
                write_parquet(partial, kept) if self.format == "parquet" else write_lines(partial, kept)
        log.unlink(missing_ok=True)


def lines(log: Path) -> Iterator[dict]:
    """The answers in a file of lines; one that was not written whole is left out."""
    with log.open(encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def finished_names(file: Path) -> Iterator[str]:
    """The names of the photographs and films that a shard or a log has all of."""
    if file.suffix == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(file) as shard:
            for batch in shard.iter_batches(columns=["photo"]):
                yield from batch.column("photo").to_pylist()
        return
    is_log = file.name.startswith("partial-")
    for answer in lines(file):
        if not is_log or "frame" not in answer:  # of a film in a log, the line at its end
            yield answer["photo"]


def write_lines(path: Path, answers: Iterator[dict]) -> None:
    """Write answers as lines of JSON."""
    with path.open("w", encoding="utf-8", errors="surrogateescape") as file:
        for answer in answers:
            file.write(json.dumps(answer) + "\n")


def check_pyarrow() -> None:
    """`ValueError` without pyarrow."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--format parquet needs pyarrow ({error}): pip install pyarrow, or take --format jsonl") from None


def write_parquet(path: Path, answers: Iterator[dict]) -> None:
    """Write answers as a parquet file: `photo`, `frame`, `time`, `hands`."""
    import pyarrow
    from pyarrow import parquet

    number, text = pyarrow.float32(), pyarrow.string()
    keypoint = pyarrow.struct([("name", text), ("x", number), ("y", number), ("score", number)])
    box = pyarrow.struct([(name, number) for name in ("xmin", "ymin", "xmax", "ymax")])
    hand = [("id", pyarrow.int64()), ("label", text), ("score", number), ("hand_score", number), ("box", box)]
    hand = pyarrow.struct([*hand, ("keypoints", pyarrow.list_(keypoint))])
    columns = [("photo", text), ("frame", pyarrow.int64()), ("time", pyarrow.float64()), ("hands", pyarrow.list_(hand))]
    schema = pyarrow.schema(columns)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        batch = []
        for answer in answers:
            batch.append(answer)
            if len(batch) == ANSWERS_IN_MEMORY:
                writer.write_table(as_table(batch, schema))
                batch = []
        writer.write_table(as_table(batch, schema))


def as_table(answers: list[dict], schema):
    """Answers as a table."""
    import pyarrow

    return pyarrow.Table.from_pylist([{**answer, "photo": as_text(answer["photo"])} for answer in answers], schema=schema)


def check_settings(folder: Path, settings: dict) -> None:
    """Raise `ValueError` if a run with other settings has written into the folder."""
    try:
        begun = json.loads((folder / SETTINGS).read_text())
    except FileNotFoundError:
        return
    except ValueError:
        raise ValueError(f"{folder / SETTINGS} is damaged: name another --output") from None
    for name, value in settings.items():
        if begun.get(name) != value:
            raise ValueError(
                f"--output {folder} was begun with {name} {begun.get(name)!r}, not {value!r}: name another folder, or go on "
                "with the same options"
            )


def write_settings(folder: Path, settings: dict, number: int) -> None:
    """Note what the answers in the folder were made with."""
    if not (folder / SETTINGS).exists():
        partial = folder / f".partial.{number}.{SETTINGS}"
        partial.write_text(json.dumps(settings, indent=1) + "\n")
        partial.replace(folder / SETTINGS)
