"""What `numpy.random.PCG64(seed)` draws, for many seeds at once.

A copy of a particle world that begins an episode needs the first dozen numbers of a fresh generator, as mpe2 draws them
after `reset(seed=...)`. Making a numpy generator takes longer than that copy's whole episode, so the two published
algorithms behind it are computed here for all seeds together: the hash that spreads a seed over the
generator's state (M. O'Neill's `seed_seq`, numpy's `SeedSequence`) and the 128-bit linear congruential generator
(M. O'Neill, *PCG*, 2014, variant XSL-RR 128/64). No random state is kept anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
U128 = tuple[U64, U64]  # high and low half

LOW_HALF = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
PCG_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


def random_raw(seeds: Sequence[int], count: int) -> U64:
    """The first ``count`` 64-bit draws of ``PCG64(seed)`` for each of B seeds in ``[0, 2**64)``, as ``[B, count]``."""
    words = _generate_state(_pool(np.array(seeds, dtype=np.uint64)))
    start, stream = (words[:, 0:1], words[:, 1:2]), (words[:, 2:3], words[:, 3:4])
    one = np.uint64(1)
    increment = ((stream[0] << one) | (stream[1] >> np.uint64(63)), (stream[1] << one) | one)
    powers, sums = _jumps(count)
    high, low = _add(_multiply(start, powers), _multiply(increment, sums))
    mixed, rotation = high ^ low, high >> np.uint64(58)
    return (mixed >> rotation) | (mixed << ((np.uint64(64) - rotation) & np.uint64(63)))


def uniform(raw: U64, low: float, high: float) -> NDArray[np.float64]:
    """What ``Generator.uniform(low, high)`` makes of each raw draw."""
    return low + (high - low) * ((raw >> np.uint64(11)) * 2.0**-53)


def _pool(seeds: U64) -> U32:
    """SeedSequence's entropy pool ``[4, B]``; a seed fills the first two of its four words."""
    zero = np.zeros_like(seeds)
    pool = _hash(np.stack([seeds & LOW_HALF, seeds >> HALF, zero, zero]).astype(np.uint32), 0x43B0D7E5, 0x931E8875)
    constant = _advance(0x43B0D7E5, 0x931E8875, 4)
    for source in range(4):
        others = [word for word in range(4) if word != source]
        hashed = _hash(np.stack([pool[source]] * 3), constant, 0x931E8875)
        mixed = pool[others] * np.uint32(0xCA01F9DD) - hashed * np.uint32(0x4973F715)
        pool[others] = mixed ^ (mixed >> np.uint32(16))
        constant = _advance(constant, 0x931E8875, 3)
    return pool


def _generate_state(pool: U32) -> U64:
    """``SeedSequence.generate_state(4, uint64)`` as ``[B, 4]``."""
    words = _hash(np.concatenate([pool, pool]), 0x8B51F9DD, 0x58F38DED).astype(np.uint64)
    return (words[0::2] | (words[1::2] << HALF)).T


def _hash(words: U32, constant: int, multiplier: int) -> U32:
    """Hash W words ``[W, B]``, each with the next constant of the sequence."""
    constants = np.array([_advance(constant, multiplier, i) for i in range(len(words) + 1)], dtype=np.uint32)[:, None]
    words = (words ^ constants[:-1]) * constants[1:]
    return words ^ (words >> np.uint32(16))


def _advance(constant: int, multiplier: int, times: int) -> int:
    return constant * pow(multiplier, times, 2**32) % 2**32


@lru_cache(maxsize=32)
def _jumps(count: int) -> tuple[U128, U128]:
    """M^k and 1 + M + ... + M^k for k = 2 ... count + 1; the first draw is of the state at k = 2.

    The state at k is M^k start + (1 + ... + M^k) increment: numpy steps twice to seed and once before each draw.
    """
    power, total, powers, sums = PCG_MULTIPLIER, 1 + PCG_MULTIPLIER, [], []
    for _ in range(count):
        power = power * PCG_MULTIPLIER % 2**128
        total = (total + power) % 2**128
        powers.append(power)
        sums.append(total)
    return _split(powers), _split(sums)


def _split(numbers: list[int]) -> U128:
    high, low = zip(*(divmod(number, 2**64) for number in numbers), strict=True)
    return np.array(high, dtype=np.uint64), np.array(low, dtype=np.uint64)


def _add(a: U128, b: U128) -> U128:
    low = a[1] + b[1]
    return a[0] + b[0] + (low < b[1]), low


def _multiply(a: U128, b: U128) -> U128:
    """The product modulo 2**128, by halves of 32 bits."""
    a1, a0, b1, b0 = a[1] >> HALF, a[1] & LOW_HALF, b[1] >> HALF, b[1] & LOW_HALF
    middle = a1 * b0 + (a0 * b0 >> HALF)
    carry = a0 * b1 + (middle & LOW_HALF)
    return a1 * b1 + (middle >> HALF) + (carry >> HALF) + a[0] * b[1] + a[1] * b[0], a[1] * b[1]
