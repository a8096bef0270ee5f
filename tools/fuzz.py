"""Read broken and hostile files, and check that only documented errors come out.

    python -m tools.fuzz --minutes 10                                  # all kinds in turn, from a new seed, which is printed
    python -m tools.fuzz --cases 20000 --seed 3 --kinds images zips
    python -m tools.fuzz --replay coco:3:1041                          # run one case again

A case is (kind, seed, number), and these three decide its input.  A whole file of the kind is made and then mutated: as
text, as bytes, or by its structure, so that the mutation gets past checksums.  A few files are built to be hostile.

A case fails if
- another error comes out than the docstrings name, or the error does not name the file;
- it takes over 10 s of processor time or over 2 GB of memory, or ends the process;
- it writes, renames or removes anything outside the folder that it was given, or reads what lies beside that folder;
- it starts a program or opens a connection.  (Servers decode images in processes of their own.)

If any case fails, the command ends with an error.
"""

import argparse
import collections
import faulthandler
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import datasets
import torch
from PIL import Image

from tools.fuzzing import ROOT, Kind, data, images, models, servers
from tools.fuzzing.servers import RequestError

PHOTOGRAPHS = ROOT.parent / "shared" / "data"  # real ones, which may not be redistributed
MOST_SECONDS, MOST_MEMORY = 10, 2 << 30  # of processor time; bytes that the process holds in all
MOST_WAIT = 300  # s without a word from a process, after which it is killed
CASES_PER_PROCESS = 400


def kinds() -> dict[str, Kind]:
    """All kinds of input for which there are files."""
    corpus = images.image_corpus()

    def of(make):
        return lambda draw, folder: make(corpus, draw, folder)

    result = {
        "images": Kind(of(images.make_image), images.use_image),
        "weights": Kind(models.make_weights, models.use_weights, names_folder=True),
        "coco": Kind(of(data.make_coco), data.use_coco, names_folder=True),
        "freihand": Kind(of(data.make_freihand), data.use_freihand, names_folder=True),
        "zips": Kind(of(data.make_zip), data.use_freihand, names_folder=True),
        "checkpoints": Kind(models.make_checkpoint, models.use_checkpoint, prepare=models.whole_checkpoint),
        "onnx": Kind(models.make_onnx, models.use_onnx, (OSError,), names_folder=True, prepare=models.whole_onnx),
        "served": Kind(of(servers.make_served), servers.use_served, (RequestError,), may_start=True),
        "requests": Kind(
            of(servers.make_request), servers.use_request, (RequestError,), prepare=servers.endpoint, may_start=True
        ),
        "urls": Kind(of(servers.make_url), servers.use_url),
    }
    real = {path.name: path.read_bytes() for path in sorted(PHOTOGRAPHS.glob("[cf]*/**/*.jpg"))}
    if real:
        result["photographs"] = Kind(lambda draw, folder: images.make_photograph(real, draw, folder), images.use_image)
    mesh = PHOTOGRAPHS / "hand_mesh" / "right.glb"
    if mesh.is_file():
        whole = mesh.read_bytes()
        result["meshes"] = Kind(lambda draw, folder: data.make_mesh(whole, draw, folder), data.use_mesh, names_folder=True)
    return result


# Places of an audit event's arguments: a path, then the descriptor of the folder that the path is relative to (-1: none).
WRITES = {"os.mkdir": ((0, 2),), "os.rename": ((0, 2), (1, 3)), "os.link": ((1, 3),), "os.symlink": ((1, 2),),
          "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.truncate": ((0, None),), "os.chmod": ((0, 2),),
          "os.chown": ((0, 3),), "os.utime": ((0, 3),)}  # fmt: skip
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.bind",
             "pickle.find_class", "ctypes.dlopen")  # fmt: skip


