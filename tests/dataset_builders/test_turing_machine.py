"""A machine's table is checked line by line, and becomes problems and trajectories that do what the machine does."""

import random
import shutil

import pytest
from conftest import written
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.algorithms.machine import parse_machine
from dataset_builders.algorithms.machine_inputs import parse_inputs
from dataset_builders.algorithms.turing_machine import TuringMachine
from dataset_builders.build import main as build
from dataset_builders.card import write_card
from dataset_builders.catalog import available_machines, load_task
from dataset_builders.mixture import merge_tools
from dataset_builders.problem_sets import (
    TEST,
    TRAINING,
    ProblemSet,
    ReferenceTrajectories,
    evaluation_sets,
    generate_rows,
    problem_at,
)
from dataset_builders.task import split_of, task_tool
from hf_toolssm.errors import (
    DatasetMismatchError,
    DidNotHaltError,
    EmptyProblemError,
    InvalidMachineError,
    InvalidProblemError,
    NoRuleError,
    TooFewProblemsError,
    UnknownTaskError,
)
from hf_toolssm.protocol.locality import locality
from hf_toolssm.protocol.trajectory import StepKind

INCREMENT = """# Adds one.
symbols: 01_
input: [01]+
start: right
halt: done

right 01 -> right R
right _  -> carry L
carry 1  -> carry 0 L
carry 0_ -> done 1 S
"""

every = pytest.mark.parametrize("name", available_machines())


def problem_sets(name):
    far = [9] if name.startswith("busy_beaver") else [25, 30]  # on longer tapes busy beavers hardly ever halt
    training = ProblemSet(load_task(name), TRAINING, 8, (("train", 200), ("validation", 20)), "tape")
    tests = evaluation_sets(load_task(name), "tape", far, far[-1:], 6)
    # Nobody waits for the busy beaver of five states.
    return [training, *(s for s in tests if (name, s.kind) != ("busy_beaver_5", "blank"))]


def problems_of(name):
    return {
        (s.name, split, i): problem_at(s, split, i)
        for s in problem_sets(name)
        for split, n in s.sizes
        for i in range(n)
    }


def tape_of(name, problem):
    return load_task(name).solve(problem, "tape").answer


@every
def test_problems_are_deterministic_and_splits_are_disjoint(name):
    problems, task = problems_of(name), load_task(name)
    assert problems == problems_of(name)
    assert all(split_of(task, problem) == split for (_, split, _), problem in problems.items())
    assert all(1 <= task.length(p) <= 8 for (kind, _, _), p in problems.items() if kind == "max_length_8")
    plain = {s.name: s.length for s in problem_sets(name)[1:]}
    assert all(task.length(p) == plain[kind] for (kind, _, _), p in problems.items() if kind in plain)


@every
def test_the_trajectory_on_the_tape_tool_ends_as_the_machine_by_itself(name):
    task = load_task(name)
    for problem in problems_of(name).values():
        assert task.solve(problem, "tape").answer == task.answer(problem, "tape"), problem


@every
def test_replaying_the_commands_gives_back_the_observations(name):
    task = load_task(name)
    for problem in list(problems_of(name).values())[::10]:
        trajectory = task.solve(problem, "tape")
        session, shown = task_tool(task, "tape").start(trajectory.problem, marker=str), []
        for step in trajectory.steps:
            if step.kind is StepKind.OBSERVATION:
                assert step.content == shown.pop()
            elif step.kind is StepKind.CALL:
                assert step.content is None
                observed = session.call(step.name, ())
                shown += [observed] if observed else []
        assert not shown


@every
def test_the_last_five_tokens_determine_the_next(name):
    trajectories = [load_task(name).solve(problem, "tape") for problem in problems_of(name).values()]
    assert locality(trajectories).k <= 5


