"""Options of the wrong type or out of range, refused in one clear message."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}


def check_types(make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise `ValueError` for the first of the options of ``make`` that is not what its annotation says.

    Asked are annotations of `KINDS`, sequences and unions of them. The options of another callable are a partial of it,
    or `Annotated` with it.
    """
    bases = reversed(make.__mro__) if inspect.isclass(make) else []
    makers = [inspect.getattr_static(base, "__init__") for base in bases] or [make]
    hints = {name: hint for maker in makers for name, hint in _hints(maker).items()}
    for name, value in options.items():
        hint = hints.get(name, Any)
        if isinstance(value, functools.partial):
            check_types(value.func, value.keywords)
        elif get_origin(hint) is Annotated and isinstance(value, Mapping):
            check_types(hint.__metadata__[0], value)
        elif not _fits(value, hint):
            said = "null" if value is None else value
            raise ValueError(f"{make.__name__}: {name}={said} must be {_said(hint)}")


def _hints(maker: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(maker, include_extras=True)
    except (NameError, TypeError):  # somebody else's, with types that are there for checkers alone, or built in
        return {}


def _fits(value: Any, hint: Any) -> bool:
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint in KINDS:
        return isinstance(value, (int, float) if hint is float else hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Sequence:
        return isinstance(value, (list, tuple)) and all(_fits(item, get_args(hint)[0]) for item in value)
    return True


def _said(hint: Any) -> str:
    if get_origin(hint) is Sequence:
        return f"a list, each {_said(get_args(hint)[0])}"
    return KINDS.get(hint) or " or ".join(map(_said, get_args(hint))) or str(hint)


def check_range(values: Mapping[str, float], low: float, high: float = math.inf) -> None:
    """Raise `ValueError` for the first of the named values that is not within ``[low, high]``."""
    for name, value in values.items():
        if not low <= value <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ValueError(f"{name}={value} must be {bounds}")


def check_positive(values: Mapping[str, float], high: float = math.inf) -> None:
    """Raise `ValueError` for the first of the named values that is not within ``(0, high]``."""
    for name, value in values.items():
        if not 0 < value <= high:
            raise ValueError(f"{name}={value} must be above 0" + ("" if high == math.inf else f", to {high:g}"))


def check_cloning(steps: object, learning_rate: object, weight_decay: object) -> None:
    """Raise `ValueError` for what is neither ``auto`` nor a number of at least 0; of ``steps`` an integer."""
    for name, value, kind, number in (
        ("steps", steps, int, "an integer"),
        ("learning_rate", learning_rate, float, "a number"),
        ("weight_decay", weight_decay, float, "a number"),
    ):
        if value != "auto" and not (isinstance(value, (int, kind)) and value >= 0):
            raise ValueError(f"bc.{name}={value} must be auto or {number} of at least 0")
