"""The table: what is measured together, what is compared with what, and what is to be reached."""

from dataclasses import dataclass

MEDIAPIPE = "mediapipe"
# Images a second that one H200 is to reach; see benchmarks/gpu.py.
GPU_TARGETS = {"training with augmentation": 20_000, "inference": 80_000}


@dataclass(frozen=True)
class Group:
    """Ways that take turns with each other, for about `seconds`."""

    ways: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Where `against` is given, the figure is that way's time over that of `ours`; else it is the time of `ours` in seconds,
    or its peak memory in MB.  `beside` are further ways that stand under the line without a target.  Rows about one core
    name the clock `processor`, whatever the table's.
    """

    name: str
    group: str
    what: str
    ours: str
    against: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    beside: tuple[str, ...] = ()
    memory: bool = False
    clock: str | None = None


def groups(bf16: bool) -> dict[str, Group]:
    """What is measured together; our ways use bf16 where the processor is fast at it, and float32 beside it."""
    fast, slow = int(bf16), int(not bf16)
    return {
        "heatmaps": Group(("ours.heatmaps", "reference.heatmaps"), 6),
        "samples": Group(("ours.first_samples", "ours.later_samples", "reference.samples"), 15),
        "training": Group(
            (f"ours.epoch:48:{fast}", f"ours.epoch:48:{slow}", f"ours.step:48:{fast}", f"ours.step:48:{slow}",
             "reference.epoch", "reference.step", "reference.bare_loop"), 95,
        ),
        "one_hand": Group(
            (f"ours.predict:1:{fast}", f"ours.predict:1:{slow}", "ours.predict_onnx:1", "reference.predict:1", MEDIAPIPE),
            15,
        ),
        "batch": Group(
            (f"ours.predict:32:{fast}", f"ours.predict:32:{slow}", "ours.predict_onnx:32", "reference.predict:32"), 15,
        ),
        "decoding": Group(("ours.decoding:32:1", "ours.decoding:32:0", "ours.decoding:1:1"), 3),
        "start": Group(("ours.first_prediction", "ours.first_prediction:1"), 12),
    }  # fmt: skip


def rows(bf16: bool) -> list[Row]:
    """All rows, in the order of the table."""
    fast, slow = int(bf16), int(not bf16)
    one, other, onnx = f"ours.predict:1:{fast}", f"ours.predict:1:{slow}", "ours.predict_onnx:1"
    epoch, step = f"ours.epoch:48:{fast}", f"ours.step:48:{fast}"
    batch, batch_beside = f"ours.predict:32:{fast}", (f"ours.predict:32:{slow}", "ours.predict_onnx:32")
    decoding_beside = ("ours.decoding:32:0", "ours.decoding:1:1")
    return [
        Row("heatmaps", "heatmaps", "heatmap targets, a sample", "ours.heatmaps", "reference.heatmaps", 50),
        Row("first_samples", "samples", "samples served, first epoch", "ours.first_samples", "reference.samples", 4,
            clock="processor"),
        Row("later_samples", "samples", "samples served, later epochs", "ours.later_samples", "reference.samples", 15,
            clock="processor"),
        Row("epoch", "training", "training epoch with its data", epoch, "reference.epoch", 3.5,
            beside=(f"ours.epoch:48:{slow}",)),
        Row("epoch_over_step", "training", "that epoch's rate over the bare step's", epoch, step, 0.9),
        Row("step", "training", "bare training step", step, "reference.step", beside=(f"ours.step:48:{slow}",)),
        Row("plain_loop", "training", "the reference's step, a plain loop's", "reference.step", "reference.bare_loop", 0.9),
        Row("one_hand", "one_hand", "one hand, jpg to keypoints", one, "reference.predict:1", 2, beside=(other, onnx)),
        Row("one_hand_mediapipe", "one_hand", "one hand, MediaPipe Hands", one, MEDIAPIPE, 3, beside=(other, onnx)),
        Row("batch_32", "batch", "32 hands, jpgs to keypoints", batch, "reference.predict:32", 2.5, beside=batch_beside),
        Row("decoding", "decoding", "decoding (local), a hand", "ours.decoding:32:1", at_most=0.15e-3,
            beside=decoding_beside),
        Row("memory_predict", "one_hand", "peak memory of prediction", other, at_most=700, beside=(one, onnx), memory=True),
        Row("memory_train", "training", "peak memory of training, batch 48", epoch, at_most=3000, memory=True),
        Row("start", "start", "import to first prediction", "ours.first_prediction", at_most=5.0),
        Row("start_onnx", "start", "the same, onnxruntime", "ours.first_prediction:1", at_most=1.0),
    ]  # fmt: skip


def verdict(row: Row, figures: dict[str, dict], clock: str) -> dict:
    """What the row's ways came to: one line for `ours` and each of `beside`, and whether the target is reached."""
    clock = row.clock or clock
    failures = {name: figure["failed"] for name, figure in figures.items() if "failed" in figure}
    figures = {name: figure for name, figure in figures.items() if name not in failures}
    result = {"what": row.what, "clock": clock, "at_least": row.at_least, "at_most": row.at_most}
    against = figures.get(row.against)
    lines = []
    for name in (row.ours, *row.beside):
        if name not in figures or (row.against and against is None):
            continue
        line = {"ours": name, "times": figures[name][clock], "peak_mb": figures[name]["peak_mb"]}
        if against:
            line |= {"against": row.against, "its_times": against[clock]}
        line["value"] = (
            line["peak_mb"] if row.memory else against[clock][1] / line["times"][1] if against else line["times"][1]
        )
        lines.append(line)
    result |= {"memory": row.memory, "lines": lines}
    missing = [name for name in (row.ours, row.against) if name and name not in figures]
    if missing:
        return {**result, "verdict": "not measured: " + "; ".join(failures.get(name, name) for name in missing)}
    if row.at_least is None and row.at_most is None:
        return {**result, "verdict": ""}
    value = lines[0]["value"]
    reached = value >= row.at_least if row.at_least is not None else value <= row.at_most
    return {**result, "verdict": "reached" if reached else "missed"}
