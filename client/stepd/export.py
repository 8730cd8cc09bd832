"""Parameters as one safetensors file."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from safetensors.numpy import save_file

from stepd.buffers import Array
from stepd.errors import InvalidArgument


def write_safetensors(path: str | os.PathLike[str], arrays: Mapping[str, Array], about: Mapping[str, str]) -> None:
    """Write a file that is there whole or not at all.

    Args:
        path: of the file; an older one is replaced.
        arrays: C-contiguous, by name.
        about: the file's metadata.
    """
    final = Path(path)
    if final.is_dir() or not final.parent.is_dir():
        problem = "is a folder" if final.is_dir() else f"needs the folder {str(final.parent)!r}, which does not exist"
        raise InvalidArgument(f"export: {os.fspath(path)!r} {problem}", path=os.fspath(path))
    part = final.with_name(f".{final.name[:100]}.{secrets.token_hex(4)}")
    try:
        save_file(dict(arrays), part, metadata=dict(about))
        part.replace(final)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
