"""What the benchmarks' pages share: Markdown tables, the machine, progress."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence

import torch


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """The processor or GPU, torch, and the day."""
    described = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    model = next(line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("Model name"))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    packages = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "mpe2", "supersuit", "numpy")
    )
    kernels = torch.backends.cpu.get_cpu_capability()
    today = datetime.date.today().isoformat()
    return f"{today}; {model} ({kernels}), {os.cpu_count()} cores{gpu}; Python {platform.python_version()}, {packages}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
