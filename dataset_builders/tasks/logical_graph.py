"""The value of a logical graph, depth-first with a search memory (PAPER section 4, task 5).

A problem is code, one line a term, which uses names of earlier lines only; names are three letters:

    1:abc            an input and its value (three of them)
    def-&=ghi        ghi begins with not def, and another term follows:
    abc+/ghi         abc, so that ghi is abc and not def
    ghi-==jkl        jkl is not ghi
    >jkl             the question: the last node

Behind a name stands its sign, + or - for not, and how another term joins: & or |, or = where there is none.

What the model learns it writes as lines of the same kind, so that one search shows it again:

    1:ghi            the value of ghi is known
    ghi<def          def was entered from ghi: the way back

Worked example, from the question on:

    find =jkl   shows ghi-==jkl             a node's first term; its name is looked up
    find :ghi   shows nothing               so think jkl<ghi, and enter ghi
    find =ghi   shows def-&=ghi
    find :def   shows 0:def                 think -0&, and as not def is 1, the other term decides
    find /ghi   shows abc+/ghi
    find :abc   shows 1:abc                 think +1=, and 1:ghi
    find <ghi   shows jkl<ghi               back to jkl
    find =jkl   shows ghi-==jkl;  find :ghi shows 1:ghi;  think -1=, 0:jkl
    find <jkl   shows nothing               the question's own node: think <|answer|>, output 0

A node that is visited again is decided from its beginning: nothing is remembered but what is written. The line `-0&`
(sign, value and operator, `=` where no other term is left) puts side by side what decides: without it a small model
learned to copy everything within 350 steps and guessed the decisions for 650 more. A term has a line of its own, whose
name is the first three cells shown: with both names in one line, the copy of the second one asked for, eighteen tokens
back, was the last thing that a small model learned, and what a model of all tasks still got wrong. So was the node's
own name at the end of `def<ghi`, sixteen tokens back: as the line begins with it now, it is twelve.

A pattern holds the mark beside the name, so that a search shows one line, however many nodes use the name. A node of
which one known value decides (false in an and, true in an or) never looks at the other.
"""

import random
import re
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

from dataset_builders.task import Task, task_tool
from hf_toolssm.errors import CertificationError, InvalidProblemError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.rule import Rule
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools.search_memory import FIND, NEWLINE, SEARCH_END

INPUTS = 3
WIDTH = 3
"""Letters of a name."""
MOST_NODES = len(ascii_lowercase) ** WIDTH - INPUTS

FIRST_TERM, OTHER_TERM = "=", "/"
"""What stands before the node's name in the lines of its terms."""
NO_OPERATOR = "="

_LINE = re.compile(r"([01]):([a-z]{3})|([a-z]{3})([+-])(?:([&|=])=|/)([a-z]{3})|>([a-z]{3})")


