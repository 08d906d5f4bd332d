"""Module fixing: one bug in a module of Python's standard library, repaired in a shell.

A problem names the module and a seed, and so decides the kind of bug (`algorithms/library_bugs.py`) without telling
it. The shell starts with a copy of the module's file, `module.py`, and a check, `check.py`, that fails
(`algorithms/library.py`). The files are those of the interpreter that the sandbox has. Its length is the number of
bugs, which is one.

Half of the modules are trained on, and the others are tested: which, a module's name decides.

Worked example, `module json.decoder; seed 7`:

    bash    python3 check.py 2>&1 | sed -En '/\\/work/{p;n;p};/^\\w[^ ]*(:|$)/p' | tail -n 3 | ...    (the run)
              NegInf = Float('-inf')
          NameError: name 'Float' is not defined. Did you mean: 'float'?
          f=module.py l=17
    bash    f=module.py l=17; n=...; m=...; sed -i "$l s/\\b$n\\b/$m/g" $f; (the run)
          passed
    answer  fixed

The teacher's rules (`algorithms/repair.py`) do not repair every bug; it is trained on those that they do.
"""

import random
import re
from collections.abc import Sequence
from functools import cache, lru_cache

from tqdm import tqdm

from dataset_builders.algorithms import library
from dataset_builders.algorithms.library import CHECK, FILE, PASSED, RUN, module_names
from dataset_builders.algorithms.library_bugs import KINDS, Change, changed, changes, is_shown
from dataset_builders.algorithms.repair import repair
from dataset_builders.algorithms.shell_task import ANSWER, ShellTask
from dataset_builders.task import bucket, example_rng
from hf_toolssm.errors import InvalidProblemError, TooFewProblemsError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools.bash import Shell

TESTED = 54
"""Of 100 modules, so many are tested: 200 at least are tested, one bug each."""

MOST_EDITS = 4
"""Of the teacher: then it has lost its way."""

_TRIES = 6
_PROBLEM = re.compile(r"module ([\w.]+); seed \d+")
_SET = "bug_"


class ModuleFixing(ShellTask):
    """See the module's text."""

    title = "Fixing one bug in a module of Python's standard library, with a shell"
    version = "8"
    variants: Sequence[str] = ("interactive",)
    adversarial: Sequence[str] = tuple(f"{_SET}{kind}" for kind in KINDS)
    unit = "bugs"
    most_tokens = 500

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        """Of any kind as often as of any other, in a module that has a line for it."""
        kind, names = rng.choice(KINDS), _names(tested=False)
        while True:
            module = library.module(rng.choice(names))
            if module is not None and changes(module, kind):
                return problem_of(module.name, kind, rng)

    def sample_test(self, rng: random.Random, length: int) -> str:
        """Of any kind, in any module that is tested."""
        self._check_length(length)
        while _bug(problem := problem_of(rng.choice(_names(tested=True)), rng.choice(KINDS), rng)) is None:
            pass
        return problem

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        """`bug_colon` and so on: bugs of one kind, each in another module; no two of these sets share a module."""
        if name not in self.adversarial:
            raise self.unknown_set(name)
        self._check_length(length)
        kind = name.removeprefix(_SET)
        modules = modules_by_kind()[kind]
        if index >= len(modules):
            raise TooFewProblemsError(f"{name} has {len(modules)} problems, one for each module: choose fewer")
        while _bug(problem := problem_of(modules[index], kind, rng)) is None:
            pass
        return problem

    def suits(self, problem: str, variant: str) -> bool:
        """Whether the bug shows, and the teacher repairs it."""
        return _bug(problem) is not None and self.is_repaired_by_teacher(problem)

    def held_out(self, problem: str) -> bool:
        return is_tested(_read(problem)[0])

    def length(self, problem: str) -> int:
        _read(problem)
        return 1

    def _check_length(self, length: int) -> None:
        if length != 1:
            raise InvalidProblemError(f"{self.name} has one bug a problem: choose the length 1, not {length}")

    def files(self, problem: str) -> dict[str, str]:
        """The module that is to be repaired, and its check.

        Raises:
            InvalidProblemError: the problem is none, or has no bug here that its check shows.
            SandboxUnavailableError: there is no sandbox here.
        """
        bug, module = _bug(problem), library.module(_read(problem)[0])
        if bug is None or module is None:
            raise InvalidProblemError(
                f"{problem!r}: this Python has no such module, or no such bug that its check shows"
            )
        return module.files(changed(module.text, bug))

    def solve(self, problem: str, variant: str) -> Trajectory:
        """Records the teacher.

        Raises:
            InvalidProblemError: the problem is none, the variant does not exist, or the teacher does not repair it.
            SandboxUnavailableError: there is no sandbox here.
        """
        self.check_variant(variant)
        return _solved(self, problem)

    def is_repaired_by_teacher(self, problem: str) -> bool:
        """Whether `solve` solves it."""
        try:
            return bool(_solved(self, problem))
        except InvalidProblemError:
            return False

    def is_repaired(self, problem: str, shell: Shell) -> bool:
        """Whether a module was: it says what the original says, and passes a check from outside.

        To say the same is to have the same syntax tree, its doctests included, in which each `import os` on the top
        level may have moved. So no part of the module is missing, and none is new.
        """
        module = library.module(_read(problem)[0])
        repaired = shell.files().get(FILE, b"")
        return module is not None and library.is_original(module, repaired)


