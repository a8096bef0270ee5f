"""Build FreiHAND at its full size, from a folder and from a zip, and print the time and memory that it takes.

    python -m tools.full_size_freihand                          # 32,560 frames on 4 backgrounds: about 3 GB of disk
    python -m tools.full_size_freihand --frames 3000 --num_proc 2

It writes a folder in the official layout (the pictures and annotations of a few hundred synthetic hands, repeated) and a
zip of it to a temporary folder. It builds each configuration from each of them, in a new process, and prints one JSON line
per build: seconds, seconds of processor time (which other work on the machine hardly changes), peak resident memory in MB
(of the largest process, with imports) and the rows of each split.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

NUM_FRAMES, VERSIONS = 32560, 4


def write_tree(folder: Path, frames: int, versions: int, distinct: int) -> Path:
    """The official layout with `distinct` different hands; returns the folder."""
    from dataset_script import SyntheticHands
    from dataset_script.freihand import write_freihand

    with tempfile.TemporaryDirectory() as drawn:
        SyntheticHands(distinct).write_freihand(drawn)
        pictures = [path.read_bytes() for path in sorted(Path(drawn).glob("training/rgb/*.jpg"))]
        xyz, K = (json.loads((Path(drawn) / f"training_{name}.json").read_text()) for name in ("xyz", "K"))
    images = ((number, pictures[number % frames % distinct]) for number in range(frames * versions))
    repeated = ([values[frame % distinct] for frame in range(frames)] for values in (xyz, K))
    write_freihand(folder, images, *repeated)
    return folder


def write_zip(folder: Path) -> Path:
    """A zip of the folder, beside it; jpgs are stored uncompressed as in the official zip."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.json")) + sorted(folder.rglob("*.jpg")):
            kind = zipfile.ZIP_DEFLATED if file.suffix == ".json" else zipfile.ZIP_STORED
            archive.write(file, file.relative_to(folder), kind)
    return path


def processor_seconds() -> float:
    """Processor time of this process and of finished child processes."""
    return sum(
        resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def build(data_dir: str, name: str, num_proc: int) -> dict:
    """Build and report; meant for a new process."""
    import datasets

    from dataset_script import FreiHAND

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=Path(data_dir).parent) as cache:
        start, used = time.perf_counter(), processor_seconds()
        splits = FreiHAND(data_dir, name, cache_dir=cache).build(num_proc=num_proc if num_proc > 1 else None)
        seconds, used = time.perf_counter() - start, processor_seconds() - used
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "source": Path(data_dir).name,
        "name": name,
        "num_proc": num_proc,
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
        "peak_mb": round(peak / 1024),
        "rows": {split: len(rows) for split, rows in splits.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.full_size_freihand", description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=NUM_FRAMES)
    parser.add_argument("--versions", type=int, default=VERSIONS, choices=(1, VERSIONS))
    parser.add_argument("--distinct", type=int, default=200, help="different hands among the frames")
    parser.add_argument("--num_proc", type=int, default=1, help="processes that build")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--build", nargs=2, metavar=("DATA_DIR", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        print(json.dumps(build(*options.build, options.num_proc)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        start = time.perf_counter()
        tree = write_tree(Path(folder) / "freihand", options.frames, options.versions, options.distinct)
        sources = [tree, write_zip(tree)]
        print(f"wrote {options.frames} frames, {options.versions} versions in {time.perf_counter() - start:.0f} s")
        for name in ("raw", "all")[: 1 if options.versions == 1 else 2]:
            for source in sources:
                command = [sys.executable, "-m", "tools.full_size_freihand", "--num_proc", str(options.num_proc)]
                subprocess.run([*command, "--build", str(source), name], check=True)


if __name__ == "__main__":
    main()
