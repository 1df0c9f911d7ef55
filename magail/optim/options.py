"""Options of optimizers that a run which goes on may change."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what ``optimizer.state_dict()`` gave, but for rates and other options, which stay as it was built with."""
    options = [{key: x for key, x in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, built_with in zip(optimizer.param_groups, options, strict=True):
        group.update(built_with)
