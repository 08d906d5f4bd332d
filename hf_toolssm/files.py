"""Files that are there whole or not at all, and text that any terminal takes."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, of_process: bool = False) -> Iterator[Path]:
    """A temporary path that becomes the file at the end, so that an interruption leaves the old file or the new.

    Nothing is left of it after an error, such as a full disk. With `of_process` several processes may write at once.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.incomplete" if of_process else f"{path.name}.incomplete")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text that is there whole or not at all, also where several processes write it at once."""
    with atomic_write(path, of_process=True) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")  # the same bytes on every system


def escape_unprintable() -> None:
    """Makes `print` escape the characters that the terminal's encoding lacks, of which one would end the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
