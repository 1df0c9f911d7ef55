"""The optimal assignment of N rows to N columns, for E copies at once."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

LARGEST = {"cpu": 7, "cuda": 10}  # N beyond which subsets are too many, and one copy after the other is quicker


def assign(cost: Tensor) -> Tensor:
    """The column of each row in the one-to-one assignment of least total ``cost [N, N, E]``, as int64 ``[N, E]``.

    It is what ``scipy.optimize.linear_sum_assignment`` finds.
    """
    return by_subsets(cost) if len(cost) <= LARGEST[cost.device.type] else one_by_one(cost)


def by_subsets(cost: Tensor) -> Tensor:
    """Dynamic programming over sets of columns (M. Held and R. M. Karp, 1962), in all copies at once.

    The first r rows are best assigned to a set S of r columns by giving the last of them some column of S and the
    others what is best for the rest of S.
    """
    tables = _tables(len(cost), cost.device)
    least, choices = cost[0], []  # [K, E] for K sets of columns
    for row, (rest, column) in enumerate(tables, start=1):
        totals = least.index_select(0, rest) + cost[row].index_select(0, column)
        least, choice = totals.unflatten(0, (row + 1, -1)).min(0)
        choices.append(choice)
    of = torch.zeros_like(cost[0, :1], dtype=torch.int64)  # the set that is left to the rows above, [1, E]
    columns = []
    for (rest, column), choice in zip(reversed(tables), reversed(choices), strict=True):
        entry = choice.gather(0, of) * len(choice) + of
        columns.append(column[entry])
        of = rest[entry]
    return torch.cat([of, *reversed(columns)])


@torch.compiler.disable
def one_by_one(cost: Tensor) -> Tensor:
    """scipy's, copy after copy on the CPU."""
    copies = np.ascontiguousarray(cost.movedim(-1, 0).cpu().numpy())
    columns = np.stack([linear_sum_assignment(copy)[1] for copy in copies], -1)
    return torch.from_numpy(columns).to(cost.device)


@lru_cache(maxsize=32)
def _tables(number: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For sets of 2, 3, ... N columns: the rest of each set without its first (second, ...) column, and that column.

    Rests are numbers of sets among those one smaller. With K sets of r columns, both are ``[r * K]``: first what
    concerns each set's first column.
    """
    tables = []
    smaller: dict[tuple[int, ...], int] = {(column,): column for column in range(number)}
    for size in range(2, number + 1):
        sets = list(combinations(range(number), size))
        rest = [smaller[each[:i] + each[i + 1 :]] for i in range(size) for each in sets]
        column = [each[i] for i in range(size) for each in sets]
        tables.append((torch.tensor(rest, device=device), torch.tensor(column, device=device)))
        smaller = {each: i for i, each in enumerate(sets)}
    return tables