@every
def test_training_shows_every_state_on_every_symbol_that_a_longer_problem_meets(name):
    """Otherwise a model could not know what to do there (Theorem 2.2): of training's rows here 500."""

    def contexts(trajectories):
        texts = [[cell for _, cell in written(t)] for t in trajectories]
        return {(a, b, c) for steps in texts for a, b, c in zip(steps, steps[1:], steps[2:]) if b == "<|tape_read|>"}

    training = ProblemSet(load_task(name), TRAINING, 8, (("train", 500),), "tape")
    longer = [s for s in problem_sets(name) if s.kind != TRAINING]
    needed = contexts(t for s in longer for t in ReferenceTrajectories(s))
    assert needed <= contexts(ReferenceTrajectories(training, "train"))


NUMBERS = st.text("01", min_size=1, max_size=30)
WORDS = st.text("ab", min_size=1, max_size=30)


@given(number=NUMBERS)
def test_binary_increment_adds_one(number):
    found = tape_of("binary_increment", number)
    assert int(found, 2) == int(number, 2) + 1
    assert len(found) in (len(number), len(number) + 1)


@given(first=st.integers(1, 30), second=st.integers(1, 30))
def test_unary_addition_adds(first, second):
    assert tape_of("unary_addition", "1" * first + "+" + "1" * second) == "1" * (first + second)


@given(first=NUMBERS, second=NUMBERS)
def test_binary_addition_adds(first, second):
    assert int(tape_of("binary_addition", f"{first}+{second}"), 2) == int(first, 2) + int(second, 2)


@given(word=WORDS, mirrored=st.booleans())
def test_palindrome_knows_palindromes(word, mirrored):
    word = word + word[::-1] if mirrored else word
    assert tape_of("palindrome", word) == ("Y" if word == word[::-1] else "N")


@given(word=st.text("()", min_size=1, max_size=30))
def test_balanced_brackets_knows_them(word):
    heights = [word[: at + 1].count("(") - word[: at + 1].count(")") for at in range(len(word))]
    assert tape_of("balanced_brackets", word) == ("Y" if min(heights) == heights[-1] == 0 else "N")


@given(word=WORDS)
def test_copy_copies(word):
    assert tape_of("copy", word + "#") == f"{word}#{word}"


@given(word=NUMBERS)
def test_binary_sorting_sorts(word):
    assert tape_of("binary_sorting", word) == "".join(sorted(word))


@given(cells=NUMBERS, generations=st.integers(1, 9))
def test_rule_110_is_the_automaton(cells, generations):
    row = cells
    for _ in range(generations):
        padded = f"00{row}0"  # a generation reaches one cell further to the left
        row = "".join("01110110"[int(padded[at : at + 3], 2)] for at in range(len(row) + 1))
    assert tape_of("rule_110", "1" * generations + ":" + cells) == row


@pytest.mark.parametrize(("states", "steps", "ones"), [(3, 21, 5), (4, 107, 13)])
def test_a_busy_beaver_halts_after_the_steps_that_it_is_known_for(states, steps, ones):
    task = load_task(f"busy_beaver_{states}")
    outcome = task.machine.run("0", 1_000)
    assert (outcome.steps, outcome.tape.count("1")) == (steps, ones)
    assert task.solve("0", "tape").answer == task.solve("0000", "tape").answer == "1" * ones
    assert task.sample_adversarial("blank", random.Random(0), 4, 0) == "0000"
    assert split_of(task, "0") == split_of(task, "0000") == "test"


