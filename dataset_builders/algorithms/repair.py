"""What repairs a program that was run: from the last lines of a run to the next command.

The rules are local: nothing but the last observation decides, so that the model that learns them works at any number
of files. In a row of calls X, Y, Z, the last of which has failed:

    NameError of v10                     the variable is missing: Z's `def` gets it as its last parameter
    missing ... argument: 'v10'          Z's call gets it as its last argument, and so does its `def` where it lacks it
      then, as long as frames are shown: where Y's line does not pass v10, the same in Y, and so on with X
    missing ... argument: 'v3'           Z's call gets what the error names as its last argument
    takes 2 positional arguments but 3   Z's call loses its last argument
    NameError of f40 or foo              the import is missing: it becomes Z's first line
    NameError of F40, Foo, V3 or vv3     the name is misspelt: its first letter is doubled, or is to be a small one
    NameError of anything else           `import` of that module is missing: it is put before the first statement
    SyntaxError: expected ':'            the line gets one

An edit begins with the file and the line, in the words with which the observation ends, so that they are copied over
few characters; what follows holds nothing of the observation. A name that an error says is missing
or misspelt is copied by the shell, which takes it from the error of another run.

The interpreter's hint misleads where a name is spelt well: of v10 it says `Did you mean: 'v0'?`, of an f40 that was
not imported it may say `Did you mean: 'f4'?`; and of F6 it says v6, if there is one. So spelling decides, and then the
hint.
"""

import re
from dataclasses import dataclass

from dataset_builders.algorithms.programs import MISSING
from hf_toolssm.errors import InvalidProblemError

LAST_FRAME = r"""tail -n 3 | sed -En '1{s|.*"/work/(.*)", line (\w+).*|f=\1 l=\2|;h};1!p;${g;p}'"""
"""What shows of a traceback without marks the last frame's text, the error, and then the frame's file and line in the
words with which an edit begins, so that they are copied as they stand. As the interpreter writes them, a syntax error
has one name less than any other, and models copied its file wrong, f9195 for f9190, where they were right in all
others."""

_FRAME = re.compile(r'^ *File "/work/([^"]+)", line (\d+)(?:, in .+)?\n(?: +(.*))?', re.MULTILINE)
_SHOWN = re.compile(r"f=(.+) l=(\d+)")
_ERROR = re.compile(r"\w+Error: ")
_TOO_MANY = re.compile(r"takes .* given|takes .* arguments$|expected .* arguments?, got")
_FIRST_STATEMENT = r"^\(import \|from [^_].* import\|class \|def \|\w* = \)"
_DEFINITION = f"/{MISSING}):/!s/):/, {MISSING}):/"
"""A `def` that has no such parameter gets one; of `main.py`, which has none, it changes nothing."""


@dataclass(frozen=True)
class Frame:
    """A line that was running, or compiled: its file, number and text."""

    file: str
    line: int
    text: str


def read_run(observation: str) -> tuple[list[Frame], str]:
    """The frames that an observation shows, the failing last, and the error; no frame and "" where there is none.

    The error is the last line, or, as `LAST_FRAME` shows it, the last but one.
    """
    *lines, last = observation.rstrip("\n").split("\n")
    shown = _SHOWN.fullmatch(last)
    lines = [f'  File "/work/{shown[1]}", line {shown[2]}', *lines] if shown else [*lines, last]
    if not _ERROR.match(lines[-1]):
        return [], ""
    frames = [Frame(f[1], int(f[2]), f[3] or "") for f in _FRAME.finditer("\n".join(lines))]
    return frames, lines[-1]


def repair(observation: str, program: str = "main.py") -> str:
    """The shell command that repairs what an observation shows; "" where it shows no error.

    Args:
        observation: of a run.
        program: the file that was run.

    Raises:
        InvalidProblemError: the rules do not know the error.
    """
    frames, error = read_run(observation)
    if not error:
        return ""
    if not frames:
        raise InvalidProblemError(f"no frame of /work is shown beside {error!r}")
    last = frames[-1]
    if error == "SyntaxError: expected ':'":
        return _edit(last, r"$l s/\$/:/")
    if _TOO_MANY.search(error):
        return _edit(last, f"$l s/, [^,{')' * (last.text.count(')') > 1)}]*)/)/")
    if found := re.search(r"missing 1 required positional argument: '(\w+)'", error):
        if found[1] == MISSING:
            return _pass_on(frames, defined=True)
        return _edit_with_name(program, last, "a", _argument("$a"))
    if found := re.match(r"NameError: name '(\w+)' is not defined(?:\. Did you mean: '(\w+)'\?)?", error):
        name, hint = found.groups()
        if name == MISSING:
            return _pass_on(frames, defined=False)
        if re.fullmatch(r"f\d+|foo", name):
            return _edit_with_name(program, last, "i", "1i from $i import $i")
        if re.fullmatch(r"F\d+|Foo", name) or (hint and name in (hint[0] + hint, hint[0].upper() + hint[1:])):
            return _edit_with_name(program, last, "n", r"$l s/\b$n\b/$m/g", _SPELT)
        return _edit_with_name(program, last, "i", f"0,/{_FIRST_STATEMENT}/s//import $i\\n&/")
    raise InvalidProblemError(f"no rule repairs {error!r}")


def _pass_on(frames: list[Frame], defined: bool) -> str:
    """Passes v10 on, from the frame that failed upwards, as long as it is shown that it is not passed.

    Args:
        defined: whether the last frame's call lacks it, and not its own definition.
    """
    commands, call = [], defined
    for at, frame in reversed([*enumerate(frames)]):
        commands.append(_edit(frame, f"{_DEFINITION};{_argument(MISSING)}" if call else _DEFINITION))
        if at and MISSING in frames[at - 1].text:
            break
        call = True
    return "; ".join(commands)


def _argument(name: str) -> str:
    return f"$l s/)/, {name})/"


def _edit(frame: Frame, script: str, before: str = "") -> str:
    return f'f={frame.file} l={frame.line}; {before}sed -i "{script}" $f'


_SPELT = r"m=$(sed 's/^\(.\)\1/\1/;t;s/./\l&/' <<<$n); "
"""A misspelt name as it should be: of a letter that is there twice once, else with a small one."""


def _edit_with_name(program: str, frame: Frame, variable: str, script: str, more: str = "") -> str:
    """A shell variable holds the first name that stands between quotes in the error.

    Args:
        variable: one for each kind of edit, so that its letter says what is to be done while the error is near. Behind
            55 characters that were the same for all, a model took one kind for another.
        script: it may use the variable.
        more: a command before it that may use it too.
    """
    named = rf"python3 {program} 2>&1 >/dev/null | tail -n 1 | cut -d\' -f2"
    return _edit(frame, script, f"{variable}=$({named}); {more}")
