"""Module fixing: bugs in copies of library modules, repaired by rules and judged against the original."""

import json
import random

import pytest
from conftest import in_sandbox, run_script

from dataset_builders.algorithms import library
from dataset_builders.algorithms.library import CHECK, PASSED, RUN, module_names
from dataset_builders.algorithms.library_bugs import KINDS, changed, changes, is_shown
from dataset_builders.algorithms.repair import LAST_FRAME, repair
from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TRAINING, ProblemSet, evaluation_sets, problem_at
from dataset_builders.task import split_of
from dataset_builders.tasks.module_fixing import is_tested, modules_by_kind, problem_of
from hf_toolssm.errors import InvalidProblemError, TooFewProblemsError
from hf_toolssm.protocol.trajectory import StepKind

pytestmark = in_sandbox

TASK = load_task("module_fixing")
PROBLEMS = {kind: problem_of("fractions", kind, random.Random(1)) for kind in KINDS}


def shell_of(problem):
    (bash,) = TASK.make_tools("interactive")
    return bash.start(problem)


def calls_of(problem):
    return [step.text for step in TASK.solve(problem, "interactive").steps if step.kind is StepKind.CALL]


def repaired(problem):
    shell = shell_of(problem)
    for call in calls_of(problem):
        shell.call("bash", call)
    return shell


@pytest.mark.parametrize("name", ["fractions", "json.decoder", "json", "os", "wsgiref.types", "importlib"])
def test_an_unchanged_copy_passes_under_its_own_name(name):
    module = library.module(name)
    assert library.run_check(module.files(module.text)) == f"{PASSED}\n"
    assert len(module.executed) > 10
    assert module.text.encode() == library._paths()[name].read_bytes()


@pytest.mark.parametrize(
    "name", ["antigravity.joke", "encodings.cp437", "socket", "test.support", "__main__", "../etc/passwd"]
)
def test_what_is_no_module_of_ours_is_none(name):
    assert library.module(name) is None


def test_a_doctest_that_fails_is_seen():
    module = library.module("fractions")
    wrong = module.text.replace("Fraction(-5, 4)\n", "Fraction(5, 4)\n")
    assert wrong != module.text
    assert "DocTestFailure" in library.run_check(module.files(wrong))


@pytest.mark.parametrize(
    ("kind", "problem"), [*PROBLEMS.items(), ("import", problem_of("json.decoder", "import", random.Random(1)))]
)
def test_a_bug_shows_in_a_frame_of_the_copy_and_the_teacher_repairs_it(kind, problem):
    shell = shell_of(problem)
    observation = shell.call("bash", RUN)
    assert is_shown(kind, observation)
    assert f"\nf={library.FILE} l=" in observation
    assert not TASK.passes(problem, shell)
    assert TASK.passes(problem, repaired(problem))
    assert calls_of(problem)[1] == f"{repair(observation, CHECK)}; {RUN}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_bug_changes_one_line_that_the_check_executes(kind):
    module = library.module("fractions")
    before = module.text.split("\n")
    for at, line in changes(module, kind):
        after = changed(module.text, (at, line)).split("\n")
        assert after == before[:at] + ([] if line is None else [line]) + before[at + 1 :]
        assert line != before[at]
        assert kind == "colon" or at + 1 in module.executed


