"""What finished runs of a benchmark came to: rows of a .csv file beside its page, so that none is repeated."""

from __future__ import annotations

import csv
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.tables import say

Row = dict[str, Any]
T = TypeVar("T")


class Store:
    """Rows of a .csv file by its columns ``keys``; after these and the ``fields`` comes the commit that made them.

    To make rows anew delete them and their run folders. Threads may share it.
    """

    def __init__(self, path: Path, keys: Sequence[str], fields: Sequence[str]) -> None:
        self.path, self.keys, self.columns = path, keys, (*keys, *fields, "commit")
        self._lock = threading.Lock()
        self.rows: dict[tuple[str, ...], Row] = {}
        if path.exists():
            with path.open(newline="") as file:
                self.rows = {self._key(row): row for row in csv.DictReader(file)}
        else:
            with path.open("w", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writeheader()

    def row(self, key: Row, run: Callable[[], T | None], measure: Callable[[T], Row]) -> Row | None:
        """The row of ``key``: of what ``measure`` says of a ``run``, where there is none; None where that failed."""
        known = self._key({name: str(value) for name, value in key.items()})
        if known not in self.rows:
            commit = _commit()  # of when the run began: others may be made while it runs
            made = run()
            if made is None:
                return None
            with self._lock:  # Hydra composes one configuration at a time
                if known not in self.rows:  # another thread may have been at the same
                    self._add(known, key | measure(made) | {"commit": commit})
        return self.rows[known]

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(row[name] for name in self.keys)

    def _add(self, known: tuple[str, ...], row: Row) -> None:
        texts = {name: f"{x:.7g}" if isinstance(x, float) else str(x) for name, x in row.items()}
        row = dict.fromkeys(self.columns, "") | texts
        self.rows[known] = row
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        say(", ".join(f"{name} {value}" for name, value in row.items() if value and name != "commit"))


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.strip()
