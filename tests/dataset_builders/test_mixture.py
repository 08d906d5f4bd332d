"""A mixture draws its tasks by weight, and has the tools and cells of all of them; one model can learn them all."""

import pickle
import shutil
from itertools import permutations

import pytest
from conftest import CELL_TASKS
from datasets import Dataset

from dataset_builders.catalog import MACHINES, load_task
from dataset_builders.mixture import (
    Share,
    measured_task,
    merge_cells,
    merge_tools,
    mix,
    parse_share,
    trained_part,
    training_shares,
)
from dataset_builders.problem_sets import TRAINING, ProblemSet, ReferenceTrajectories, evaluation_sets
from dataset_builders.task import example_rng
from hf_toolssm.errors import InvalidMixtureError, InvalidProblemError, UnknownTaskError
from hf_toolssm.protocol.locality import locality

LONG = {"hanoi_iterative": 8, "hanoi_recursive": 8, "multiplication_nxn": 25}
"""Lengths far above training that a test can solve; 60 of all other tasks."""


def test_a_share_names_task_length_and_weight():
    assert str(parse_share("addition:5=0.25")) == "addition/local:5=0.25"
    share = parse_share("addition/two_pointers:12=2")
    assert (share.task.name, share.variant, share.max_length, share.weight) == ("addition", "two_pointers", 12, 2.0)


@pytest.mark.parametrize("text", ["addition", "addition=1", "addition:0=1", "addition:5=0", "addition:5=1.2.3", ""])
def test_what_is_no_share_is_named(text):
    with pytest.raises(InvalidMixtureError, match="addition:5=0.25"):
        parse_share(text)


def test_what_a_model_was_trained_on_is_found_for_every_task_of_its_mixture():
    about = {"task": "addition", "variant": "local", "train_max_length": 5, "seed": 0}
    about["mixture"] = ["hanoi_iterative/copied_states:3=1"]
    addition, hanoi, sorting = map(load_task, ("addition", "hanoi_iterative", "sorting"))
    assert trained_part(about, addition) == {"variant": "local", "train_max_length": 5}
    assert trained_part(about, hanoi) == {"variant": "copied_states", "train_max_length": 3}
    assert trained_part(about, sorting) == trained_part({}, sorting) == {}


def test_a_table_of_the_users_own_is_found_beside_the_model_by_its_name(tmp_path):
    """Training knew it by another path, and the model's folder may have been moved since."""
    for path in ("here/mine.tm", "there/yours.tm"):
        (tmp_path / path).parent.mkdir()
        shutil.copy(MACHINES / "copy.tm", tmp_path / path)
    model = tmp_path / "model"
    mine, yours = (load_task(str(tmp_path / path)) for path in ("here/mine.tm", "there/yours.tm"))
    about = {"task": mine.save(model), "variant": "tape", "train_max_length": 8}
    about["mixture"] = [str(Share(yours, "tape", 6, 0.5))]
    yours.save(model)
    shutil.rmtree(tmp_path / "here")
    found, variant = measured_task(about, str(model), None, None)
    assert (found.name, found.version, variant) == ("mine", mine.version, "tape")
    assert trained_part(about, found) == {"variant": "tape", "train_max_length": 8}
    found, _ = measured_task(about, str(model), str(model / "yours.tm"), None)
    assert trained_part(about, found) == {"variant": "tape", "train_max_length": 6}


def test_two_tables_of_one_name_are_named_unless_they_are_the_same(tmp_path):
    for folder, machine in (("here", "copy"), ("there", "palindrome"), ("again", "copy")):
        (tmp_path / folder).mkdir()
        shutil.copy(MACHINES / f"{machine}.tm", tmp_path / folder / "mine.tm")
    task = load_task(str(tmp_path / "here" / "mine.tm"))
    with pytest.raises(InvalidMixtureError, match="two tables.*'mine.tm'.*rename one"):
        training_shares(task, None, 5, [f"{tmp_path}/there/mine.tm:5=1"])
    assert len(training_shares(task, None, 5, [f"{tmp_path}/again/mine.tm:6=1"])) == 2


@pytest.mark.parametrize("name", ["addition", "hanoi_iterative", "multiplication_nx2", "rule_110"])
def test_a_task_may_be_passed_to_another_process(name):
    task = load_task(name)
    passed = pickle.loads(pickle.dumps(task))
    assert (passed.name, passed.saved_name, passed.version) == (name, name, task.version)
    problem = task.sample_test(example_rng(name), 4)
    assert passed.solve(problem, passed.variants[0]) == task.solve(problem, task.variants[0])


def test_an_unknown_task_or_variant_of_a_mixture_is_named():
    with pytest.raises(InvalidProblemError, match="no variant 'two_pointer'.*two_pointers"):
        parse_share("addition/two_pointer:5=1")
    with pytest.raises(UnknownTaskError, match="no task is named 'cooking'"):
        parse_share("cooking:5=1")


def test_tools_are_merged_with_the_largest_of_every_option():
    tasks = [(load_task(name), load_task(name).variants[0]) for name in ("addition", "sorting", "logical_graph")]
    assert merge_tools(tasks) == [{"name": "pointer_memory", "max_pointers": 19}, {"name": "search_memory"}]
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


def test_a_problem_says_by_its_text_which_task_it_is():
    for name, other in permutations(CELL_TASKS, 2):
        if {name.partition("_")[0], other.partition("_")[0]} == {"multiplication"}:
            continue  # three tasks of one algorithm
        task = load_task(name)
        if task.has_words_for_tests and load_task(other).has_words_for_tests:
            continue  # a user says the same in all of them
        problems = [task.sample_test(example_rng(name, length), length) for length in range(1, 20)]
        for problem in problems:
            with pytest.raises(InvalidProblemError):
                load_task(other).solve(problem, load_task(other).variants[0])


def test_only_addition_and_multiplication_which_walk_alike_move_the_same_pointers():
    def moved(name):
        task = load_task(name)
        steps = task.solve(task.sample_test(example_rng(name), 4), task.variants[0]).steps
        return {s.name for s in steps if s.name.startswith(("left_", "right_"))}

    for name, other in permutations(CELL_TASKS, 2):
        if not {name.partition("_")[0], other.partition("_")[0]} <= {"addition", "multiplication"}:
            assert not moved(name) & moved(other), (name, other)


def test_all_tasks_together_are_as_local_as_the_least_local_of_them():
    def solved(name):
        variant, long = load_task(name).variants[0], LONG.get(name, 60)
        training = ProblemSet(load_task(name), TRAINING, 5, (("train", 150),), variant)
        sets = evaluation_sets(load_task(name), variant, [long], [long], 4)
        return [
            t
            for s, split in [(training, "train"), *((s, "test") for s in sets)]
            for t in ReferenceTrajectories(s, split)
        ]

    by_task = {name: solved(name) for name in CELL_TASKS}
    alone = max(locality(trajectories).k for trajectories in by_task.values())
    assert locality([t for trajectories in by_task.values() for t in trajectories]).k == alone