CHEATS = {
    "is gone": lambda text: "",
    "passes by itself": lambda text: "print('passed')\nimport os\nos._exit(0)\n" + text,
    "has no doctest": lambda text: text.replace(">>>", "..."),
    "has no more than a docstring": lambda text: '"""Fractions."""\n',
    "lost a function": lambda text: text.replace("    def __bool__(a):", "    def __never__(a):"),
    "has a function more": lambda text: text + "\ndef more():\n    return 1\n",
    "is no Python": lambda text: text + "\n)",
    "nests too deeply": lambda text: text + "\nx = " + "-" * 100_000 + "1\n",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_what_only_looks_repaired_does_not_pass(cheat):
    problem = PROBLEMS["name"]
    shell = repaired(problem)
    assert TASK.passes(problem, shell)
    text = shell.files()[library.FILE].decode()
    assert CHEATS[cheat](text) != text
    shell.put(library.FILE, CHEATS[cheat](text))
    assert not TASK.passes(problem, shell)


def test_a_check_that_was_rewritten_changes_nothing():
    problem = PROBLEMS["name"]
    shell = shell_of(problem)
    shell.put("check.py", "print('passed')\n")
    assert shell.call("bash", RUN) == "passed\n"
    assert not TASK.passes(problem, shell)


def test_comments_and_the_place_of_an_import_are_free():
    problem = PROBLEMS["name"]
    shell = repaired(problem)
    text = shell.files()[library.FILE].decode()
    shell.put(
        library.FILE,
        text.replace("import math\n", "").replace("import numbers\n", "import numbers\nimport math  # ok\n"),
    )
    assert TASK.passes(problem, shell)


def test_a_modules_name_decides_whether_it_is_tested():
    tested = [name for name in module_names() if is_tested(name)]
    assert len(tested) > 200
    assert len(module_names()) - len(tested) > 150
    for seed in range(50):
        assert all(split_of(TASK, f"module {name}; seed {seed}") == "test" for name in tested)
        assert not is_tested(TASK.sample_training(random.Random(seed % 2), 1).split()[1].rstrip(";"))


@pytest.mark.slow
def test_training_and_test_never_share_a_module():
    training = ProblemSet(TASK, TRAINING, 1, (("train", 4), ("validation", 1)), "interactive")
    (test,) = evaluation_sets(TASK, "interactive", [1], [], 3)
    for each in (training, test):
        for split, size in each.sizes:
            for index in range(size):
                problem = problem_at(each, split, index)
                assert problem == problem_at(each, split, index)
                assert split_of(TASK, problem) == split
                assert is_tested(problem.split()[1].rstrip(";")) == (split == "test")
                assert TASK.length(problem) == 1
                if split != "test":
                    assert TASK.solve(problem, "interactive").answer == TASK.answer(problem, "interactive")


@pytest.mark.parametrize(
    ("error", "command"),
    [
        ("TypeError: Foo.__init__() takes from 1 to 2 positional arguments but 3 were given", "$l s/, [^,]*)/)/"),
        ("TypeError: compile expected at most 1 argument, got 2", "$l s/, [^,]*)/)/"),
        ("TypeError: len() takes exactly one argument (2 given)", "$l s/, [^,]*)/)/"),
    ],
)
def test_real_names_and_errors_have_rules(error, command):
    run = f'  File "/work/a.py", line 7, in <module>\n    x = foo(y, z)\n{error}\n'
    assert repair(run) == f'f=a.py l=7; sed -i "{command}" $f'


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("x = Foo(Fast)", "x = foo(Fast)"),
        ("x = ffoo(ffast)", "x = foo(ffast)"),
        ("x = Foo(Foot, Food)", "x = foo(Foot, Food)"),
        ("x = f'{Foo:}' + Foo(1)", "x = f'{foo:}' + foo(1)"),
    ],
)
def test_a_spelling_is_changed_in_no_other_word_of_its_line(line, right):
    (bash,) = load_task("code_fixing").make_tools("interactive")
    shell = bash.start("4 functions, bugs variable; seed 1")
    shell.put("a.py", f"foo = ffast = Fast = Foot = Food = str\n{line}\n")
    shell.call("bash", repair(shell.call("bash", "python3 a.py 2>&1 >/dev/null | grep -v '\\^'"), "a.py"))
    assert shell.files()["a.py"].decode().split("\n")[1] == right


def test_the_file_of_a_frame_is_told_whole_wherever_it_stands():
    (bash,) = load_task("code_fixing").make_tools("interactive")
    shell = bash.start("4 functions, bugs variable; seed 1")
    shell.call("bash", "mkdir -p work/k; echo 'if 1' >work/k/a.py")
    observation = shell.call("bash", f"python3 work/k/a.py 2>&1 | grep -v '\\^' | {LAST_FRAME}")
    assert observation.endswith("\nf=work/k/a.py l=1\n")
    assert repair(observation) == 'f=work/k/a.py l=1; sed -i "$l s/\\$/:/" $f'


