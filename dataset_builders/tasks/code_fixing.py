"""Code fixing: n functions, one a file, repaired in a shell (PAPER section 4, task 6; `algorithms/programs.py`).

A problem names a repository, which `files` makes and the shell starts with. Its length is the number of functions.
v10 is passed along no path from `main.py` to `foo`; other bugs may stand beside it (`algorithms/bugs.py`).

Worked example, `2 functions, bugs variable; seed 7`, of which the last frame is shown, its first line last: what is
copied into the next command, the file and its line, stands nearest to it, and is what the command begins with.

    bash    python3 main.py 2>&1 >/dev/null | grep -v '\\^' | tail -n 3 | sed -En ...         (the run)
              v6 = v10 + v4
          NameError: name 'v10' is not defined
          f=foo.py l=23
    bash    f=foo.py l=23; sed -i "/v10):/!s/):/, v10):/" $f; (the run)
              v9 = foo(v4)
          TypeError: foo() missing 1 required positional argument: 'v10'
          f=f1.py l=28
    bash    f=f1.py l=28; sed -i "/v10):/!s/):/, v10):/;$l s/)/, v10)/" $f; (the run)
    ...
          (nothing: main.py has not failed)
    answer  fixed

Variants:
    interactive: one file a turn, decided by the last frame alone.
    three_files: the paper's (b): up to three files a turn, the three whose frames are shown.
    single_turn: the paper's (a): prints all files, callees first, and then repairs every function on a path by one
        command, which names them. What decides it is all files, and no fixed state holds those of any n. Of
        other bugs it knows none.
"""

import random
import re
from collections.abc import Sequence
from contextlib import suppress

from dataset_builders.algorithms.bugs import KINDS, with_bugs
from dataset_builders.algorithms.programs import Program, main_values, sample_program, sample_values
from dataset_builders.algorithms.repair import LAST_FRAME, repair
from dataset_builders.algorithms.shell_task import ANSWER, ShellTask
from dataset_builders.task import example_rng
from hf_toolssm.errors import InvalidProblemError, TooFewProblemsError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools.bash import Shell

VARIABLE = "variable"
ALL_KINDS = "all_kinds"
_RUNS = {
    "interactive": rf"python3 main.py 2>&1 >/dev/null | grep -v '\^' | {LAST_FRAME}",
    "three_files": "python3 -X no_debug_ranges main.py 2>&1 | tail -n 7",
}
"""What shows the end of a run: the last frame, of two lines, and the error, without marks below; or three frames.
What main.py prints is not shown beside one frame: with the number of functions it grows beyond all numbers that were
seen in training, and a model took them for something to repair."""
_PROBLEM = re.compile(r"([1-9]\d*) functions, bugs ([a-z ]+); seed (\d+)")
_PRINT_ALL = "cat $(ls -rv *.py)"
_CHECKS = 3
_WEIGHTS = (2, 2, 1, 5)
"""How often each of `KINDS` is drawn: a call's arguments are wrong in two ways, and v10 may lack in a third."""


class CodeFixing(ShellTask):
    """See the module's text."""

    title = "Fixing a repository of many files, with a shell"
    version = "13"
    variants: Sequence[str] = (*_RUNS, "single_turn")
    adversarial: Sequence[str] = (ALL_KINDS,)
    unit = "functions"
    most_tokens = 800

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        """From four functions on three of four have more bugs, at most as many as functions."""
        while True:
            length = rng.randint(1, max_length)
            count = rng.randint(1, length) if length >= 4 and rng.random() < 0.75 else 0
            problem = self._problem(rng, length, rng.choices(KINDS, _WEIGHTS, k=count))
            with suppress(TooFewProblemsError):  # not every program has a line for every bug
                self.files(problem)
                return problem

    def sample_test(self, rng: random.Random, length: int) -> str:
        return self._problem(rng, length, [])

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        """`all_kinds`: one bug of every kind, five in all."""
        if name != ALL_KINDS:
            raise self.unknown_set(name)
        return self._problem(rng, length, KINDS)

    def suits(self, problem: str, variant: str) -> bool:
        return variant != "single_turn" or not self._read(problem)[1]

    def _problem(self, rng: random.Random, length: int, bugs: Sequence[str]) -> str:
        return f"{length} functions, bugs {' '.join([VARIABLE, *bugs])}; seed {rng.getrandbits(32)}"

    def length(self, problem: str) -> int:
        return self._read(problem)[0]

    def _read(self, problem: str) -> tuple[int, list[str]]:
        found = _PROBLEM.fullmatch(problem)
        bugs = found[2].split(" ") if found else []
        if found is None or bugs[0] != VARIABLE or not set(bugs[1:]) <= set(KINDS):
            raise InvalidProblemError(
                f"a problem reads '16 functions, bugs variable name; seed 7', with the bugs {VARIABLE}, which is "
                f"always there, {', '.join(KINDS)}: {problem!r}"
            )
        return int(found[1]), bugs[1:]

    def program(self, problem: str) -> Program:
        """The program, whose bugs are in `files`."""
        length, _ = self._read(problem)
        return sample_program(example_rng("program", problem), length)

    def files(self, problem: str) -> dict[str, str]:
        """The files that are to be repaired, by name."""
        return with_bugs(self.program(problem), self._read(problem)[1], example_rng("bugs", problem))

    def solve(self, problem: str, variant: str) -> Trajectory:
        """Records the teacher.

        Raises:
            InvalidProblemError: the problem is none, the variant does not exist, or the teacher does not repair it.
            SandboxUnavailableError: there is no sandbox here.
        """
        self.check_variant(variant)
        pen = Recorder(problem, *self.make_tools(variant))
        if variant == "single_turn":
            pen.call("bash", _PRINT_ALL)
            pen.call("bash", self._all_edits(problem))
        else:
            run = _RUNS[variant]
            observation = pen.call("bash", run)
            while edit := repair(observation):
                observation = pen.call("bash", f"{edit}; {run}")
        pen.begin_answer()
        pen.output(ANSWER)
        return pen.trajectory()

    def _all_edits(self, problem: str) -> str:
        """Names every function on a path, in the order in which they were printed; each gets v10, and its calls."""
        program = self.program(problem)
        needy = [name for name in reversed([*program.functions]) if name in program.on_path()][:-1]
        script = r"s/\b$f(\(.*\))/$f(\1, v10)/"
        return f'for f in {" ".join(needy)}; do sed -i "{script}" *.py; done; python3 main.py'

    def is_repaired(self, problem: str, shell: Shell) -> bool:
        """Whether a repository was, by checks that never stood in it.

        `main.py` is run, beside the files as they are now, with other values of v0..v10 in the lines that set them,
        and must print what the repaired program prints then, which is computed here. So a `main.py` that calls nothing
        any more fails, and one that lost those lines as well.
        """
        program, rng = self.program(problem), example_rng("checks", problem)
        main = shell.files().get("main.py", b"").decode("utf-8", "replace")
        before = "\n".join(main_values(program.values))
        if main.count(before) != 1:
            return False
        for _ in range(_CHECKS):
            values, judge = sample_values(rng), shell.clone()
            judge.put("main.py", main.replace(before, "\n".join(main_values(values))))
            if judge.call("bash", "cd /work; python3 main.py") != f"{program.printed(values)}\n":
                return False
        return True
