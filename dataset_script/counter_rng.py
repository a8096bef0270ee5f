"""Random numbers that depend only on (seed, sample, purpose).

With a stateful generator, sample i depends on everything drawn before it: on its batch, on the number of workers, on where
a run was interrupted. Here each number is a hash of its coordinates: a counter-based generator, after Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011. It uses integer tensor operations, which are exact on every device.
Synthetic hands and augmentation draw from it. So sample i is always the same, and a resumed run continues bit for bit.
"""

import math
import zlib

import torch
from torch import Tensor

_SALTS: dict[str, int] = {}  # by purpose; remembered because torch.compile cannot trace zlib


def _int32(x: int) -> int:
    """The low 32 bits of `x` as a signed number, as in an int32 tensor."""
    return (x + 0x80000000) % 0x100000000 - 0x80000000


def _mix32(x: Tensor) -> Tensor:
    """A bijective 32-bit hash (Ettinger's triple32, https://nullprogram.com/blog/2018/07/31/), in place.

    int32 products wrap; the masks turn torch's arithmetic shifts into logical ones.
    """
    x ^= (x >> 17) & 0x7FFF
    x *= _int32(0xED5AD4BB)
    x ^= (x >> 11) & 0x1FFFFF
    x *= _int32(0xAC4C1B51)
    x ^= (x >> 15) & 0x1FFFF
    x *= _int32(0x31848BAB)
    x ^= (x >> 14) & 0x3FFFF
    return x


def sample_keys(seed: int, indices: Tensor) -> Tensor:
    """Keys (B, 2) int32 for the samples `indices` (B,) of stream `seed`. 64 bits of each are used."""
    indices = indices.to(torch.int64)
    low, high = ((part + 0x80000000) % 0x100000000 - 0x80000000 for part in (indices, indices >> 32))
    key = _mix32(torch.full_like(indices, _int32(seed ^ 0x9E3779B9), dtype=torch.int32))
    key = _mix32(key + _int32(seed >> 32))
    key = _mix32(key + high.to(torch.int32))
    first = _mix32(key ^ low.to(torch.int32))
    return torch.stack([first, _mix32(first ^ _mix32(key + _int32(0x85EBCA6B)))], dim=1)


def uniform(keys: Tensor, purpose: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1), float32 of shape (B, *shape), for `keys` (B, 2) from :func:`sample_keys`.

    `purpose` names what the numbers are for. Numbers for different purposes are independent.
    """
    if purpose not in _SALTS:
        _SALTS[purpose] = _int32(zlib.crc32(purpose.encode()))
    salt = _SALTS[purpose]
    first = _mix32(keys[:, :1] ^ salt)
    second = _mix32(keys[:, 1:] + salt)
    counter = torch.arange(math.prod(shape), device=keys.device, dtype=torch.int32)[None]
    bits = _mix32(_mix32(counter ^ first) + second)  # (B, count)
    return (((bits >> 8) & 0xFFFFFF).to(torch.float32) * (1.0 / (1 << 24))).reshape(len(keys), *shape)


def normal(keys: Tensor, purpose: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Standard normal numbers, float32 of shape (B, *shape): Box-Muller over :func:`uniform`."""
    count = math.prod(shape)
    u = uniform(keys, purpose, (2, count)).double()
    radius = torch.sqrt(-2.0 * torch.log1p(-u[:, 0]))
    return (radius * torch.cos(2.0 * math.pi * u[:, 1])).float().reshape(len(keys), *shape)


def integers(keys: Tensor, purpose: str, high: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Whole numbers in [0, high), int64 of shape (B, *shape); `high` must be well below 2**24."""
    return (uniform(keys, purpose, shape) * high).to(torch.int64).clamp_(max=high - 1)
