"""Our own format, which `magail.demonstrations` describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from magail.demonstrations import Demonstrations, check_suffix
from magail.types import AgentGroup


def read(path: str, groups: Sequence[AgentGroup]) -> Demonstrations:
    """`Demonstrations.load`."""
    return Demonstrations.load(path, groups)


def writer(output: str) -> Callable[[Demonstrations], None]:
    """`Demonstrations.save` to ``output``, which is looked at first.

    Raises:
        ValueError: the suffix is not ``.npz``.
    """
    check_suffix(Path(output))
    return lambda demonstrations: demonstrations.save(output)
