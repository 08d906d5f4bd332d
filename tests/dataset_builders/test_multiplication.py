"""The three multiplication tasks: what their rows say, and that training shows all that long problems need."""

import random
import re
import sys
from collections import Counter

import pytest
from conftest import remembered, thinking, written
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.algorithms.multiplication import COLUMN_CELLS, LEAD
from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TRAINING, ProblemSet, ReferenceTrajectories, evaluation_sets
from dataset_builders.task import example_rng
from hf_toolssm.errors import EmptyProblemError, InvalidProblemError
from hf_toolssm.protocol.locality import locality
from hf_toolssm.protocol.trajectory import ANSWER, StepKind

TASKS = ("multiplication_nx1", "multiplication_nx2", "multiplication_nxn")
every_task = pytest.mark.parametrize("name", TASKS)


def written_rows(trajectory):
    """The rows of a trajectory, each as its finished digits (lowest first) and its columns of 9 cells."""
    thoughts = [cell for kind, cell in written(trajectory) if kind is StepKind.THOUGHT]
    *rows, collected = "".join(thoughts[: thoughts.index(ANSWER)]).split(";")[1:]
    parsed = []
    for row in rows:
        finished, columns, *row_end = row.split("|")
        assert row_end == [""] * LEAD
        cells = columns[1:]  # behind the first carry, 0
        parsed.append((finished, [cells[at : at + COLUMN_CELLS] for at in range(0, len(cells), COLUMN_CELLS)]))
    return parsed, collected


def rows_are_right(problem, trajectory):
    """Solves the problem with whole numbers: a row is the first number times the digits of the second so far."""
    first, second = problem.rstrip("=").split("*")
    rows, collected = written_rows(trajectory)
    for count, (finished, columns) in enumerate(rows, 1):
        digits = finished + "".join(column[7] for column in columns)
        if int(digits[::-1]) != int(first) * int(second[-count:]):
            return False
    return len(rows) == len(second) and int(collected[::-1]) == int(trajectory.answer) == int(first) * int(second)


def used_table_entries(problem, trajectory):
    """The entries of every table that the columns of a trajectory look up: inputs of one thought each."""
    first, second = problem.rstrip("=").split("*")
    used = set()
    rows, _ = written_rows(trajectory)
    above = None
    for (_, columns), b in zip(rows, reversed(second)):
        carry = "0"
        for at, (a, column) in enumerate(zip(reversed(first), columns)):
            again, tens, units, over, low, high, over_again, _, next_carry = column
            assert again == carry
            used |= {("product", a, b), ("low", units, carry), ("high", tens, over), ("carry", high, over_again)}
            used.add(("first row", low) if above is None else ("sum", low, above[at + 1][7]))
            carry = next_carry
        used.add(("last column", carry))
        above = columns
    return used


@given(first=st.integers(0, 10**12).map(str), second=st.integers(0, 10**12).map(str))
def test_multiplication_multiplies(first, second):
    tasks = {name: load_task(name) for name in TASKS}
    problems = {"multiplication_nx1": second[0], "multiplication_nx2": second[:2], "multiplication_nxn": second}
    for name, factor in problems.items():
        for variant in tasks[name].variants:
            problem = f"{first}*{factor}="
            assert tasks[name].solve(problem, variant).answer == str(int(first) * int(factor)), (problem, variant)


@given(first=st.integers(0, 10**20).map(str), second=st.integers(0, 10**9).map(str))
def test_every_row_is_the_first_number_times_the_digits_so_far(first, second):
    problem = f"{first}*{second}="
    assert rows_are_right(problem, load_task("multiplication_nxn").solve(problem, "local"))


def test_a_wrong_digit_anywhere_in_a_row_is_found():
    problem = "9070*608="
    trajectory = load_task("multiplication_nxn").solve(problem, "local")
    wrong, seen = 0, 0
    cells = remembered(trajectory)
    assert rows_are_right(problem, thinking(trajectory, cells))
    for at, (kind, cell) in enumerate(cells):
        if kind is StepKind.THOUGHT and cell.isdigit():
            changed = thinking(trajectory, [*cells[:at], (kind, str((int(cell) + 1) % 10)), *cells[at + 1 :]])
            # What a column's digit is computed from does not show in the row itself.
            seen += 1
            wrong += not rows_are_right(problem, changed)
    columns = sum(len(columns) for _, columns in written_rows(trajectory)[0])
    finished = sum(len(digits) for digits, _ in written_rows(trajectory)[0])
    assert wrong >= columns + finished + len("9070608")
    assert wrong < seen


