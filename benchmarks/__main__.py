"""Measure the table, print it, and write it as JSON with the machine's description.

    python -m benchmarks                                     # all of it: a quarter of an hour
    python -m benchmarks --rows one_hand batch_32            # these rows and those measured with them; the others stay
    python -m benchmarks --list
    python -m benchmarks --gpu                               # the rows of one GPU
    python -m benchmarks --curves batch processes dataset    # scaling curves, with plots beside --output
    python -m benchmarks --print                             # the table in --output; nothing is measured

Needs `pip install -e '.[benchmarks]'`.  Ratios are of one run on one machine.  On a machine that has other work, use
`--clock processor`: it compares seconds of processor time.
"""

import argparse
import json
import os
import sys
import tempfile
from datetime import date
from functools import partial
from pathlib import Path

from benchmarks.measure import CLOCKS, ROOT, describe_machine, take_turns
from benchmarks.rows import rows, table, verdict


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
    parser.add_argument("--curves", nargs="*", default=[], choices=("batch", "processes", "dataset"))
    parser.add_argument("--gpu", action="store_true", help="only the rows of the GPU")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--print", action="store_true", help="print what is in --output and end")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks.json")
    parser.add_argument("--folder", type=Path, help="keeps photographs, model and environments (default: temporary)")
    parser.add_argument("--threads", type=int, help="of every way (default: the cores that may be used)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn, at least")
    parser.add_argument("--turns", type=int, default=3, help="of each way")
    args = parser.parse_args()
    results = json.loads(args.output.read_text()) if args.output.exists() else {"rows": {}, "curves": {}, "gpu": {}}
    if args.print:
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

    from benchmarks import curves, ways

    load_average, threads = round(os.getloadavg()[0], 1), args.threads or len(os.sched_getaffinity(0))
    machine = {**describe_machine(threads), "load_average": load_average, "date": date.today().isoformat()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        ways.prepare(folder)
        measure = partial(take_turns, folder=folder, threads=threads, seconds=args.seconds, turns=args.turns)
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
            points = getattr(curves, name)(partial(measure, clock=args.clock), folder, threads)
            results["curves"][name] = {"points": points, "clock": args.clock, "machine": machine}
            save()
            curves.draw(points, name, args.output.with_name(f"benchmarks_{name}.png"))
    print(table(results))


if __name__ == "__main__":
    main()