class LogicalGraph(Task):
    """See the module's text. The length counts the nodes that are no inputs."""

    title = "The value of a logical graph, depth-first with a search memory"
    version = "6"
    variants: Sequence[str] = ("depth_first",)
    adversarial: Sequence[str] = ("deep_chain", "wide", "one_hub", "never_decided_early")
    unit = "nodes"

    def tools(self, variant: str) -> list[dict[str, Any]]:
        return [{"name": "search_memory"}]

    def cells(self, variant: str) -> Sequence[str]:
        return (*ascii_lowercase, *"01+-&|=:/<>", NEWLINE)

    def rule(self, variant: str) -> Rule:
        """None that can be explored.

        Raises:
            CertificationError: always.
        """
        raise CertificationError(
            f"{self.name} has no rule of contexts: while a name is copied, {WIDTH} letters that are just written and "
            f"the one to be copied may be any, which are {len(ascii_lowercase) ** (WIDTH + 1):,} contexts at one place"
        )

    def sample_test(self, rng: random.Random, length: int) -> str:
        """Each node takes one node that none has used yet, where there is one, so that nearly all lead to the last."""
        any_of = rng.randrange
        return _graph(rng, length, lambda at, free: [free if rng.random() < 0.9 else any_of(at), any_of(at)])

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        if name == "deep_chain":  # every node needs the one before, which is always asked first
            return _graph(rng, length, lambda at, free: [rng.randrange(INPUTS), at - 1], ordered=True)
        if name == "wide":  # a tree over nodes of inputs alone
            return _graph(rng, length, lambda at, free: _wide(rng, at, length))
        if name == "one_hub":  # every node uses the first, whose value is looked up over and over
            hub = INPUTS  # the first node
            return _graph(rng, length, lambda at, free: [at - 1, min(hub, at - 1)], ordered=True, undecided=True)
        if name == "never_decided_early":  # every first value leaves the second open
            return _graph(rng, length, lambda at, free: [at - 1, free], undecided=True)
        raise self.unknown_set(name)

    def length(self, problem: str) -> int:
        return sum(line[-WIDTH - 1] == FIRST_TERM for line in _lines(problem))

    def solve(self, problem: str, variant: str) -> Trajectory:
        """Records the algorithm.

        Raises:
            InvalidProblemError: the problem is no such code, or the variant does not exist.
            EmptyProblemError: the problem is empty.
        """
        pen = Recorder(problem, task_tool(self, variant))
        node: str | None = _lines(problem)[-1][1:]
        while node is not None:
            node = _visit(pen, node)
        return pen.trajectory()

    def answer(self, problem: str, variant: str) -> str:
        """Every node's value in the order of the code, where what a node uses always stands before it."""
        return values_of(problem)[_lines(problem)[-1][1:]]


def values_of(problem: str) -> dict[str, str]:
    """The value of every node, inputs included, computed forwards.

    Raises:
        InvalidProblemError: the problem is no such code.
    """
    values: dict[str, str] = {}
    first_truth, operator = False, NO_OPERATOR
    for line in _lines(problem)[:-1]:
        value, given, term, sign, first_operator, name, _ = _LINE.fullmatch(line).groups()  # type: ignore[union-attr]
        if given:
            values[given] = value
            continue
        truth = (values[term] == "1") == (sign == "+")
        if first_operator:
            first_truth, operator = truth, first_operator
        else:
            truth = (first_truth and truth) if operator == "&" else (first_truth or truth)
        values[name] = str(int(truth))
    return values


def _visit(pen: Recorder, node: str) -> str | None:
    """Follows a node's terms as far as known values go; returns the node to visit next, or None at the end."""
    for mark in (FIRST_TERM, OTHER_TERM):
        (line,) = _search(pen, mark + node)
        name, sign = line[:WIDTH], line[WIDTH]
        operator = line[WIDTH + 1] if mark == FIRST_TERM else NO_OPERATOR
        value = _look_up(pen, name, node)
        if value is None:
            return name
        _think_line(pen, sign + value + operator)
        truth = (value == "1") == (sign == "+")
        if operator == NO_OPERATOR or truth == (operator == "|"):
            break
    value = str(int(truth))
    _think_line(pen, f"{value}:{node}")
    shown = _search(pen, "<" + node)
    if shown:
        return shown[0][:WIDTH]
    pen.begin_answer()
    pen.output(value)
    return None


def _look_up(pen: Recorder, name: str, node: str) -> str | None:
    """The value of a name if it is known; otherwise the way back to the node is written."""
    shown = _search(pen, ":" + name)
    if shown:
        return shown[0][0]
    _think_line(pen, f"{node}<{name}")
    return None


def _search(pen: Recorder, pattern: str) -> list[str]:
    shown = "".join(pen.call(FIND, pattern)).removesuffix(SEARCH_END)
    return shown.split(NEWLINE) if shown else []


def _think_line(pen: Recorder, line: str) -> None:
    for cell in line + NEWLINE:
        pen.think(cell)


