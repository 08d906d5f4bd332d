"""Repositories that are repaired in a shell: what they are, what the teacher does, and what counts as repaired."""

import difflib

import pytest
from conftest import in_sandbox
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builders.algorithms.bugs import KINDS, with_bugs
from dataset_builders.algorithms.programs import FOO, MAIN, MOST_CALLS, MOST_DEPTH, main_values, sample_program
from dataset_builders.algorithms.repair import read_run, repair
from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TEST, TRAINING, ProblemSet, evaluation_sets, problem_at
from dataset_builders.task import example_rng, split_of
from hf_toolssm.errors import InvalidProblemError
from hf_toolssm.protocol.locality import locality
from hf_toolssm.protocol.parse import parse
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import StepKind

TASK = load_task("code_fixing")
INTERACTIVE = ("interactive", "three_files")
lengths = st.integers(1, 40)


def program(length, seed=0):
    return sample_program(example_rng("a program", length, seed), length)


def training_problems(variant, count):
    training = ProblemSet(TASK, TRAINING, 16, (("train", count),), variant)
    return [problem_at(training, "train", index) for index in range(count)]


def shell_of(problem):
    (bash,) = TASK.make_tools("interactive")
    return bash.start(problem)


@given(lengths, st.integers(0, 1000))
def test_a_program_has_so_many_functions_and_foo_is_reached_from_main(length, seed):
    drawn = program(length, seed)
    assert len(drawn.functions) == length + 1
    assert (list(drawn.functions)[0], list(drawn.functions)[-1]) == (MAIN, FOO)
    assert {MAIN, FOO} <= drawn.on_path()
    called = {callee for function in drawn.functions.values() for callee in function.callees}
    assert called == set(drawn.functions) - {MAIN}


@pytest.mark.parametrize("length", [2, 16, 64, 256, 1000, 2000])
def test_at_every_length_a_run_is_bounded_and_most_functions_need_repair(length):
    for seed in range(3):
        drawn = program(length, seed)
        depth, calls = drawn.depth_and_calls()
        assert depth <= MOST_DEPTH < 100
        assert calls <= MOST_CALLS * (length + 2)
        assert len(drawn.on_path()) > length / 2


@in_sandbox
@settings(max_examples=10)
@given(st.integers(1, 20), st.integers(0, 1000))
def test_python_prints_what_the_statements_say(length, seed):
    problem = f"{length} functions, bugs variable; seed {seed}"
    drawn, shell = TASK.program(problem), shell_of(problem)
    for name, text in drawn.files(repaired=True).items():
        shell.put(name, text)
    assert shell.call("bash", "python3 main.py") == f"{drawn.printed(drawn.values)}\n"
    assert TASK.passes(problem, shell)


def test_short_programs_have_the_line_numbers_and_the_names_of_long_ones():
    def seen(length, count):
        programs = [program(length, seed) for seed in range(count)]
        lines = {text.count("\n") for program in programs for text in program.files().values()}
        return lines, {len(name) for program in programs for name in program.functions if name[0] == "f"}

    (lines, names), (many_lines, many_names) = seen(16, 60), seen(300, 3)
    assert max(lines) == max(many_lines) == 30
    assert {*range(12, 31)} <= lines
    assert many_names <= names == {2, 3, 4, 5}


def test_v10_changes_what_is_printed():
    for seed in range(20):
        drawn = program(12, seed)
        assert drawn.printed(drawn.values) != drawn.printed((*drawn.values[:-1], drawn.values[-1] + 1))


@given(st.integers(4, 30), st.integers(0, 1000))
def test_every_bug_changes_one_line_of_its_own(length, seed):
    drawn = program(length, seed)
    sound, broken = drawn.files(), with_bugs(drawn, KINDS, example_rng("bugs", seed))
    changed = [
        line
        for name in sound
        for line in difflib.ndiff(sound[name].split("\n"), broken[name].split("\n"))
        if line.startswith("- ")
    ]
    assert len(changed) == len(KINDS)


@in_sandbox
@pytest.mark.parametrize("variant", TASK.variants)
def test_the_teacher_repairs_what_was_broken(variant):
    for problem in training_problems(variant, 4):
        shell = shell_of(problem)
        assert not TASK.passes(problem, shell)
        trajectory = TASK.solve(problem, variant)
        for step in trajectory.steps:
            if step.kind is StepKind.CALL:
                shell.call(step.name, step.text)
        assert TASK.passes(problem, shell)
        assert trajectory.answer == TASK.answer(problem, variant)


@in_sandbox
@pytest.mark.parametrize("variant", INTERACTIVE)
def test_a_call_follows_from_the_observation_before_it_alone(variant):
    known = {}
    for problem in training_problems(variant, 4):
        steps = TASK.solve(problem, variant).steps
        for before, after in zip(steps, steps[1:]):
            if before.kind is StepKind.OBSERVATION:
                assert known.setdefault(before.text, after.text) == after.text


