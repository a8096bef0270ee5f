"""Measure the table, print it, and write it as JSON with the machine's description.

    python -m benchmarks                                     # all of it: a quarter of an hour
    python -m benchmarks --rows one_hand batch_32            # these rows and those measured with them; the others stay
    python -m benchmarks --list
    python -m benchmarks --gpu                               # the rows of one GPU
    python -m benchmarks --curves batch processes dataset    # scaling curves, with plots beside --output
    python -m benchmarks --tracking FILE                     # take the row on films from what benchmarks.tracking wrote
    python -m benchmarks --print                             # the table in --output; nothing is measured

Needs `pip install -e '.[benchmarks]'`, and MediaPipe in an environment of its own, which is made if it is missing.  The
networks are those of `weights/handunet` and `weights/handunet-detector`.

Ratios are of one run on one machine.  On a machine that has other work, use `--clock processor`: it compares seconds of
processor time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from functools import partial
from pathlib import Path

from benchmarks.measure import CLOCKS, ROOT, describe_machine, rows, table, take_turns, verdict

# Curves: the ways, the sizes, and the unit.  The last two datasets are FreiHAND's, without and with its background versions.
CURVES = {
    "batch": ("network:{how}:{size}", (1, 4, 16, 64), "s a hand"),
    "dataset": ("samples:later:{size}", (8_000, 32_560, 130_240), "s, an epoch of samples"),
    "processes": ("", (1, 2), "images/s"),
}


def curve(name: str, measure, folder: Path, threads: int) -> dict[str, list]:
    """Points [size, value] by label: seconds a hand of the network alone by the batch's size; seconds of all samples, and MB
    of memory that are no file's, by the images in the crops' cache; images a second of train.py by its processes."""
    way, sizes, _ = CURVES[name]
    if name == "processes":
        return {"images_per_s": [[count, images_per_second(folder, count, threads)] for count in sizes]}
    if name == "dataset":
        figures = [(size, measure([way.format(size=size)])[way.format(size=size)]) for size in sizes]
        points = {"seconds": [[size, figure["times"][1] * size] for size, figure in figures]}
        return {**points, "mb": [[size, figure["own_mb"]] for size, figure in figures]}
    points = {how: [] for how in ("reference", "float32", "onnx", "int8", "bf16")}
    for size in sizes:
        figures = measure([way.format(how=how, size=size) for how in points])
        for how, values in points.items():
            values.append([size, figures[way.format(how=how, size=size)]["times"][1]])
    return points


def images_per_second(folder: Path, count: int, threads: int) -> float:
    """What `train.py` says of itself with `count` processes, which share the cores; always on the wall."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = f"-W ignore -m accelerate.commands.launch --num_processes {count} --num_machines 1 --mixed_precision no "
        command += f"--dynamo_backend no {'--multi_gpu' if count > 1 else '--cpu'} train.py --train_samples 192 "
        command += f"--validation_samples 16 --test_samples 16 --epochs 1 --batch_size {48 // count} --output_dir {output}/run"
        settings = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": str(max(1, threads // count)), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *command.split(), "--cache_dir", folder / "cache"]
        result = subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=True, stdout=subprocess.PIPE, text=True)
    return float(result.stdout.split(" images/s")[0].split()[-1])