def _lines(problem: str) -> list[str]:
    lines = problem.split(NEWLINE)
    kinds = [_LINE.fullmatch(line) for line in lines[:-1]]
    if lines[-1] or len(lines) < INPUTS + 3 or not all(kinds):
        raise InvalidProblemError(
            f"{problem[:60]!r} is no logical graph: write {INPUTS} inputs, the terms of the nodes and a question, a "
            "line each, as in 1:abc, def-&=ghi, abc+/ghi and >ghi"
        )
    known: set[str] = set()
    unfinished: str | None = None  # the node whose other term has to come next
    last: str | None = None  # the node that was finished last
    for at, kind in enumerate(kinds):
        value, given, term, _, operator, name, asked = kind.groups()  # type: ignore[union-attr]
        in_place = (
            bool(value) == (at < INPUTS) and bool(asked) == (at == len(kinds) - 1) and (not asked or asked == last)
        )
        is_other_term = bool(term) and not operator
        in_place = in_place and (unfinished == name if is_other_term else unfinished is None)
        new = given or name
        if not in_place or (term and term not in known) or new in known:
            raise InvalidProblemError(
                f"line {at + 1} of the graph, {lines[at]!r}, uses a name before its line, repeats one or stands in "
                f"the wrong place: {INPUTS} inputs come first, the other term of a node with & or | right behind its "
                "first, and the question last, which names the last node"
            )
        unfinished = name if operator and operator != NO_OPERATOR else None
        if unfinished is None:
            known.add(new)
            last = name
    return lines[:-1]


def _graph(rng: random.Random, length: int, operands: Any, ordered: bool = False, undecided: bool = False) -> str:
    """Code for a graph.

    Args:
        length: nodes beside the inputs.
        operands: for the number of a node and of one that none has used yet: the numbers of the nodes that it uses.
        ordered: the last operand is the first term; otherwise chance orders them.
        undecided: operators are such that the first term never decides.
    """
    if length > MOST_NODES:
        raise InvalidProblemError(f"there are names for {MOST_NODES} nodes, and not for {length}")
    numbers = rng.sample(range(len(ascii_lowercase) ** WIDTH), INPUTS + length)
    names = [ascii_lowercase[n // 676] + ascii_lowercase[n // 26 % 26] + ascii_lowercase[n % 26] for n in numbers]
    values = [rng.choice((False, True)) for _ in range(INPUTS)]
    lines = [f"{int(value)}:{name}" for value, name in zip(values, names)]
    free = list(range(INPUTS))
    rng.shuffle(free)
    for at in range(INPUTS, INPUTS + length):
        used = list(dict.fromkeys(operands(at, free[-1] if free else rng.randrange(at))))
        if not ordered:
            used = used[: 1 if rng.random() < 0.25 else 2]
            rng.shuffle(used)
        signs = [rng.choice("+-") for _ in used]
        truths = [values[n] == (sign == "+") for n, sign in zip(used, signs)]
        operator = rng.choice("&|")
        if undecided:
            operator = "&" if truths[-1] else "|"
        value = truths[0] if len(used) == 1 else all(truths) if operator == "&" else any(truths)
        *other, (first, sign) = zip((names[n] for n in used), signs)
        lines.append(f"{first}{sign}{operator if other else NO_OPERATOR}{FIRST_TERM}{names[at]}")
        lines.extend(f"{name}{sign}{OTHER_TERM}{names[at]}" for name, sign in other)
        values.append(value)
        free = [n for n in free[-8:] if n not in used] + [at]
        rng.shuffle(free)
    return NEWLINE.join([*lines, ">" + names[-1], ""])


def _wide(rng: random.Random, at: int, length: int) -> list[int]:
    """Two inputs for half of the nodes and one, then a tree over them: node i of it joins 2i and 2i + 1."""
    leaves = length // 2 + 1
    inner = at - INPUTS - leaves
    if inner < 0:
        return rng.sample(range(INPUTS), 2)
    return [INPUTS + 2 * inner, INPUTS + 2 * inner + 1]