@every_task
def test_k_does_not_grow_beyond_training(name):
    training = ProblemSet(load_task(name), TRAINING, 5, (("train", 300),), "local")
    short = ReferenceTrajectories(training, "train")
    long = [t for s in evaluation_sets(load_task(name), "local", [50], [50], 2) for t in ReferenceTrajectories(s)]
    assert locality(short).k == locality([*short, *long]).k == 9


def test_the_papers_algorithm_is_local_for_one_digit_and_not_for_two():
    def k(name, length, number=4):
        task = load_task(name)
        problems = [task.sample_test(random.Random(seed), length) for seed in range(number)]
        return locality(task.solve(problem, "partial_products") for problem in problems).k

    assert k("multiplication_nx1", 5, 600) == k("multiplication_nx1", 40, 60) == 8
    assert k("multiplication_nx2", 80) is None or k("multiplication_nx2", 80) > 80


@pytest.mark.parametrize(("name", "max_length"), [(TASKS[0], 10), (TASKS[1], 10), (TASKS[2], 5)])
def test_training_shows_every_table_entry_that_long_problems_look_up(name, max_length):
    training = ProblemSet(load_task(name), TRAINING, max_length, (("train", 2_000),), "local")
    shown = Counter()
    for trajectory in ReferenceTrajectories(training, "train"):
        shown.update(used_table_entries("".join(trajectory.problem), trajectory))
    needed = set()
    for problems in evaluation_sets(load_task(name), "local", [60], [60], 3):
        for trajectory in ReferenceTrajectories(problems):
            needed |= used_table_entries("".join(trajectory.problem), trajectory)
    assert min(shown[entry] for entry in needed) >= 3


def test_tokens_grow_with_the_number_of_columns():
    task = load_task("multiplication_nxn")

    def tokens(length):
        return len(written(task.solve("9" * length + "*" + "7" * length + "=", "local")))

    assert tokens(60) < 35 * 60 * 60


def test_numbers_beyond_pythons_digit_limit_are_multiplied():
    digits = sys.get_int_max_str_digits() + 1_000
    task = load_task("multiplication_nx1")
    problem = "5" * digits + "*2="
    expected = "1" * digits + "0"
    assert task.answer(problem, "local") == task.solve(problem, "local").answer == expected


@every_task
@given(length=st.integers(4, 40), index=st.integers(0, 1_000))
def test_adversarial_sets_are_what_their_names_say(name, length, index):
    task = load_task(name)

    def draw(kind):
        problem = task.sample_adversarial(kind, example_rng(kind, length, index), length, index)
        assert task.length(problem) == length
        return sorted(problem.rstrip("=").split("*"), key=len)

    assert all(set(number) <= {"8", "9"} for number in draw("nines"))
    assert draw("zero_or_one")[0] in ("0", "1")
    assert any(set(number[1:]) == {"0"} and number[0] == "1" for number in draw("power_of_ten"))
    assert all(len(set(number)) == 1 for number in draw("equal_digits"))
    longest = draw("zeros_inside")[1]
    assert longest[0] != "0"
    assert longest[-1] != "0"


@every_task
def test_the_first_problem_of_nines_is_nothing_but_nines(name):
    task = load_task(name)
    problem = task.sample_adversarial("nines", random.Random(0), 6, 0)
    assert re.fullmatch("9{6}[*]9+=", problem)
    assert task.held_out(problem)


@pytest.mark.parametrize(
    "problem", ["12a*5=", "1*2", "1**2=", "-1*2=", "1.5*2=", "01*2=", "1 *2=", "١*٢=", "*=", "1+2="]
)
def test_what_is_no_multiplication_problem_is_named(problem):
    with pytest.raises(InvalidProblemError, match="98765\\*4321="):
        load_task("multiplication_nxn").solve(problem, "local")


def test_what_a_task_does_not_have_is_named():
    task = load_task("multiplication_nxn")
    with pytest.raises(EmptyProblemError, match="at least one cell"):
        task.solve("", "local")
    with pytest.raises(InvalidProblemError, match="no variant 'partial_products'"):
        task.solve("1*2=", "partial_products")
    with pytest.raises(InvalidProblemError, match="no adversarial set"):
        task.sample_adversarial("easy", random.Random(0), 5, 0)


@pytest.mark.parametrize(("name", "problem"), [("multiplication_nx1", "4*76="), ("multiplication_nx2", "4*765=")])
def test_the_papers_algorithm_refuses_a_second_number_that_it_was_not_made_for(name, problem):
    task = load_task(name)
    assert task.solve(problem, "local").answer == task.answer(problem, "local")
    with pytest.raises(InvalidProblemError, match="at most .* digit"):
        task.solve(problem, "partial_products")
