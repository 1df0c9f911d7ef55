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


def check_cloning(steps: object, learning_rate: object, weight_decay: object) -> None:
    """Raise `ValueError` for what is neither ``auto`` nor a number of at least 0; of ``steps`` an integer."""
    for name, value, kind, number in (
        ("steps", steps, int, "an integer"),
        ("learning_rate", learning_rate, float, "a number"),
        ("weight_decay", weight_decay, float, "a number"),
    ):
        if value != "auto" and not (isinstance(value, (int, kind)) and value >= 0):
            raise ValueError(f"bc.{name}={value} must be auto or {number} of at least 0")
