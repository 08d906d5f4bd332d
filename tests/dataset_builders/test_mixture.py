"""A mixture draws its tasks by weight, and has the tools and cells of all of them."""

import pytest
from datasets import Dataset

from dataset_builders.mixture import Share, merge_cells, merge_tools, mix, parse_share
from dataset_builders.task import load_task
from hf_toolssm.errors import InvalidMixtureError, UnknownTaskError


def test_a_share_names_task_length_and_weight():
    assert parse_share("addition:5=0.25") == Share("addition", "local", 5, 0.25)
    assert parse_share("addition/two_pointers:12=2") == Share("addition", "two_pointers", 12, 2.0)


@pytest.mark.parametrize("text", ["addition", "addition=1", "addition:0=1", "addition:5=0", "addition:5=1.2.3", ""])
def test_what_is_no_share_is_named(text):
    with pytest.raises(InvalidMixtureError, match="addition:5=0.25"):
        parse_share(text)


def test_an_unknown_task_of_a_mixture_is_named():
    with pytest.raises(UnknownTaskError, match="no task is named 'cooking'"):
        parse_share("cooking:5=1")


def test_tools_are_merged_with_the_largest_of_every_option():
    tasks = [(load_task(name), load_task(name).variants[0]) for name in ("addition", "sorting", "logical_graph")]
    assert merge_tools(tasks) == [{"name": "pointer_memory", "max_pointers": 10}, {"name": "search_memory"}]
    cells = merge_cells(tasks)
    assert len(cells) == len(set(cells))
    assert all(set(task.cells(variant)) <= set(cells) for task, variant in tasks)


def test_rows_are_drawn_by_weight_and_none_is_left_out():
    many, few = (Dataset.from_dict({"of": [name] * 300, "row": list(range(300))}) for name in "ab")
    mixed = mix([many, few], [3.0, 1.0], seed=0)
    counts = {name: mixed["of"].count(name) for name in "ab"}
    assert 2.5 < counts["a"] / counts["b"] < 3.5
    for name in "ab":
        assert {row["row"] for row in mixed if row["of"] == name} == set(range(300))
    assert mix([many, few], [3.0, 1.0], seed=0)[:20] == mixed[:20]