@pytest.mark.slow
def test_the_busy_beaver_of_five_states_halts_after_47_million_steps():
    outcome = load_task("busy_beaver_5").machine.run("0", 50_000_000)
    assert (outcome.steps, outcome.tape.count("1")) == (47_176_870, 4_098)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("carry 1  -> carry 0 L", "carry 1  -> carry 2 L"), "line 9: '2' is none of the symbols 01_"),
        (("right 01 -> right R", "right 0x -> right R"), "line 7: 'x' is none of the symbols"),
        (("carry 0_ ->", "carry 1_ ->"), "line 10: the state carry on '1' has a rule in line 9 already"),
        (
            ("carry 0_ -> done 1 S", "carry 0_ -> done 1 S\nlost 0 -> done R"),
            "line 11: the state lost is never reached",
        ),
        (("right _  -> carry L", "right _  -> cary L"), "line 8: the state cary has no rule and is no halt state"),
        (("halt: done", "halt: done lost"), "line 5: the halt state lost is never reached"),
        (("carry 0_ -> done 1 S", "carry 0_ -> done 1 S\ndone 0 -> done R"), "line 11: done is a halt state, and has"),
        (("start: right", "start: left"), "line 4: the start state left has no rule"),
        (("right 01 -> right R", "right 01 -> right up"), "line 7: .* is neither a rule"),
        (("input: [01]+", "input: [01+"), "line 3: .* is no input"),
        (("input: [01]+", "input: [01]{3,2}"), "line 3: .* asks for 3 to 2 symbols"),
        (("input: [01]+", "input: [01]+=?"), "line 3: the input has '='"),
        (("symbols: 01_", "symbols: 011_"), "line 2: .*symbols must be different"),
        (("symbols: 01_", "symbols: 01"), "line 2: the blank '_' is none of the symbols"),
        (("halt: done", "halt: done\nanswer: both"), "line 6: answer is tape or state"),
        (("halt: done", "halt:"), "line 5: halt names no state"),
        (("start: right\n", ""), "a line `start: ...` is missing"),
        (("start: right", "start: right\nstart: carry"), "line 5: start was given in line 4 already"),
    ],
)
def test_a_wrong_table_is_named_with_its_line(change, message):
    assert change[0] in INCREMENT
    with pytest.raises(InvalidMachineError, match=message):
        parse_machine(INCREMENT.replace(*change), "increment")


def test_a_machine_that_does_not_halt_is_said_so_before_anything_is_built(tmp_path):
    path = tmp_path / "endless.tm"
    path.write_text(
        INCREMENT.replace("right _  -> carry L", "right _  -> right R\nright_ 0 -> carry L"), encoding="utf-8"
    )
    with pytest.raises(InvalidMachineError):  # a state that is never reached: the typo that makes it endless
        load_task(str(path))
    endless = INCREMENT.replace("right _  -> carry L", "right _  -> right R\nright x -> carry L")
    path.write_text(endless.replace("01_", "01x_"), encoding="utf-8")
    with pytest.raises(DidNotHaltError, match="endless did not halt within"):
        build([str(path), "--output", str(tmp_path / "rows"), "--train-max-length", "4", "--num-examples", "5"])
    assert not list(tmp_path.glob("rows/*/*.parquet"))
    with pytest.raises(DidNotHaltError, match="endless has not halted after 1,000 steps"):
        load_task(str(path)).machine.run("0", 1_000)


def test_a_missing_rule_is_named_when_the_machine_comes_to_it(tmp_path):
    path = tmp_path / "increment.tm"
    path.write_text(INCREMENT.replace("carry 0_ ->", "carry 0 ->"), encoding="utf-8")
    task = load_task(str(path))
    assert task.solve("101", "tape").answer == "110"
    for solve in (task.solve, task.answer):
        with pytest.raises(NoRuleError, match="no rule for the state carry on '_': add a line"):
            solve("11", "tape")


