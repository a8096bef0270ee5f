"""Measure the table, print it, and write it as JSON with the machine's description.

    python -m benchmarks                                     # all of it: a quarter of an hour
    python -m benchmarks --rows one_hand batch_32            # these rows and those measured with them; others stay
    python -m benchmarks --list
    python -m benchmarks --gpu                               # the rows of one GPU
    python -m benchmarks --curves batch processes dataset    # scaling curves, with plots beside --output
    python -m benchmarks --print                             # the table as --output has it, measuring nothing

Needs `pip install -e '.[benchmarks]'`.  Ratios are of one run on one machine, in which the ways took turns.  `--clock
processor` compares seconds of processor time instead of time on the wall, for a machine that has other work.
"""

import argparse
import json
import os
import sys
import tempfile
from datetime import date
from pathlib import Path

from benchmarks import report
from benchmarks.machine import describe
from benchmarks.measure import CLOCKS, take_turns
from benchmarks.prepare import prepare
from benchmarks.rows import groups, rows, verdict

ROOT = Path(__file__).resolve().parents[1]


def load(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {"rows": {}, "curves": {}, "gpu": {}}


def save(path: Path, results: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.rounded(results), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", help="only these (see --list); none: no row")
    parser.add_argument("--curves", nargs="*", default=[], choices=("batch", "processes", "dataset"))
    parser.add_argument("--gpu", action="store_true", help="only the rows of the GPU")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--print", action="store_true", help="print what is in --output and end")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks.json")
    parser.add_argument("--folder", type=Path, help="keeps photographs, model and environments (default: temporary)")
    parser.add_argument("--threads", type=int, help="of every way (default: the cores that may be used)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--seconds", type=float, default=1.0, help="times the usual duration")
    parser.add_argument("--turns", type=int, default=3, help="of each way at least")
    args = parser.parse_args()
    results, load_average = load(args.output), os.getloadavg()[0]
    if args.print:
        print(report.table(results))
        return

    import torch

    from training.arguments import bf16_is_fast

    bf16 = bf16_is_fast()
    named = {row.name: row for row in rows(bf16)}
    if args.list:
        print("\n".join(f"{row.name:20s} {row.what}" for row in named.values()))
        return
    chosen = list(named) if args.rows is None and not args.curves else args.rows or []
    unknown = [name for name in chosen if name not in named]
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}: choose from {', '.join(named)}")
    if args.gpu:
        from benchmarks import gpu

        if not torch.cuda.is_available():
            parser.error("--gpu finds no GPU that torch can use")
        results["gpu"] = gpu.measure()
        save(args.output, results)
        print(f"{results['gpu']['device']}, torch {results['gpu']['torch']}\n")
        print(report.table({"rows": {}, "gpu": results["gpu"]}))
        return

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        threads = args.threads or len(os.sched_getaffinity(0))
        machine = {**describe(threads, load_average), "date": date.today().isoformat()}
        for group in dict.fromkeys(named[name].group for name in chosen):
            print(f"{group} ...", file=sys.stderr, flush=True)
            ways, seconds = groups(bf16)[group].ways, groups(bf16)[group].seconds * args.seconds
            figures = take_turns(ways, threads=threads, folder=folder, seconds=seconds, at_least=args.turns)
            for row in named.values():
                if row.group == group:  # others of the group are measured again, too
                    results["rows"][row.name] = {**verdict(row, figures, args.clock), "machine": machine}
            results["rows"] = {name: results["rows"][name] for name in named if name in results["rows"]}
            save(args.output, results)
        for name in args.curves:
            from benchmarks import curves

            print(f"curve over {name} ...", file=sys.stderr, flush=True)
            points = getattr(curves, name)(folder, threads, args.clock, bf16)
            results["curves"][name] = {"points": points, "clock": args.clock, "machine": machine}
            save(args.output, results)
            curves.draw(results["curves"][name], name, args.output.with_name(f"benchmarks_{name}.png"))
    print(report.table(results))


if __name__ == "__main__":
    main()
