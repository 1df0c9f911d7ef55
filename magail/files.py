"""Files: where they are, and how to write them so that they are there whole or not at all."""

from __future__ import annotations

import importlib.resources
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path`` that takes its place when all has been written; a kill leaves the old one or the new."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a text file at once or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def locate(path: str) -> Path:
    """A path, or ``pkg://package/file`` for a file shipped in an installed package."""
    if not path.startswith("pkg://"):
        return Path(path)
    package, _, name = path.removeprefix("pkg://").partition("/")
    return Path(str(importlib.resources.files(package) / name))