def draw(points: dict[str, list], name: str, path: Path) -> None:
    """Plot a curve into a small picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, sizes, value = CURVES[name]
    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    for label, values in points.items():
        where = axes.twinx() if label == "mb" else axes
        where.plot(*zip(*values), "s--" if label == "mb" else "o-", color="tab:orange" if label == "mb" else None, label=label)
        where.set(ylabel="MB of memory (dashed)" if label == "mb" else value, ylim=(0, 1.2 * where.dataLim.y1))
    axes.set(xlabel={"dataset": "images"}.get(name, name))
    if name == "batch":
        axes.set_xscale("log", base=2)
    if name != "dataset":
        axes.set_xticks(sizes, map(str, sizes))
        axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def one_item_a_line(results: dict[str, dict]) -> str:
    """JSON with a line for each row, curve and fact about the GPU; numbers have four significant digits."""
    results = json.loads(json.dumps(results), parse_float=lambda number: float(f"{float(number):.4g}"))
    sections = []
    for name, items in results.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in items.items())
        sections.append(f' "{name}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(sections) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", help="only these (see --list); none: no row")
    parser.add_argument("--curves", nargs="*", default=[], choices=CURVES)
    parser.add_argument("--tracking", type=Path, help="JSON that `python -m benchmarks.tracking` wrote")
    parser.add_argument("--environment", type=Path, default=Path("outputs/mediapipe"), help="MediaPipe's")
    parser.add_argument("--gpu", action="store_true", help="only the rows of the GPU")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--print", action="store_true", help="print what is in --output and end")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks.json")
    parser.add_argument("--folder", type=Path, help="keeps photographs and exported models (default: temporary)")
    parser.add_argument("--threads", type=int, help="of every way (default: the cores that may be used)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn, at least")
    parser.add_argument("--turns", type=int, default=3, help="of each way")
    args = parser.parse_args()
    results = json.loads(args.output.read_text()) if args.output.exists() else {"rows": {}, "curves": {}, "gpu": {}}
    if args.tracking:
        speed = json.loads(args.tracking.read_text())["speed"]
        ways = {"ours": "small, onnxruntime", "MediaPipe": "MediaPipe"}
        results["tracking"] = {name: 1 / statistics.median(speed[way]["seconds"]) for name, way in ways.items()}
        args.output.write_text(one_item_a_line(results))
    if args.print or args.tracking:
        print(table(results))
        return

    import torch

    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    named = {row.name: row for row in rows(bf16)}
    if args.list:
        print("\n".join(f"{row.name:20s} {row.what}" for row in named.values()))
        return
    chosen = list(named) if args.rows is None and not args.curves else args.rows or []
    if unknown := [name for name in chosen if name not in named]:
        parser.error(f"there is no row {', '.join(unknown)}: choose from {', '.join(named)}")

    def save() -> None:
        results["rows"] = {name: results["rows"][name] for name in named if name in results["rows"]}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(one_item_a_line(results))

    if args.gpu:
        from benchmarks import gpu

        if not torch.cuda.is_available():
            parser.error("--gpu finds no GPU that torch can use")
        results["gpu"] = gpu.measure()
        save()
        print(f"{results['gpu']['device']}, torch {results['gpu']['torch']}\n\n{table({'rows': {}, 'gpu': results['gpu']})}")
        return

    from benchmarks import ways

    load_average, threads = round(os.getloadavg()[0], 1), args.threads or len(os.sched_getaffinity(0))
    machine = {**describe_machine(threads), "load_average": load_average, "date": date.today().isoformat()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        ways.prepare(folder)
        settings = {"folder": folder, "environment": args.environment, "threads": threads}
        measure = partial(take_turns, **settings, seconds=args.seconds, turns=args.turns)
        for group in dict.fromkeys(named[name].group for name in chosen):
            print(f"{group} ...", file=sys.stderr, flush=True)
            measured = [row for row in named.values() if row.group == group]
            clock = measured[0].clock or args.clock
            names = [name for row in measured for name in (row.ours, *row.beside, row.against) if name]
            figures = measure(list(dict.fromkeys(names)), clock=clock)
            results["rows"] |= {row.name: {**verdict(row, figures, clock), "machine": machine} for row in measured}
            save()
        for name in args.curves:
            print(f"curve over {name} ...", file=sys.stderr, flush=True)
            points = curve(name, partial(measure, clock=args.clock), folder, threads)
            results["curves"][name] = {"points": points, "clock": args.clock, "machine": machine}
            save()
            draw(points, name, args.output.with_name(f"benchmarks_{name}.png"))
    print(table(results))


if __name__ == "__main__":
    main()
