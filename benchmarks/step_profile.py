"""What the time of a training step goes to: a table by kind of operation, on a GPU if there is one.

    python -m benchmarks.step_profile                  # `handunet` in bf16, with augmentation, targets, loss and optimizer
    python -m benchmarks.step_profile --compile        # by torch.compile

`torch.profiler` counts each operation's own time, on a GPU that of its kernels.
"""

import argparse
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import BATCH, training_step

STEPS = 5
# The first kind of which a word is in the name of an operation.
KINDS = {
    "convolutions": ("conv", "cudnn", "gemm", "xmma", "cutlass"),
    "normalisation": ("batch_norm", "bn_"),
    "pooling": ("max_pool",),
    "enlarging": ("upsample",),
    "optimizer": ("foreach", "adam", "multi_tensor", "addcdiv", "addcmul", "sqrt", "lerp"),
    "random numbers of the augmentation": ("bitwise", "shift"),
    "compiled kernels": ("triton", "cpp_fused"),
    "sampling the crop": ("grid_sampl",),
    "concatenating, copying, converting": ("cat", "copy", "to_copy", "clone", "contiguous", "memcpy", "memset", "fill", "zero"),
    "arithmetic: ReLU, sigmoid, loss, targets, colours, noise": (),
}


def kind_of(name: str) -> str:
    """The kind of an operation or a kernel."""
    return next((kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), list(KINDS)[-1])


def measure(device: str, batch: int, compiled: bool) -> dict[str, float]:
    """Milliseconds a step by kind, the largest first."""
    step, on_gpu = training_step(compiled, batch, batch, device), device == "cuda"
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    spent = defaultdict(float)
    for event in seen.key_averages():
        spent[kind_of(event.key)] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / STEPS
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, help=f"default: {BATCH} on a GPU, 48 on a CPU")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = args.batch_size or (BATCH if device == "cuda" else 48)
    spent = measure(device, batch, args.compile)
    name = torch.cuda.get_device_name() if device == "cuda" else f"the CPU with {torch.get_num_threads()} threads"
    total = sum(spent.values())
    print(f"A step of {batch} images on {name}: {total:.0f} ms\n\n| kind | ms a step | share |\n|---|---|---|")
    for kind, time in spent.items():
        print(f"| {kind} | {time:.1f} | {time / total:.0%} |")


if __name__ == "__main__":
    main()
