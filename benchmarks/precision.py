"""Does training in bf16 end where float32 ends?  The default training, thrice in each, on the same hands.

    python -m benchmarks.precision --folder outputs/precision              # an hour or more; goes on where it was stopped
    python -m benchmarks.precision --folder outputs/precision -- --train_samples 800    # smaller, for a first look

Options after `--` go to train.py, and are kept in the folder.  The answer is the mean test error over the seeds, in % of the image's side.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.trainings import kept_options

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("no", "bf16")
AT_MOST = 1.03  # times float32's error


def train(folder: Path, precision: str, seed: int, options: list[str]) -> float:
    """The test error of one training, in % of the image's side; read from its folder where it is done already."""
    output = folder / f"{precision}-{seed}"
    if not (output / "metrics.json").exists():
        command = [sys.executable, str(ROOT / "train.py"), "--mixed_precision", precision, "--seed", str(seed)]
        command += ["--output_dir", str(output), "--cache_dir", str(folder / "crops"), *options]
        if output.exists():
            command.append("--resume")
        with open(folder / f"{output.name}.log", "a") as log:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
    return json.loads((output / "metrics.json").read_text())["test"]["mean_error_percent"]


def compare(folder: Path, seeds: list[int], options: list[str]) -> dict:
    """Errors by precision and seed, and bf16's mean over float32's."""
    errors = {precision: {} for precision in PRECISIONS}
    for seed in seeds:
        for precision in PRECISIONS:
            errors[precision][seed] = train(folder, precision, seed, options)
            print(f"{precision}, seed {seed}: {errors[precision][seed]:.3f} %", flush=True)
    means = {precision: statistics.mean(by_seed.values()) for precision, by_seed in errors.items()}
    return {"error_percent": errors, "mean": means, "ratio": means["bf16"] / means["no"], "options": options}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="holds the trainings; those that are done are read")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("options", nargs="*", help="further options of train.py, after --")
    args = parser.parse_args()
    result = compare(args.folder, args.seeds, kept_options(args.folder, args.options))
    (args.folder / "precision.json").write_text(json.dumps(result, indent=2) + "\n")
    verdict = "reached" if result["ratio"] <= AT_MOST else "missed"
    print(f"bf16 ends at {result['ratio']:.3f} times float32's error, at most {AT_MOST} wanted: {verdict}.")


if __name__ == "__main__":
    main()
