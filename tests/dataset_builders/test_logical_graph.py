"""Every line that a logical graph's trajectory writes is true of the graph, which is evaluated in another way."""

import random

import pytest
from conftest import written
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.catalog import load_task
from dataset_builders.task import example_rng
from dataset_builders.tasks.logical_graph import MOST_NODES, values_of
from hf_toolssm.errors import EmptyProblemError, InvalidProblemError
from hf_toolssm.protocol.trajectory import StepKind

PROBLEM = "1:abc\n0:def\n1:xyz\ndef-&=ghi\nabc+/ghi\nghi-==jkl\n>jkl\n"


@pytest.fixture(scope="module")
def task():
    return load_task("logical_graph")


def meaning(problem):
    """The graph as a Python program, run by Python."""
    names = {}
    first = joined = None
    for line in problem.split("\n")[:-2]:
        name = line[-3:]
        if ":" in line:
            names[name] = line[0] == "1"
            continue
        term = f"{'not ' if line[3] == '-' else ''}names[{line[:3]!r}]"
        if line[4] == "/":
            names[name] = eval(f"({first}) {joined} ({term})", {"names": names})
        else:
            first, joined = term, {"&": "and", "|": "or", "=": None}[line[4]]
            names[name] = eval(first, {"names": names})
    return names


def false_lines(problem, trajectory):
    """Values and ways back in the thoughts that are not so."""
    values, wrong = meaning(problem), []
    thoughts = "".join(s.text for s in trajectory.steps if s.kind is StepKind.THOUGHT)
    for line in thoughts.removesuffix("<|answer|>").split("\n")[:-1]:
        if len(line) == 3:  # sign, value and operator, which the next line shows
            true = True
        elif ":" in line:
            true = values[line[2:]] == (line[0] == "1")
        else:
            node, term = line.split("<")
            true = any(d[:3] == term and d[-3:] == node for d in problem.split("\n"))
        if not true:
            wrong.append(line)
    return wrong


@given(length=st.integers(1, 40), index=st.integers(0, 10**6))
def test_every_line_of_a_trajectory_is_true(task, length, index):
    for name in (None, *task.adversarial):
        rng = example_rng(name, length, index)
        problem = task.sample_adversarial(name, rng, length, 0) if name else task.sample_test(rng, length)
        trajectory = task.solve(problem, "depth_first")
        assert not false_lines(problem, trajectory)
        assert values_of(problem) == {name: str(int(value)) for name, value in meaning(problem).items()}
        assert trajectory.answer == task.answer(problem, "depth_first")


def test_a_wrong_value_is_caught(task):
    right = task.solve(PROBLEM, "depth_first")
    other = task.solve(PROBLEM.replace("0:def", "1:def"), "depth_first")
    assert not false_lines(PROBLEM, right)
    assert false_lines(PROBLEM, other)


def test_an_observation_is_one_line(task):
    problem = task.sample_adversarial("one_hub", random.Random(0), 300, 0)
    steps = task.solve(problem, "depth_first").steps
    assert max(len(s.content) for s in steps if s.kind is StepKind.OBSERVATION) == len("def-&=ghi") + 1


def test_a_chain_is_walked_to_its_beginning(task):
    problem = task.sample_adversarial("deep_chain", random.Random(0), 50, 0)
    assert written(task.solve(problem, "depth_first")).count((StepKind.THOUGHT, "<")) == 49


def test_when_no_value_decides_every_reference_is_followed(task):
    problem = task.sample_adversarial("never_decided_early", random.Random(0), 60, 0)
    assert written(task.solve(problem, "depth_first")).count((StepKind.THOUGHT, ":")) == 60


def test_names_suffice_for_ten_thousand_nodes(task):
    assert MOST_NODES >= 10_000
    problem = task.sample_test(random.Random(0), 10_000)
    assert task.length(problem) == 10_000
    with pytest.raises(InvalidProblemError, match="names for 17573 nodes"):
        task.sample_test(random.Random(0), 17_574)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("1:abc", "no logical graph"),
        (PROBLEM.removesuffix("\n"), "no logical graph"),
        (PROBLEM.replace("&", "^"), "no logical graph"),
        (PROBLEM.replace(">jkl", ">zzz"), "line 7"),
        (PROBLEM.replace("==jkl", "==ghi"), "line 6"),
        (PROBLEM.replace("abc+/", "jkl+/"), "line 5"),
        (PROBLEM.replace("/ghi", "/xyz"), "line 5"),
        (PROBLEM.replace("abc+/ghi\n", ""), "line 5"),
        (PROBLEM.replace("-&=", "-=="), "line 5"),
        (PROBLEM.replace("ghi-==jkl\n", "").replace(">jkl", ">ghi").replace("abc+/ghi\n", ""), "line 5"),
        (PROBLEM.replace("1:xyz", "abc+==xyz"), "line 3"),
        (PROBLEM.replace(">jkl", ">abc"), "line 7"),
        (PROBLEM.replace(">jkl", ">ghi"), "line 7"),
        (PROBLEM.replace("ghi-==jkl\n>jkl", ">ghi\nghi-==jkl"), "line 6"),
        (PROBLEM.replace("abc+/ghi", "abc+/ghi\nxyz+/ghi"), "line 6"),
        (PROBLEM.replace("abc+/ghi\nghi-==jkl", "ghi-==jkl\nabc+/ghi"), "line 5"),
        (PROBLEM.replace("ghi-==", "jkl-=="), "line 6"),
        (PROBLEM.replace("ghi-==", "\nghi-=="), "no logical graph"),
    ],
)
def test_what_is_no_graph_is_named(task, problem, message):
    with pytest.raises(InvalidProblemError, match=message):
        task.solve(problem, "depth_first")


def test_an_empty_problem_is_named(task):
    with pytest.raises(EmptyProblemError):
        task.solve("", "depth_first")