def test_a_users_own_machine_is_one_file_away_from_a_dataset(tmp_path):
    path = tmp_path / "mine.tm"
    path.write_text(INCREMENT, encoding="utf-8")
    build([str(path), "--output", str(tmp_path / "rows"), "--train-max-length", "6", "--num-examples", "50"])
    card = (tmp_path / "rows" / "README.md").read_text(encoding="utf-8")
    assert "python -m dataset_builders.build mine.tm --output FOLDER" in card
    assert str(tmp_path) not in card
    assert (tmp_path / "rows" / "mine.tm").read_text(encoding="utf-8") == INCREMENT
    write_card(tmp_path / "rows")  # from what lies there
    assert (tmp_path / "rows" / "README.md").read_text(encoding="utf-8") == card
    assert 'pretty_name: "Adds one."' in card
    assert "of `mine`" in card
    moved = shutil.copytree(tmp_path, tmp_path.parent / "elsewhere") / "mine.tm"
    here, there = (ProblemSet(load_task(str(table)), TEST, 9, (("test", 1),), "tape") for table in (path, moved))
    assert next(generate_rows(here, "test", 0, 1)) == next(generate_rows(there, "test", 0, 1))


def test_a_changed_table_is_another_task(tmp_path):
    path = tmp_path / "mine.tm"
    path.write_text(INCREMENT, encoding="utf-8")
    before = load_task(str(path))
    build([str(path), "--output", str(tmp_path / "rows"), "--train-max-length", "6", "--num-examples", "50"])
    path.write_text(INCREMENT + "# changed\n", encoding="utf-8")
    assert load_task(str(path)).version != before.version
    with pytest.raises(DatasetMismatchError, match=f"version {before.version}.*choose another --output"):
        build([str(path), "--output", str(tmp_path / "rows"), "--lengths", "9", "--num-problems", "2"])
    assert (tmp_path / "rows" / "mine.tm").read_text(encoding="utf-8") == INCREMENT


def test_a_problem_that_the_machine_cannot_read_is_named():
    task = load_task("binary_increment")
    with pytest.raises(InvalidProblemError, match="'2' is none of the symbols 01_"):
        task.solve("102", "tape")
    with pytest.raises(EmptyProblemError, match="blank cell '_'"):
        task.answer("", "tape")
    with pytest.raises(TooFewProblemsError, match="no input of fewer than 3 symbols"):
        load_task("unary_addition").sample_training(random.Random(0), 2)


def test_an_unknown_machine_is_named():
    with pytest.raises(UnknownTaskError, match="busy_beaver_3.*any file of yours that ends in .tm"):
        load_task("nowhere.tm")


@given(seed=st.integers(0, 10**6), length=st.integers(3, 40), runs=st.booleans())
def test_inputs_have_the_length_and_the_shape_that_was_asked_for(seed, length, runs):
    rng = random.Random(seed)
    for name in available_machines():
        word = load_task(name).machine.inputs.sample(rng, length, runs)
        assert len(word) == length
        assert set(word) <= load_task(name).machine.inputs.symbols
    ticks, colon, cells = load_task("rule_110").machine.inputs.sample(rng, length, runs).partition(":")
    assert colon
    assert 1 <= len(ticks) <= 9
    assert cells


@pytest.mark.parametrize(
    ("pattern", "longest"), [("[01]{1,8}", 8), ("1{1,9}:0{1,9}", 19), ("1{0,3}0{0,3}", 6), ("[01][01]", 2)]
)
def test_bounded_inputs_have_every_length_that_they_can(pattern, longest):
    inputs = parse_inputs(pattern)
    for length in range(inputs.shortest, longest + 1):
        assert all(len(inputs.sample(random.Random(seed), length)) == length for seed in range(50))
    with pytest.raises(TooFewProblemsError, match=f"no input has {longest + 1} symbols"):
        inputs.sample(random.Random(0), longest + 1)
    task = TuringMachine(parse_machine(INCREMENT.replace("[01]+", pattern).replace("01_", "01:_"), "bounded"))
    if pattern == "[01]{1,8}":
        assert max(len(task.sample_training(random.Random(seed), 20)) for seed in range(50)) == longest


def test_half_of_the_palindromes_are_some_at_odd_lengths_too():
    inputs = parse_inputs("palindrome [ab]")
    words = [inputs.sample(random.Random(seed), 3) for seed in range(1_000)]
    assert 430 < sum(word == word[::-1] for word in words) < 570


