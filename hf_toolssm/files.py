"""Files that are there whole or not at all."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a text under a temporary name and renames it, so that an interruption leaves the old file or the new."""
    temporary = path.with_name(f"{path.name}.incomplete")
    temporary.write_text(text)
    temporary.replace(path)
