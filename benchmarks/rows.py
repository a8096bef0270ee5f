"""The table: what is compared with what, what is to be reached, and how it is printed."""

from dataclasses import dataclass

from benchmarks.measure import MEDIAPIPE

# Images a second that one H200 is to reach; see benchmarks/gpu.py.
GPU_TARGETS = {"training with augmentation": 20_000, "inference": 80_000}


@dataclass(frozen=True)
class Row:
    """One line of the table; all ways of the rows of a `group` take turns with each other.

    The figure is the time of `against` over that of `ours`, if there is `against`; otherwise the time of `ours` in seconds,
    or its peak memory in MB.  `beside` are further ways that stand under the line without a target.
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
    clock: str | None = None  # whatever the table's is


def rows(bf16: bool) -> list[Row]:
    """All rows, in the order of the table; ours use bf16 if the processor is fast at it, with float32 beside it."""
    fast, slow = ("bf16", "float32") if bf16 else ("float32", "bf16")
    one, other, onnx, decoding = f"predict:{fast}:1", f"predict:{slow}:1", "predict:onnxruntime:1", "decoding:channels_last"
    epoch, step, plain_step, plain_samples = f"epoch:{fast}", f"step:{fast}", "step:reference", "samples:reference"
    batch = (f"predict:{slow}:32", "predict:onnxruntime:32")
    return [
        Row("heatmaps", "heatmaps", "heatmap targets, a sample", "heatmaps:ours", "heatmaps:reference", 50),
        Row("first_samples", "samples", "samples served, first epoch", "samples:first", plain_samples, 4, clock="processor"),
        Row("later_samples", "samples", "samples served, later epochs", "samples:later", plain_samples, 15, clock="processor"),
        Row("epoch", "training", "training epoch with its data", epoch, "epoch:reference", 3.5, beside=(f"epoch:{slow}",)),
        Row("epoch_over_step", "training", "that epoch's rate over the bare step's", epoch, step, 0.9),
        Row("step", "training", "bare training step", step, plain_step, beside=(f"step:{slow}",)),
        Row("plain_loop", "training", "the reference's step, a plain loop's", plain_step, "step:bare", 0.9),
        Row("one_hand", "one_hand", "one hand, jpg to keypoints", one, "predict:reference:1", 2, beside=(other, onnx)),
        Row("one_hand_mediapipe", "one_hand", "one hand, MediaPipe Hands", one, MEDIAPIPE, 3, beside=(other, onnx)),
        Row("batch_32", "batch", "32 hands, jpg to keypoints", f"predict:{fast}:32", "predict:reference:32", 2.5, beside=batch),
        Row("decoding", "decoding", "decoding (local), a hand", f"{decoding}:32", at_most=0.15e-3,
            beside=("decoding:contiguous:32", f"{decoding}:1")),
        Row("memory_predict", "one_hand", "peak memory of prediction", other, at_most=700, beside=(one, onnx), memory=True),
        Row("memory_train", "training", "peak memory of training, batch 48", epoch, at_most=3000, memory=True),
        Row("start", "start", "import to first prediction", "start:torch", at_most=5.0),
        Row("start_onnx", "start", "the same, onnxruntime", "start:onnx", at_most=1.0),
    ]  # fmt: skip


def verdict(row: Row, figures: dict[str, dict], clock: str) -> dict:
    """What the row's ways came to: a line for `ours` and for each of `beside`, and whether the target is reached."""
    result = {"what": row.what, "clock": clock, "at_least": row.at_least, "at_most": row.at_most, "memory": row.memory}
    failed = [figures[name]["failed"] for name in (row.ours, row.against) if name and "failed" in figures[name]]
    if failed:
        return {**result, "lines": [], "verdict": f"not measured: {'; '.join(failed)}"}
    lines = []
    for name in (row.ours, *row.beside):
        if "failed" in figures[name]:
            continue
        line = {"ours": name, "times": figures[name]["times"], "peak_mb": figures[name]["peak_mb"]}
        value = line["peak_mb"] if row.memory else line["times"][1]
        if row.against:
            line |= {"against": row.against, "its_times": figures[row.against]["times"]}
            value = line["its_times"][1] / value
        lines.append({**line, "value": value})
    value, low, high = lines[0]["value"], row.at_least or 0, row.at_most or float("inf")
    targeted = row.at_least is not None or row.at_most is not None
    return {**result, "lines": lines, "verdict": ("reached" if low <= value <= high else "missed") if targeted else ""}


def duration(seconds: float) -> str:
    """With three digits and a unit."""
    size, unit = next(((size, unit) for size, unit in ((1.0, "s"), (1e-3, "ms")) if seconds >= size), (1e-6, "us"))
    return f"{seconds / size:.3g} {unit}"


def table(results: dict) -> str:
    """The rows that were measured, as Markdown; times are a median and its quartiles."""
    lines = ["| what | ours | against | figure | target | |", "|---|---|---|---|---|---|"]

    def cell(name: str, times: list[float] | None) -> str:
        return f"`{name}`" + (" {1} ({0} - {2})".format(*map(duration, times)) if times else "")

    for row in results["rows"].values():
        show = (lambda value: f"{value:.0f} MB") if row["memory"] else duration
        target = f"{row['at_least']:g} x" if row["at_least"] else show(row["at_most"]) if row["at_most"] else ""
        labels = (row["what"], target, row["verdict"])
        for line in row["lines"] or [None]:
            ours = against = figure = ""
            if line:
                ours = cell(line["ours"], None if row["memory"] else line["times"])
                against = cell(line["against"], line["its_times"]) if "against" in line else ""
                figure = f"{line['value']:.3g} x" if against else show(line["value"])
            lines.append("| {} | {} | {} | {} | {} | {} |".format(labels[0], ours, against, figure, *labels[1:]))
            labels = ("", "", "")
    unmeasured = [
        {"what": what, "figure": "", "target": f"{wanted:,} images/s", "verdict": "not measured: `--gpu`"}
        for what, wanted in GPU_TARGETS.items()
    ]
    for row in results["gpu"].get("rows", unmeasured):
        lines.append(f"| one GPU, {row['what']} | | | {row['figure']} | {row.get('target', '')} | {row.get('verdict', '')} |")
    return "\n".join(lines)
