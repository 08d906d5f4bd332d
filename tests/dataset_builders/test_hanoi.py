"""The moves of both Hanoi tasks solve the puzzle by its own rules, and a wrong move is caught."""

import random
import re

import pytest
from conftest import written
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.catalog import load_task
from dataset_builders.tasks.hanoi_iterative import RESTING
from hf_toolssm.errors import EmptyProblemError, InvalidProblemError
from hf_toolssm.protocol.trajectory import StepKind
from hf_toolssm.tools.pointer_memory import read

TASKS = ("hanoi_iterative", "hanoi_recursive")


def play(problem, moves):
    """What is wrong with the moves, by the rules of the puzzle; None for a shortest solution."""
    labels = [problem[at : at + 2] for at in range(0, len(problem) - 1, 2)]
    size = {label: -at for at, label in enumerate(labels)}
    rods = {"A": labels.copy(), "B": [], "C": []}
    count = 0
    for at in range(0, len(moves), 4):
        label, start, goal = moves[at : at + 2], *moves[at + 2 : at + 4]
        if not rods[start] or rods[start].pop() != label:
            return f"move {count}: {label} is not on top of {start}"
        if rods[goal] and size[rods[goal][-1]] < size[label]:
            return f"move {count}: {label} would lie on a smaller disk"
        rods[goal].append(label)
        count += 1
    if rods["C"] != labels:
        return "the tower is not on C"
    return None if count == 2 ** len(labels) - 1 else "longer than need be"


@pytest.mark.parametrize("name", TASKS)
@given(data=st.data())
def test_the_moves_solve_the_puzzle(name, data):
    task = load_task(name)
    labels = data.draw(st.lists(st.integers(1, 99), min_size=1, max_size=7, unique=True))
    problem = "".join(f"{label:02}" for label in labels) + task.end
    for variant in task.variants:
        answer = task.solve(problem, variant).answer
        moves = "".join(re.findall("([0-9]{2}[ABC]{2}):", answer)) if variant == "copied_states" else answer
        assert play(problem, moves) is None
    assert play(problem, task.answer(problem, task.variants[0])) is None


def test_the_papers_iterative_way_writes_every_state():
    answer = load_task("hanoi_iterative").solve("9745>", "copied_states").answer
    assert answer == "45AB:A97B45C#97AC:AB45C97#45BC:ABC9745#"


def test_a_wrong_move_is_caught():
    task = load_task("hanoi_recursive")
    problem = "97034521<"
    moves = task.answer(problem, task.variants[0])
    rng = random.Random(0)
    for _ in range(200):
        at = rng.randrange(len(moves))
        other = rng.choice([cell for cell in ("ABC" if moves[at] in "ABC" else "0123456789") if cell != moves[at]])
        assert play(problem, moves[:at] + other + moves[at + 1 :]) is not None
    assert play(problem, moves[:-4]) == "the tower is not on C"


def test_the_recursive_lists_are_the_solutions_of_the_smaller_towers():
    task = load_task("hanoi_recursive")
    trajectory = task.solve("97034521<", "three_pointers")
    thoughts = "".join(s.text for s in trajectory.steps if s.kind is StepKind.THOUGHT)
    lists = thoughts.removesuffix("<|answer|>").split("#")[1:]
    assert lists == [task.answer(problem, task.variants[0]) for problem in ("21<", "4521<", "034521<")]


def test_the_work_of_an_iterative_move_does_not_grow():
    task = load_task("hanoi_iterative")
    rates = []
    for disks in (6, 11):
        problem = task.sample_test(random.Random(disks), disks)
        rates.append(len(written(task.solve(problem, "half_speed"))) / 2**disks)
    assert rates[1] < rates[0] < 40


def test_the_direction_of_the_smallest_disk_is_read_and_not_remembered():
    task = load_task("hanoi_iterative")
    for disks in (4, 5):
        trajectory = task.solve(task.sample_test(random.Random(disks), disks), "half_speed")
        signs = [cell for kind, cell in written(trajectory) if kind is StepKind.OBSERVATION and cell in "+-"]
        assert len(signs) >= 2 ** (disks - 1)
        assert set(signs[-(2 ** (disks - 1)) :]) == {"-" if disks % 2 else "+"}
        assert read(RESTING + 1) in {s.name for s in trajectory.steps}


@pytest.mark.parametrize("name", TASKS)
def test_what_is_no_tower_is_named(name):
    task = load_task(name)
    end, other = task.end, "<>".replace(task.end, "")
    for problem in (f"97{end}45", f"975{end}", f"9797{end}", f"00{end}", "97", end, f"ab{end}", f"97{other}"):
        with pytest.raises(InvalidProblemError, match=f"970345{end}"):
            task.solve(problem, task.variants[0])
    with pytest.raises(EmptyProblemError):
        task.solve("", task.variants[0])
    with pytest.raises(InvalidProblemError, match="no variant"):
        task.solve("97" + end, "fast")
    with pytest.raises(InvalidProblemError, match="99 disks"):
        task.sample_test(random.Random(0), 100)
    with pytest.raises(InvalidProblemError, match="no adversarial set"):
        task.sample_adversarial("easy", random.Random(0), 5, 0)


def test_adversarial_towers_are_what_their_names_say():
    task = load_task("hanoi_iterative")
    draw = {name: task.labels(task.sample_adversarial(name, random.Random(1), 9, 0)) for name in task.adversarial}
    numbers = sorted(map(int, draw["consecutive_labels"]))
    assert numbers == list(range(numbers[0], numbers[0] + 9))
    assert len({label[1] for label in draw["equal_units"]}) == 1
    assert draw["growing_labels"] == sorted(draw["growing_labels"])
