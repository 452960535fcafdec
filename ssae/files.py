"""Writing files so that nothing is ever half written."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOGGER = logging.getLogger(__name__)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, also after a power cut, either the old or the whole new content is
    there.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written; ``filename`` is ``path``.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    LOGGER.info("wrote %s, %d bytes", path, len(content))


def _sync_folder(folder: Path) -> None:
    """Have the new name of a file on the disk too; Windows has no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network drives cannot do that to a folder; the file itself is written.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the file system name a file: a full disk does not say by itself what it had no room
    for.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # Pillow's own
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, error.filename or os.fspath(path)) from error