@pytest.mark.parametrize("hint", ["", ". Did you mean: 'pos'?"])
def test_a_name_that_is_spelt_well_is_a_module_to_import(hint):
    error = f"  File \"/work/a.py\", line 7, in f\n    os.x()\nNameError: name 'os' is not defined{hint}\n"
    (bash,) = load_task("code_fixing").make_tools("interactive")
    for head in ('"""Doc."""\nfrom __future__ import annotations\n', "# no import\n", '"""From\nfrom here on.\n"""\n'):
        shell = bash.restore(bash.start("4 functions, bugs variable; seed 1").state())
        rest = "from sys import path\ndef f():\n    os.x()\nf()\n"
        shell.put("a.py", f"{head}\n{rest}")
        shell.call("bash", repair(error, "a.py"))
        assert shell.files()["a.py"].decode() == f"{head}\nimport os\n{rest}"


def test_of_many_parentheses_the_nearest_ends_the_call():
    observation = (
        '  File "/work/a.py", line 7, in f\n    if f(v, int, v) and g(w):\nTypeError: f expected 2 arguments, got 3\n'
    )
    assert repair(observation) == 'f=a.py l=7; sed -i "$l s/, [^,)]*)/)/" $f'


@pytest.mark.parametrize("problem", ["", "module json", "module json; seed x", "module j son; seed 1"])
def test_what_is_no_problem_is_named(problem):
    with pytest.raises(InvalidProblemError, match="a problem reads"):
        TASK.files(problem)


def test_what_this_python_does_not_have_is_named():
    with pytest.raises(InvalidProblemError, match="no such module"):
        TASK.files("module no.such; seed 1")
    with pytest.raises(InvalidProblemError, match="choose the length 1"):
        TASK.sample_test(random.Random(0), 2)
    with pytest.raises(InvalidProblemError, match="no adversarial set"):
        TASK.sample_adversarial("bug_of_mine", random.Random(0), 1, 0)


@pytest.mark.slow
def test_two_hundred_modules_are_tested_each_with_one_kind_of_bug():
    names = [name for kind in KINDS for name in modules_by_kind()[kind]]
    assert len(names) == len(set(names)) >= 200
    assert min(map(len, modules_by_kind().values())) >= 50
    assert all(map(is_tested, names))
    with pytest.raises(TooFewProblemsError, match="one for each module"):
        TASK.sample_adversarial("bug_colon", random.Random(0), 1, 200)


@pytest.mark.slow
def test_what_a_model_repairs_is_counted_by_the_kind_of_bug_beside_its_teacher(tmp_path):
    model = tmp_path / "model"
    options = {"task": "code_fixing", "train_max_length": 1, "num_examples": 4, "max_steps": 1, "use_cpu": "true"}
    options |= {"hidden_size": 16, "eval_lengths": 1, "output_dir": model}
    run_script("recipes/sft.py", *(word for name, value in options.items() for word in (f"--{name}", value)))
    command = ["recipes/repaired_by_kind.py", "--model", model, "--num_problems", 2, "--batch_size", 8]
    printed = run_script(*command)
    asked = [TASK.sample_adversarial(f"bug_{kind}", random.Random(0), 1, at) for kind in KINDS for at in range(2)]
    assert len({problem.split()[1] for problem in asked}) == 8
    saved = model / "repaired_by_kind.json"
    found = json.loads(saved.read_text(encoding="utf-8"))["repaired"]
    assert sorted(found) == sorted(TASK.adversarial)
    assert [counted["model"] for counted in found.values()] == [0] * len(KINDS)
    teacher = sum(counted["teacher"] for counted in found.values())
    assert 4 <= teacher <= 8
    assert printed.splitlines()[-1].split() == ["|", "all", "|", "0/8", "|", f"{teacher}/8", "|"]
    before = saved.stat().st_mtime_ns
    assert run_script(*command) == printed
    assert saved.stat().st_mtime_ns == before
