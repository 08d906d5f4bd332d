"""A committed dataset card is what its own commands build, for every task and Turing machine."""

import re
from pathlib import Path

import pytest
from conftest import COMPARED_TASKS, in_sandbox

from dataset_builders.build import main as build
from dataset_builders.catalog import available_machines, load_task

CARDS = Path(__file__).parents[2] / "dataset_builders" / "cards"


@pytest.mark.parametrize(
    "task", [*COMPARED_TASKS, *available_machines(), pytest.param("code_fixing", marks=in_sandbox)]
)
def test_the_commands_on_a_card_build_the_dataset_with_that_card(task, tmp_path):
    card = (CARDS / f"{task}.md").read_text(encoding="utf-8")
    if (environment := load_task(task).environment) not in card:
        pytest.skip(f"the card is of other observations than those that come from {environment}")
    commands = re.findall(r"^python -m dataset_builders\.build (.*)$", card, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        build(command.replace("FOLDER", str(tmp_path / "rows")).split())
    assert (tmp_path / "rows" / "README.md").read_text(encoding="utf-8") == card
