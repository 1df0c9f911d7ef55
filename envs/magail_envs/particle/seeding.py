"""numpy's random generators, many side by side.

A copy of a particle world that begins an episode needs the first dozen numbers of a fresh generator, as mpe2 draws them
after `reset(seed=...)`. Making a numpy generator takes longer than that copy's whole episode, so the published
algorithms behind it are computed here for all copies together: the hash that spreads a seed over the generator's state
(M. O'Neill's `seed_seq`, numpy's `SeedSequence`), the 128-bit linear congruential generator (M. O'Neill, *PCG*, 2014,
variant XSL-RR 128/64), and the way from its output to an integer below a bound (D. Lemire, *Fast random integer
generation in an interval*, 2019, arXiv 1805.10941).
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
ONE = np.uint64(1)
PCG_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


class Draws:
    """B generators that draw what ``numpy.random.Generator(PCG64(seed))`` would, each in its own order.

    ``state [6, B]`` is all there is to them: the generator's state and stream (two halves each), and the half of a draw
    that `integers` has left for its next call (whether there is one, and which).
    """

    def __init__(self, state: U64) -> None:
        self.state = state

    @classmethod
    def seeded(cls, seeds: Sequence[int]) -> Draws:
        """Fresh generators, one for each seed in ``[0, 2**64)``."""
        start_high, start_low, stream_high, stream_low = _generate_state(_pool(np.array(seeds, dtype=np.uint64)))
        increment = ((stream_high << ONE) | (stream_low >> np.uint64(63)), (stream_low << ONE) | ONE)
        powers, sums = _jumps(1)
        high, low = _add(_multiply(_add((start_high, start_low), increment), powers), _multiply(increment, sums))
        none = np.zeros_like(start_low)
        return cls(np.stack([high[0], low[0], *increment, none, none]))

    def uniform(self, low: float, high: float, *shape: int, where: NDArray[np.bool_] | None = None) -> NDArray:
        """What ``uniform(low, high, shape)`` gives, ``[*shape, B]``; drawn by the generators ``where [B]`` only."""
        raw = self._raw(int(np.prod(shape)), where)
        return (low + (high - low) * ((raw >> np.uint64(11)) * 2.0**-53)).reshape(*shape, -1)

    def integers(self, high: int, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """What ``integers(high)`` gives, ``[B]``; drawn by the generators ``where [B]`` only."""
        bound = np.uint64(high)
        product = np.zeros_like(self.state[0])
        if high == 1:  # numpy draws nothing where there is nothing to choose
            return product.astype(np.int64)
        drawing = np.ones(product.shape, np.bool_) if where is None else where
        while drawing.any():
            product = np.where(drawing, self._raw_half(drawing) * bound, product)
            drawing = drawing & ((product & LOW_HALF) < np.uint64(2**32 % high))
        return (product >> HALF).astype(np.int64)

    def _raw_half(self, where: NDArray[np.bool_]) -> U64:
        """32 bits from each: the low half of a draw, then its high half."""
        left, half = self.state[4] != 0, self.state[5]
        (raw,) = self._raw(1, where & ~left)
        self.state = np.stack(
            [*self.state[:4], np.where(where, ~left, left), np.where(where & ~left, raw >> HALF, half)]
        )
        return np.where(left, half, raw & LOW_HALF)

    def _raw(self, count: int, where: NDArray[np.bool_] | None) -> U64:
        """The next ``count`` draws of 64 bits, ``[count, B]``."""
        powers, sums = _jumps(count)
        state, increment = (self.state[0], self.state[1]), (self.state[2], self.state[3])
        high, low = _add(_multiply(state, powers), _multiply(increment, sums))
        last = np.stack([high[-1], low[-1]])
        advanced = last if where is None else np.where(where, last, self.state[:2])
        self.state = np.concatenate([advanced, self.state[2:]])
        mixed, rotation = high ^ low, high >> np.uint64(58)
        return (mixed >> rotation) | (mixed << ((np.uint64(64) - rotation) & np.uint64(63)))


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
    """``SeedSequence.generate_state(4, uint64)`` as ``[4, B]``."""
    words = _hash(np.concatenate([pool, pool]), 0x8B51F9DD, 0x58F38DED).astype(np.uint64)
    return words[0::2] | (words[1::2] << HALF)


def _hash(words: U32, constant: int, multiplier: int) -> U32:
    """Hash W words ``[W, B]``, each with the next constant of the sequence."""
    constants = np.array([_advance(constant, multiplier, i) for i in range(len(words) + 1)], dtype=np.uint32)[:, None]
    words = (words ^ constants[:-1]) * constants[1:]
    return words ^ (words >> np.uint32(16))


def _advance(constant: int, multiplier: int, times: int) -> int:
    return constant * pow(multiplier, times, 2**32) % 2**32


@lru_cache(maxsize=32)
def _jumps(count: int) -> tuple[U128, U128]:
    """M^k and 1 + M + ... + M^(k-1) for k = 1 ... count, each ``[count, 1]``.

    k steps from a state lead to M^k state + (1 + ... + M^(k-1)) increment.
    """
    power, total, powers, sums = 1, 0, [], []
    for _ in range(count):
        total = (total + power) % 2**128
        power = power * PCG_MULTIPLIER % 2**128
        powers.append(power)
        sums.append(total)
    return _split(powers), _split(sums)


def _split(numbers: list[int]) -> U128:
    high, low = zip(*(divmod(number, 2**64) for number in numbers), strict=True)
    return np.array(high, dtype=np.uint64)[:, None], np.array(low, dtype=np.uint64)[:, None]


def _add(a: U128, b: U128) -> U128:
    low = a[1] + b[1]
    return a[0] + b[0] + (low < b[1]), low


def _multiply(a: U128, b: U128) -> U128:
    """The product modulo 2**128, by halves of 32 bits."""
    a1, a0, b1, b0 = a[1] >> HALF, a[1] & LOW_HALF, b[1] >> HALF, b[1] & LOW_HALF
    middle = a1 * b0 + (a0 * b0 >> HALF)
    carry = a0 * b1 + (middle & LOW_HALF)
    return a1 * b1 + (middle >> HALF) + (carry >> HALF) + a[0] * b[1] + a[1] * b[0], a[1] * b[1]
