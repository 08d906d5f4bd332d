"""A file is there whole or not at all, and an error leaves nothing beside it."""

import pytest

from hf_toolssm.files import atomic_write, write_atomically


def fill(path):
    with atomic_write(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise OSError("the disk is full")


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "boxes.npz"
    write_atomically(path, "old")
    with pytest.raises(OSError, match="full"):
        fill(path)
    assert [each.name for each in tmp_path.iterdir()] == ["boxes.npz"]
    assert path.read_text(encoding="utf-8") == "old"


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path):
    path = tmp_path / "card.md"
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert not list(tmp_path.iterdir())