def test_a_tape_of_blanks_is_held_out_where_there_are_other_inputs_only():
    only = TuringMachine(parse_machine(INCREMENT.replace("[01]+", "_+"), "only"))
    assert "train" in {split_of(only, "_" * length) for length in range(1, 17)}
    assert only.adversarial == ("runs",)
    apart = TuringMachine(parse_machine(INCREMENT.replace("[01]+", "1+_1+"), "apart"))
    assert apart.adversarial == ("runs",)


@pytest.mark.parametrize("pattern", ["1+", "1+_", "0{0,3}1+"])
def test_inputs_of_which_there_are_few_have_some_to_train_on_and_every_longer_one_to_test(pattern):
    """By their hash alone a unary number of 1,000 is in the test split with one chance in ten, or nowhere."""
    task = TuringMachine(parse_machine(INCREMENT.replace("[01]+", pattern), "few"))
    rng = random.Random(0)
    assert "train" in {split_of(task, task.sample_training(rng, 8)) for _ in range(100)}
    assert all(split_of(task, task.sample_test(rng, length)) == "test" for length in (17, 32, 100, 1_000))


@pytest.mark.parametrize("pattern", ["[01]+", "1+_1+", "[01]{4,4}1+", "palindrome [01]", "balanced 01"])
def test_inputs_of_which_there_are_many_fall_into_every_split_at_every_length(pattern):
    task = TuringMachine(parse_machine(INCREMENT.replace("[01]+", pattern), "many"))
    rng = random.Random(0)
    splits = [split_of(task, task.sample_test(rng, 60)) for _ in range(300)]
    assert 0.5 < splits.count("train") / 300 < 0.95
    assert {"train", "test"} <= set(splits)


def test_a_machine_that_runs_off_ends_on_as_many_cells_as_the_tape_tool_has(monkeypatch):
    from dataset_builders.algorithms import machine

    monkeypatch.setattr(machine, "MAX_CELLS", 500)
    endless = INCREMENT.replace("right _  -> carry L", "right _  -> right R\nright x -> carry L").replace(
        "01_", "01x_"
    )
    with pytest.raises(DidNotHaltError, match="endless has not halted on 500 cells, after 500 steps"):
        parse_machine(endless, "endless").run("0", 10**9)
    to_the_left = endless.replace("right _  -> right R", "right _  -> right L").replace(
        "right 01 -> right R", "right 01 -> right L"
    )
    with pytest.raises(DidNotHaltError, match="endless has not halted on 512 cells"):
        parse_machine(to_the_left, "endless").run("0", 10**9)


def test_a_machine_may_have_hundreds_of_states_with_a_letter_each():
    chain = "".join(f"s{n} 01_ -> s{n + 1} R\n" for n in range(300))
    table = f"symbols: 01_\ninput: [01]+\nstart: s0\nhalt: s300\n{chain}"
    letters = parse_machine(table, "chain").letters
    assert len(set(letters.values())) == len(letters) == 301
    assert all(len(letter) == 1 for letter in letters.values())
    longer = table.replace("halt: s300", "halt: s1000") + "".join(f"s{n} 0 -> s{n + 1} R\n" for n in range(300, 1_000))
    with pytest.raises(InvalidMachineError, match="1001 states are more than the .* letters that name them"):
        parse_machine(longer, "chain")


def test_a_table_of_another_editor_is_read(tmp_path):
    path = tmp_path / "windows.tm"
    path.write_bytes(b"\xef\xbb\xbf" + INCREMENT.replace(": ", ":").replace("\n", "\r\n").encode())
    assert load_task(str(path)).title == "Adds one."


def test_machines_of_a_mixture_keep_all_their_symbols():
    tasks = [(load_task(name), "tape") for name in ("binary_increment", "palindrome")]
    assert merge_tools(tasks) == [{"name": "tape", "symbols": "01_ab"}]
