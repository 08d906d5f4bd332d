"""Rows are rendered anew when the source that renders them, the tokenizer or the rows have changed, and only then."""

import importlib.util
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from hf_toolssm import protocol
from hf_toolssm.protocol import render
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.tools import make_tool
from hf_toolssm.training import rendered_rows
from hf_toolssm.training.rendered_rows import render_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rows(addition, tmp_path):
    """Three rows on disk, as only such are cached."""
    solved = [addition.solve(problem, "local").to_row() for problem in ("1+2=", "3+4=", "5+66=")]
    Dataset.from_list(solved).save_to_disk(tmp_path / "rows")
    return Dataset.load_from_disk(str(tmp_path / "rows"))


def files(rendered):
    return [file["filename"] for file in rendered.cache_files]


def test_another_source_renders_the_rows_again(rows, tokenizer, tmp_path, monkeypatch):
    before = render_rows(rows, tokenizer, 1)
    assert files(render_rows(rows, tokenizer, 1)) == files(before)
    pulled = tmp_path / "render.py"
    source = Path(render.__file__).read_text(encoding="utf-8")
    pulled.write_text(source.replace("IGNORED = -100", "IGNORED = -1"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(render.__name__, pulled)
    changed = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, render.__name__, changed)  # one name, and so one hash in `datasets`
    monkeypatch.setattr(protocol, "render", changed)
    spec.loader.exec_module(changed)
    rendered_rows.digest.cache_clear()  # of the process that the change was pulled into
    monkeypatch.setattr(rendered_rows, "Renderer", changed.Renderer)
    assert (before[0]["labels"][0], render_rows(rows, tokenizer, 1)[0]["labels"][0]) == (-100, -1)


def test_another_tokenizer_or_other_rows_are_rendered_again_and_a_used_tokenizer_is_not_another(
    rows, tokenizer, addition, specs
):
    before = files(render_rows(rows, tokenizer, 1))
    tokenizer(["1+2=", "33+4="], padding=True)
    assert files(render_rows(rows, tokenizer, 1)) == before
    other = build_task_tokenizer([*addition.cells("local"), "x"], [make_tool(spec) for spec in specs])
    assert files(render_rows(rows, other, 1)) != before
    assert files(render_rows(rows.select([1, 2]), tokenizer, 1)) != before
