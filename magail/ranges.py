"""Options out of range, refused in one clear message."""

from __future__ import annotations

import math
from collections.abc import Mapping


def check_range(values: Mapping[str, float], low: float, high: float = math.inf) -> None:
    """Raise `ValueError` for the first of the named values that is not within ``[low, high]``."""
    for name, value in values.items():
        if not low <= value <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ValueError(f"{name}={value} must be {bounds}")


def check_auto_or_range(values: Mapping[str, object], low: float, kind: type[float] = float) -> None:
    """Raise `ValueError` for the first of the named values that is neither ``auto`` nor a number from ``low`` on.

    With a ``kind`` of `int` only integers are numbers.
    """
    for name, value in values.items():
        if value != "auto" and not (isinstance(value, (int, kind)) and low <= value):
            number = "an integer" if kind is int else "a number"
            raise ValueError(f"{name}={value} must be auto or {number} of at least {low:g}")
