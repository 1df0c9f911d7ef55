"""Our own format, which `magail.demonstrations` describes."""

from __future__ import annotations

from collections.abc import Sequence

from magail.demonstrations import Demonstrations
from magail.types import AgentGroup


def read(path: str, groups: Sequence[AgentGroup]) -> Demonstrations:
    """`Demonstrations.load`."""
    return Demonstrations.load(path, groups)


def write(demonstrations: Demonstrations, output: str) -> None:
    """`Demonstrations.save`."""
    demonstrations.save(output)