@lru_cache(maxsize=1)
def _solved(task: ModuleFixing, problem: str) -> Trajectory:
    pen = Recorder(problem, *task.make_tools(task.variants[0]))
    observation = pen.call("bash", RUN)
    for _ in range(MOST_EDITS):
        if observation.startswith(f"{PASSED}\n") or not (edit := repair(observation, CHECK)):
            break
        observation = pen.call("bash", f"{edit}; {RUN}")
    if not task.passes(problem, pen.tools[0]):
        raise InvalidProblemError(f"the teacher does not repair {problem!r}")
    pen.begin_answer()
    pen.output(ANSWER)
    return pen.trajectory()


def problem_of(name: str, kind: str, rng: random.Random) -> str:
    """A problem of that module, of a seed that stands for that kind of bug."""
    while _read(problem := f"module {name}; seed {rng.getrandbits(32)}")[1] != kind:
        pass
    return problem


def _read(problem: str) -> tuple[str, str]:
    """The module and the kind of bug."""
    found = _PROBLEM.fullmatch(problem)
    if found is None:
        raise InvalidProblemError(f"a problem reads 'module json.decoder; seed 7', and not {problem!r}")
    return found[1], example_rng("kind", problem).choice(KINDS)


def is_tested(name: str) -> bool:
    """Whether a module is tested, and never trained on."""
    return bucket(name) < TESTED


@cache
def _names(tested: bool) -> list[str]:
    return [name for name in module_names() if is_tested(name) == tested]


@cache
def _bug(problem: str) -> Change | None:
    """The bug of a problem: the first of a few, drawn by its text, that its check shows."""
    name, kind = _read(problem)
    module = library.module(name)
    if module is None:
        return None
    possible = changes(module, kind)
    for change in example_rng(problem).sample(possible, min(_TRIES, len(possible))):
        if is_shown(kind, library.run_check(module.files(changed(module.text, change)))):
            return change
    return None


@cache
def modules_by_kind() -> dict[str, list[str]]:
    """The tested modules by the kind of bug that each of them gets: the one of the fewest so far that shows in it."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in tqdm(_names(tested=True), desc="looking for bugs that show", unit="module"):
        for kind in sorted(KINDS, key=lambda kind: len(found[kind])):
            if _bug(problem_of(name, kind, example_rng("module", name))) is not None:
                found[kind].append(name)
                break
    return found