@in_sandbox
@pytest.mark.parametrize(("variant", "most"), [("interactive", 1), ("three_files", 3)])
def test_no_more_than_so_many_files_are_edited_in_a_turn(variant, most):
    edited = []
    for problem in training_problems(variant, 4):
        calls = [s.text for s in TASK.solve(problem, variant).steps if s.kind is StepKind.CALL]
        edited += [call.count("sed -i") for call in calls]
    assert max(edited) == most


FRAME = '  File "/work/{0}.py", line {1}, in {2}\n    {3}\n'
AT = "f=f2.py l=7; "
NAMED = r"=$(python3 main.py 2>&1 >/dev/null | tail -n 1 | cut -d\' -f2); "
SPELT = AT + "n" + NAMED + r"""m=$(sed 's/^\(.\)\1/\1/;t;s/./\l&/' <<<$n); sed -i "$l s/\b$n\b/$m/g" $f"""
IMPORT = AT + "i" + NAMED + 'sed -i "1i from $i import $i" $f'


@pytest.mark.parametrize(
    ("error", "command"),
    [
        ("NameError: name 'v10' is not defined. Did you mean: 'v0'?", AT + 'sed -i "/v10):/!s/):/, v10):/" $f'),
        ("NameError: name 'f40' is not defined. Did you mean: 'f4'?", IMPORT),
        ("NameError: name 'foo' is not defined", IMPORT),
        ("NameError: name 'F6' is not defined. Did you mean: 'v6'?", SPELT),
        ("NameError: name 'V3' is not defined. Did you mean: 'v3'?", SPELT),
        ("NameError: name 'vv3' is not defined. Did you mean: 'v3'?", SPELT),
        (
            "TypeError: f5() missing 1 required positional argument: 'v3'",
            AT + "a" + NAMED + 'sed -i "$l s/)/, $a)/" $f',
        ),
        (
            "TypeError: f5() missing 1 required positional argument: 'v10'",
            AT + 'sed -i "/v10):/!s/):/, v10):/;$l s/)/, v10)/" $f',
        ),
        ("TypeError: f5() takes 1 positional argument but 2 were given", AT + 'sed -i "$l s/, [^,]*)/)/" $f'),
        ("TypeError: f5() takes 2 positional arguments but 3 were given", AT + 'sed -i "$l s/, [^,]*)/)/" $f'),
    ],
)
def test_the_rule_for_an_error_is_decided_by_the_last_frame_and_the_spelling(error, command):
    run = FRAME.format("f2", 7, "f2", "v4 = f5(v1)") + error
    assert repair(run) == command
    _, text, last = run.split("\n")
    assert repair("\n".join([text, last, "f=f2.py l=7"])) == command


def test_a_variable_is_passed_on_as_long_as_frames_show_that_it_is_not():
    error = "NameError: name 'v10' is not defined"
    frames = [FRAME.format(name, 7, name, "v1 = f(v0)") for name in ("f1", "f2", "foo")]
    assert repair("".join(frames) + error).count("sed") == 3
    passed = [frames[0].replace("v0)", "v0, v10)"), *frames[1:]]
    assert repair("".join(passed) + error).count("sed") == 2


@in_sandbox
@pytest.mark.parametrize("name", ["foo", "f40"])
def test_the_shell_takes_what_is_missing_from_the_error(name):
    shell = shell_of("2 functions, bugs variable; seed 1")
    text = f"def f2(v0, v1):\n    v2 = {name}(v0)\n    return v2\n"
    shell.put("main.py", "from f2 import f2\nprint(1)\nprint(f2(3, 4))\n")
    shell.put("f2.py", text)
    shell.put(f"{name}.py", f"def {name}(v0, v1):\n    return v0 + v1\n")
    for _ in range(2):
        shell.call("bash", repair(shell.call("bash", "python3 main.py 2>&1 >/dev/null | grep -v '\\^'")))
    assert shell.files()["f2.py"].decode() == f"from {name} import {name}\n" + text.replace("(v0)", "(v0, v1)")
    assert shell.call("bash", "python3 main.py") == "1\n7\n"


@in_sandbox
def test_a_parameter_that_is_there_already_is_not_given_again():
    shell = shell_of("2 functions, bugs variable; seed 1")
    error = "TypeError: f5() missing 1 required positional argument: 'v10'"
    shell.put("f2.py", "def f2(v0):\n    v1 = f5(v0)\n    return f6(v1)\n")
    for at, call in ((2, "v1 = f5(v0)"), (3, "return f6(v1)")):
        shell.call("bash", repair(FRAME.format("f2", at, "f2", call) + error))
    assert shell.files()["f2.py"] == b"def f2(v0, v10):\n    v1 = f5(v0, v10)\n    return f6(v1, v10)\n"


