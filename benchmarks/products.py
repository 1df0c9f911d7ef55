"""The matrix-product limit: how long the products of a computation take by themselves, back to back."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = (aten.bmm.default, aten.baddbmm.default, aten.mm.default, aten.addmm.default)
Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of an operand."""


class Products(TorchDispatchMode):
    """While it is entered, counts the matrix products by the layouts of their operands; those of gradients too."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Layout, Layout]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            left, right = args[-2:]
            self.counts[_layout(left), _layout(right)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def flops(self) -> float:
        """Floating-point operations of all of them: a multiplication and an addition count as two."""
        return sum(
            2.0 * count * torch.Size(left[0]).numel() * right[0][-1] for (left, right), count in self.counts.items()
        )

    def seconds(self, repetitions: int = 30) -> float:
        """What all of them take, each alone with its operands warm in the cache: the fastest of the repetitions."""
        return sum(count * _fastest(*operands, repetitions) for operands, count in self.counts.items())


def _layout(x: Tensor) -> Layout:
    return tuple(x.shape), x.stride()


def _fastest(left: Layout, right: Layout, repetitions: int) -> float:
    x, y = (torch.empty_strided(*layout).normal_() for layout in (left, right))
    out = torch.matmul(x, y)
    product = torch.bmm if x.dim() == 3 else torch.mm
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        product(x, y, out=out)
        times.append(time.perf_counter() - start)
    return min(times)
