"""What the package writes is what it wrote before it was redesigned: every task, architecture and tool."""

import json

import pytest
from recording import GOLDEN, architecture_record, task_record, variants
from small_models import ARCHITECTURES

RECORDED = json.loads(GOLDEN.read_text(encoding="utf-8"))


def assert_same(found, expected, where=""):
    """Numbers as another processor rounds them, everything else to the letter."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for at, (one, other) in enumerate(zip(found, expected)):
            assert_same(one, other, f"{where}/{at}")
    else:
        assert found == expected, where


@pytest.mark.parametrize(("task", "variant"), variants())
def test_a_task_has_the_rows_that_it_had_and_a_session_writes_them(task, variant):
    assert_same(task_record(task, variant), RECORDED["tasks"][f"{task}/{variant}"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_writes_the_tokens_that_it_wrote(name):
    assert_same(architecture_record(name), RECORDED["architectures"][name])
