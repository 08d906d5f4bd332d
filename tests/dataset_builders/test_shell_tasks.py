"""What tasks share whose problems are repaired in a shell."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, in_sandbox

from dataset_builders.catalog import load_task
from hf_toolssm.tools.sandbox import interpreter

PROBLEMS = {
    "code_fixing": "4 functions, bugs variable; seed 1",
    "module_fixing": "module fractions; seed 1",
}
both = pytest.mark.parametrize("name", PROBLEMS)


@in_sandbox
@both
def test_files_that_nobody_can_look_at_are_not_repaired(name):
    task, problem = load_task(name), PROBLEMS[name]
    (bash,) = task.make_tools(task.variants[0])
    shell = bash.start(problem)
    assert shell.call("bash", "truncate -s 60M one two") == ""
    assert not task.passes(problem, shell)


@in_sandbox
@both
def test_a_card_says_which_interpreter_observations_come_from(name):
    assert load_task(name).environment == f"bubblewrap, with {interpreter()} as its python3"


@both
def test_a_card_can_be_written_where_there_is_no_sandbox(name, tmp_path):
    code = f"from dataset_builders.catalog import load_task; print(load_task({name!r}).environment)"
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.stdout == "bubblewrap, which this machine lacks\n"