def test_the_last_error_of_a_chain_decides_whatever_stands_first():
    before = "KeyError: 'x'\n\nDuring handling of the above exception, another exception occurred:\n\n"
    run = FRAME.format("f2", 7, "f2", "v4 = f5(v1)") + "NameError: name 'V3' is not defined. Did you mean: 'v3'?"
    assert repair(before + run) == repair(run)


def test_an_error_that_no_rule_knows_is_named():
    with pytest.raises(InvalidProblemError, match="ZeroDivisionError"):
        repair(FRAME.format("f2", 7, "f2", "v1 = 1") + "ZeroDivisionError: division by zero")
    with pytest.raises(InvalidProblemError, match="no frame"):
        repair("NameError: name 'v10' is not defined")
    assert repair("5\n") == ""
    assert read_run("5\n") == ([], "")


CHEATS = {
    "prints the right number": lambda drawn, main: f"print({drawn.printed(drawn.values)})\n",
    "sets the values and prints the right number": lambda drawn, main: (
        "\n".join(main_values(drawn.values)) + f"\nprint({drawn.printed(drawn.values)})\n"
    ),
    "deletes the calls": lambda drawn, main: "\n".join(line for line in main.split("\n") if "(" not in line),
    "is gone": lambda drawn, main: "",
    "ends before it fails": lambda drawn, main: "import os\nos._exit(0)\n" + main,
}


@in_sandbox
@pytest.mark.parametrize("cheat", CHEATS)
def test_what_only_looks_repaired_does_not_pass(cheat):
    problem = "6 functions, bugs variable; seed 3"
    drawn, shell = TASK.program(problem), shell_of(problem)
    main = shell.files()["main.py"].decode()
    shell.put("main.py", CHEATS[cheat](drawn, main))
    assert not TASK.passes(problem, shell)
    for name, text in drawn.files(repaired=True).items():
        if name != "main.py":
            shell.put(name, text)
    assert not TASK.passes(problem, shell)


@in_sandbox
def test_a_call_that_gives_another_value_does_not_pass():
    problem = "6 functions, bugs variable; seed 3"
    shell = shell_of(problem)
    files = TASK.program(problem).files(repaired=True)
    for name, text in files.items():
        shell.put(name, text)
    shell.put("foo.py", files["foo.py"].replace("v10 + ", "", 1))
    assert not TASK.passes(problem, shell)


def test_single_turn_is_trained_on_the_missing_variable_alone():
    assert all("bugs variable;" in problem for problem in training_problems("single_turn", 20))
    assert any("bugs variable;" not in problem for problem in training_problems("interactive", 20))


def test_problems_are_the_same_every_time_and_fall_into_one_split_each():
    by_split = {}
    sets = [ProblemSet(TASK, TRAINING, 16, (("train", 50), ("validation", 20)), "interactive")]
    sets += evaluation_sets(TASK, "interactive", [16, 64], [64], 20)
    for each in sets:
        for split, size in each.sizes:
            drawn = [problem_at(each, split, index) for index in range(size)]
            assert drawn == [problem_at(each, split, index) for index in range(size)]
            assert all(split_of(TASK, problem) == split for problem in drawn)
            assert len({*drawn}) == size
            by_split.setdefault(split, set()).update(drawn)
    assert not by_split["train"] & by_split["test"]
    assert not by_split["train"] & by_split["validation"]


@pytest.mark.parametrize(
    "problem", ["", "16 functions", "0 functions, bugs variable; seed 1", "x", "3 functions, bugs name; seed 1"]
)
def test_what_is_no_problem_is_named(problem):
    with pytest.raises(InvalidProblemError, match="a problem reads"):
        TASK.files(problem)


@in_sandbox
@pytest.mark.parametrize("variant", TASK.variants)
def test_tokens_are_read_back_as_the_trajectory(variant):
    tools = TASK.make_tools(variant)
    tokenizer = build_task_tokenizer(TASK.cells(variant), tools)
    trajectory = TASK.solve(training_problems(variant, 1)[0], variant)
    ids, writers = Renderer(tokenizer).written(trajectory)
    assert parse(ids, writers, tokenizer, tools) == trajectory


@pytest.mark.slow
@in_sandbox
def test_interactive_variants_are_as_local_in_longer_repositories():
    def k(variant, length):
        problems = ProblemSet(TASK, TEST, length, (("test", 3),), variant)
        return locality([TASK.solve(problem_at(problems, "test", i), variant) for i in range(3)]).k

    for variant in INTERACTIVE:
        assert k(variant, 24) <= 1.3 * k(variant, 12)
