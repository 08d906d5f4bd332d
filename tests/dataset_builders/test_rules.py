"""The rule of a task: every trajectory of every problem is one of its paths."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builders.algorithms.machine import parse_machine
from dataset_builders.algorithms.machine_contexts import MachineContexts
from dataset_builders.catalog import load_task
from dataset_builders.task import example_rng
from hf_toolssm.errors import CertificationError
from hf_toolssm.evaluation.certification.walks import walk_rows
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.render import IGNORED
from hf_toolssm.protocol.rule import END
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import WRITER_OF, StepKind
from hf_toolssm.tools import make_tool

MACHINES = (
    *("balanced_brackets", "binary_addition", "binary_increment", "binary_sorting", "copy", "palindrome", "rule_110"),
    *("unary_addition", "busy_beaver_3", "busy_beaver_4"),
)

LOCAL = {
    "addition": "local",
    "hanoi_iterative": "half_speed",
    "hanoi_recursive": "three_pointers",
    "multiplication_nx1": "local",
    "multiplication_nx2": "local",
    "multiplication_nxn": "local",
    "sorting": "local",
}
"""Tasks with a rule, and their variant that has it."""


@cache
def rule_of(name):
    return load_task(name).rule("tape")


def tokens_of(trajectory):
    """Its tokens, the ends of turns among them, and whether the model wrote each."""
    found = []
    for number, step in enumerate(trajectory.steps):
        found += [(END, True)] * (step.kind is StepKind.INPUT and number > 0)
        cells = [begin_token(step.name)] if step.kind is StepKind.CALL else step.cells()
        found += [(cell, step.kind not in WRITER_OF) for cell in cells]
    return [*found, (END, True)]


def follow(rule, tokens):
    """The states of the rule that a run may be in at the end.

    Raises:
        AssertionError: none is left, or the model wrote what is not right.
    """
    states = {rule.start}
    for at, (token, written) in enumerate(tokens):
        places = [rule.place(state) for state in states]
        if written:
            assert {place.right for place in places} == {token}, (at, token)
        states = {then for place in places for then in place.follows.get(token, ())}
        assert states or token == END, (at, token)
    return states


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=25)
@given(length=st.integers(1, 24), seed=st.integers(0, 10**6), runs=st.booleans())
def test_every_trajectory_is_a_path_of_the_rule(name, length, seed, runs):
    task = load_task(name)
    shortest, longest = task.machine.inputs.shortest, task.machine.inputs.longest
    length = max(shortest, length if longest is None else min(length, longest))
    rng = example_rng(name, seed)
    problem = (
        task.sample_adversarial("runs", rng, length, seed)
        if runs and not task.machine.inputs.has_few_words
        else task.sample_test(rng, length)
    )
    assert not follow(rule_of(name), tokens_of(task.solve(problem, "tape")))


@pytest.mark.parametrize("name", LOCAL)
@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 6), seed=st.integers(0, 10**6), data=st.data())
def test_every_problem_of_other_tasks_is_a_path_of_the_rule(name, length, seed, data):
    task, variant = load_task(name), LOCAL[name]
    kind = data.draw(st.sampled_from(["plain", *task.adversarial]))
    rng = example_rng(name, seed)
    problem = (
        task.sample_test(rng, length)
        if kind == "plain"
        else task.sample_adversarial(kind, rng, length, seed % (2 * length))
    )
    assert not follow(task.rule(variant), tokens_of(task.solve(problem, variant)))


@pytest.mark.parametrize("name", ["associative_recall", "last_write", "phonebook"])
@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 6), seed=st.integers(0, 10**6), data=st.data())
def test_every_session_with_a_store_is_a_path_behind_which_another_turn_may_begin(name, length, seed, data):
    task = load_task(name)
    kind = data.draw(st.sampled_from(["training", "plain", *task.adversarial]))
    rng = example_rng(name, seed)
    if kind in ("training", "plain"):
        problem = (task.sample_training if kind == "training" else task.sample_test)(rng, length)
    else:
        problem = task.sample_adversarial(kind, rng, length, seed)
    rule = task.rule("store")
    assert follow(rule, tokens_of(task.solve(problem, "store"))) == {rule.start}


WITHOUT = [(name, variant) for name in LOCAL for variant in load_task(name).variants if variant != LOCAL[name]]


@pytest.mark.parametrize(("name", "variant"), [*WITHOUT, ("logical_graph", "depth_first"), ("phonebook", "state")])
def test_a_task_without_a_rule_says_why(name, variant):
    why = {"addition-two_pointers": "k grows", "logical_graph-depth_first": "456,976 contexts"}
    with pytest.raises(CertificationError, match=why.get(f"{name}-{variant}", "no rule")):
        load_task(name).rule(variant)


@pytest.mark.parametrize(("name", "variant"), [("palindrome", "tape"), *LOCAL.items(), ("last_write", "store")])
def test_a_walk_is_a_path_of_the_rule_and_its_labels_are_what_the_model_has_to_write(name, variant):
    task = load_task(name)
    rule = task.rule(variant)
    tokenizer = build_task_tokenizer(task.cells(variant), [make_tool(spec) for spec in task.tools(variant)])
    rows = walk_rows(rule, tokenizer, 30, 200, 3)
    assert rows.num_rows == 30
    assert rows.to_list() == walk_rows(rule, tokenizer, 30, 200, 3).to_list() != walk_rows(rule, tokenizer, 30, 200, 4)
    for row in rows:
        texts = tokenizer.convert_ids_to_tokens(row["input_ids"])
        tokens = [END if token == tokenizer.eos_token else token for token in texts]
        assert 0 < len(tokens) <= 200
        assert {(label, token) for label, token in zip(row["labels"], row["input_ids"]) if label != IGNORED} <= {
            (token, token) for token in row["input_ids"]
        }
        follow(rule, [(token, label != IGNORED) for token, label in zip(tokens, row["labels"])])
        state = rule.start
        for token, label in zip(tokens, row["labels"]):
            place = rule.place(state)
            assert (label != IGNORED) == (token == place.right)  # a user may go on where the model might begin
            behind = place.follows[token]
            if len(behind) != 1:
                break  # from here on several states may be meant
            (state,) = behind


def test_a_wrong_token_is_on_no_path():
    task = load_task("palindrome")
    tokens = tokens_of(task.solve("abba", "tape"))
    for at, (token, written) in enumerate(tokens):
        if written:
            wrong = "<|tape_left|>" if token != "<|tape_left|>" else "<|tape_right|>"
            with pytest.raises(AssertionError):
                follow(task.rule("tape"), [*tokens[:at], (wrong, True), *tokens[at + 1 :]])


def test_cells_that_cannot_stand_there_are_left_out():
    """`palindrome` looks for its last symbol on the way from the right: there is no end of the tape there."""
    contexts = MachineContexts(load_task("palindrome").machine)
    cells = {window.cell.symbol for window in contexts._tapes["last_a"].windows}
    assert cells == {"a", "b", "_"}


@pytest.mark.parametrize(("name", "marks"), [("copy", "AB"), ("binary_sorting", "x")])
def test_a_machine_that_marks_one_cell_has_never_two(name, marks):
    """Wherever the head stands; and when it has halted there is none."""
    contexts = MachineContexts(load_task(name).machine)
    for state, tapes in contexts._tapes.items():
        for left, cell, right in tapes.windows:
            seen = [mark for c in (left, cell, right) for mark in c.symbol + c.beyond if mark in marks]
            assert len(seen) <= (state not in ("done", "to the left end", "to the right end"))


def test_a_missing_rule_ends_a_path():
    table = "symbols: 01_\ninput: [01]+\nstart: right\nhalt: done\n\nright 0 -> right R\nright _ -> done S\n"
    rule = MachineContexts(parse_machine(table, "zeros"))
    windows = [w for w in rule._tapes["right"].windows if w.cell.symbol == "1"]
    assert windows
    assert all(rule.place(("seeing", "right", window)).follows == {"1": ()} for window in windows)