class Watch:
    """Records what a case does that is not allowed, by Python's audit events. A case may write into `folder` only."""

    def __init__(self, folder: Path, beside: Path):
        self.folder, self.beside = os.path.realpath(folder), os.path.realpath(beside)
        self.on = self.may_start = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in FORBIDDEN and not (self.may_start and event == "subprocess.Popen"):
            self.seen.append(f"{event}{arguments[:1]}")
        elif event in WRITES:
            for path, place in WRITES[event]:
                self._check(event, arguments[path], -1 if place is None else arguments[place])
        elif event == "open" and not isinstance(arguments[0], int) and arguments[0] is not None:
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if writes or (isinstance(mode, str) and set(mode) & set("wxa+")):
                self._check(event, path)
            elif os.path.realpath(os.fsdecode(path)).startswith(self.beside):
                self.seen.append(f"read {path!r}")

    def _check(self, event: str, path, place: int = -1) -> None:
        if isinstance(path, int):  # an open file; its opening was checked
            return
        path = os.fsdecode(path)
        path = os.path.realpath(path if place < 0 else os.path.join(f"/proc/self/fd/{place}", path))
        if not path.startswith(self.folder) and path != "/dev/null":
            self.seen.append(f"{event} {path!r}")


def memory_peak() -> int:
    """The most bytes that this process has held since it began."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def draw_of(name: str, seed: int, number: int) -> random.Random:
    return random.Random(f"{name}:{seed}:{number}")


def prepare_beside(beside: Path) -> None:
    """Make the files that hostile names point at, so that there is something to find."""
    beside.mkdir()
    Image.new("RGB", (72, 56)).save(beside / "secret.jpg")


def run_case(kind: Kind, case: tuple[str, int, int], folder: Path, watch: Watch, tell) -> tuple[str, str]:
    """Run one case in the empty `folder`. Returns its outcome ("accepted" or an error's name), and what failed."""
    made = kind.make(draw_of(*case), folder)
    before = {path.name: path.stat().st_size for path in Path(watch.beside).iterdir()}
    tell()
    watch.seen, outcome, failure = [], "accepted", ""
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)  # SIGPROF ends the process, inside C too
    watch.on, watch.may_start = True, kind.may_start
    try:
        kind.use(made, folder)
    except kind.errors as error:
        outcome = type(error).__name__
        if kind.names_folder and str(folder) not in str(error):
            failure = "the error does not name the file:\n" + traceback.format_exc()
        elif kind.names_folder and len(str(error)) > 5000:
            failure = f"the message has {len(str(error))} characters: {str(error)[:300]}"
    except Exception:
        outcome, failure = "FAILED", traceback.format_exc()
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    failure = failure or "\n".join(watch.seen)
    if before != {path.name: path.stat().st_size for path in Path(watch.beside).iterdir()}:
        failure = failure or "something beside the folder changed"
    if memory_peak() > MOST_MEMORY:
        failure = failure or f"{memory_peak() / 2**20:.0f} MiB of memory"
    return outcome, failure


def work(kinds: dict[str, Kind], cases: list[tuple[str, int, int]], sandbox: Path, pipe: int) -> None:
    """Run cases and write a line of JSON to `pipe` when a case begins and when it ends. Stops after a case that failed."""
    folder, beside = sandbox / "given", sandbox / "outside"
    watch = Watch(folder, beside)
    os.chdir(beside)
    faulthandler.disable()  # pytest's would print each hang and crash
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    # An attempt to hold much more ends in a MemoryError, before the machine runs out.
    used = int(dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())["VmData"].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + MOST_MEMORY, resource.RLIM_INFINITY))
    for case in cases:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        begin = lambda case=case: os.write(pipe, f"{json.dumps([case])}\n".encode())  # noqa: E731
        begin()
        outcome, failure = run_case(kinds[case[0]], case, folder, watch, begin)
        os.write(pipe, f"{json.dumps([case, outcome, failure[-3000:], memory_peak()])}\n".encode())
        if failure:
            return  # a new process has no traces of the failure


class Fuzzer:
    """Runs cases in child processes, which may die, and counts the outcomes."""

    def __init__(self):
        self.kinds = kinds()
        self.outcomes: dict[str, collections.Counter] = {name: collections.Counter() for name in self.kinds}
        self.failures: dict[str, str] = {}
        self.peak = 0

    def run(self, cases: list[tuple[str, int, int]]) -> None:
        for name in {case[0] for case in cases}:
            self.kinds[name].prepare()
        while cases:
            sandbox = Path(tempfile.mkdtemp(prefix="fuzz-"))
            prepare_beside(sandbox / "outside")
            done = self._run_in_a_process(cases, sandbox)
            shutil.rmtree(sandbox, ignore_errors=True)
            cases = cases[done:]

    def _run_in_a_process(self, cases: list[tuple[str, int, int]], sandbox: Path) -> int:
        """Returns the number of finished cases."""
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.close(reader)
                silence = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silence, 1)
                os.dup2(silence, 2)
                work(self.kinds, cases, sandbox, writer)
                status = 0
            except BaseException:
                os.write(writer, (json.dumps(["broken", traceback.format_exc()[-3000:]]) + "\n").encode())
            finally:
                os._exit(status)
        os.close(writer)
        done, current, rest, waited = 0, cases[0], b"", False
        while True:
            if not select.select([reader], [], [], MOST_WAIT)[0]:
                os.kill(pid, signal.SIGKILL)
                waited = True
                break
            data = os.read(reader, 1 << 16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in map(json.loads, lines):
                if len(line) == 1:
                    current = tuple(line[0])
                elif len(line) == 2:
                    raise RuntimeError(f"the fuzzer itself failed at {current}:\n{line[1]}")
                else:
                    done += 1
                    self._note(current, line[1], line[2])
                    self.peak = max(self.peak, line[3])
        os.close(reader)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code or waited:
            reasons = {-signal.SIGPROF: f"over {MOST_SECONDS} s of processor time"}
            reason = f"nothing for {MOST_WAIT} s" if waited else reasons.get(code, f"the process ended with {code}")
            self._note(current, "FAILED", reason)
            done += 1
        return done

    def _note(self, case: tuple[str, int, int], outcome: str, failure: str) -> None:
        self.outcomes[case[0]]["FAILED" if failure else outcome] += 1
        if failure:
            name, failure = ":".join(map(str, case)), failure.encode("ascii", "backslashreplace").decode()
            self.failures[name] = failure
            print(f"FAILED {name}\n{failure}", flush=True)

    def report(self) -> None:
        for name, counts in self.outcomes.items():
            if counts:
                print(f"{name}: {counts.total()} cases: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))
        total = sum(counts.total() for counts in self.outcomes.values())
        print(f"{total} cases, {len(self.failures)} failures, at most {self.peak / 2**20:.0f} MiB of memory")


def main(argv: list[str] | None = None) -> Fuzzer:
    """Run as the command line says. Ends with an error if a case failed."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__, formatter_class=as_written)
    parser.add_argument("--minutes", type=float, help="run for this time")
    parser.add_argument("--cases", type=int, help="or run this number of cases (default: 1000)")
    parser.add_argument("--seed", type=int, help="of the inputs (default: a new one, printed)")
    parser.add_argument("--kinds", nargs="+", help="kinds of input (default: all)")
    parser.add_argument("--replay", nargs="+", default=[], metavar="KIND:SEED:NUMBER", help="run only these cases")
    options = parser.parse_args(argv)
    fuzzer = Fuzzer()
    names = options.kinds or list(fuzzer.kinds)
    if unknown := set(names) - fuzzer.kinds.keys():
        parser.error(f"unknown kind {', '.join(unknown)}: choose from {', '.join(fuzzer.kinds)}")
    if options.replay:
        parts = [case.split(":") for case in options.replay]
        fuzzer.run([(name, int(seed), int(number)) for name, seed, number in parts if name in fuzzer.kinds])
    else:
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
        print(f"seed {seed}", flush=True)
        started, number = time.monotonic(), 0
        most = options.cases or (10**9 if options.minutes else 1000)
        while number < most and (options.minutes is None or time.monotonic() - started < 60 * options.minutes):
            count = min(CASES_PER_PROCESS if options.minutes is None else 100, most - number)
            fuzzer.run([(names[index % len(names)], seed, index) for index in range(number, number + count)])
            number += count
            print(f"{number} cases, {len(fuzzer.failures)} failures, {time.monotonic() - started:.0f} s", flush=True)
    fuzzer.report()
    if fuzzer.failures:
        sys.exit("failed: " + " ".join(fuzzer.failures))
    return fuzzer


if __name__ == "__main__":
    main()
