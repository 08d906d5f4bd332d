"""Runs the tools again over a trajectory, and takes down what a person sees of them at every step.

A session of 100,000 steps takes seconds, because only what changes is taken down: a pointer's place, a written cell.
A tool's time limit does not hold here.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any

from hf_toolssm.errors import ToolError
from hf_toolssm.generation.tool_calls import fault
from hf_toolssm.protocol.calls import CommandTokens, begin_token, end_token
from hf_toolssm.protocol.trajectory import Step, StepKind, Trajectory
from hf_toolssm.tools import Tool, ToolFacts, facts_of
from hf_toolssm.tools.tool import View, error_text, text_of

_REMEMBERED = (StepKind.INPUT, StepKind.THOUGHT, StepKind.OUTPUT)


class Strings(dict[str, int]):
    """Every text once, by its number."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


class MemoryTrack:
    """What the page needs to show a memory of cells at any step: each cell and each mark, when it changed."""

    def __init__(self, strings: Strings) -> None:
        self._strings, self._names = strings, Strings()
        self._view, self._cells = View(0, 0, {}), dict[int, str]()
        self._written: list[tuple[int, int, int]] = []  # step, place, text
        self._moved: list[tuple[int, int, int, int]] = []  # step, name, place, places covered

    def look(self, step: int, at_work: Any) -> None:
        """Takes down what has changed by that step."""
        before, now = self._view, at_work.view()
        marked = [m.start for m in before.marks.values() if len(m) == 1 and before.start <= m.start < before.stop]
        for at in chain(range(now.start, before.start), range(before.stop, now.stop), marked):
            cell = at_work.cell(at)
            if self._cells.get(at) != cell:
                self._cells[at] = cell
                self._written.append((step, at, self._strings[cell]))
        if now.marks is not before.marks:
            for name in {**before.marks, **now.marks}:
                places = now.marks.get(name, range(0))
                if places != before.marks.get(name):
                    self._moved.append((step, self._names[name], places.start, len(places)))
        self._view = now

    def columns(self) -> dict[str, Any]:
        written, moved = [*zip(*self._written)] or [()] * 3, [*zip(*self._moved)] or [()] * 4
        cells = {"step": deltas(written[0]), "at": deltas(written[1]), "value": written[2]}
        marks = {"step": deltas(moved[0]), "name": moved[1], "at": moved[2], "size": moved[3]}
        return {"cells": cells, "marks": {"names": list(self._names), **marks}}


class StateTrack:
    """The state of any other tool as JSON; of every change only what lies between equal beginnings and ends."""

    def __init__(self) -> None:
        self._state = ""
        self._changes: list[tuple[int, int, int, str]] = []

    def look(self, step: int, at_work: Any) -> None:
        state = as_json(at_work.state())
        if state != self._state:
            head = common(self._state, state)
            tail = common(self._state[head:][::-1], state[head:][::-1])
            self._changes.append((step, head, tail, state[head : len(state) - tail]))
            self._state = state

    def columns(self) -> dict[str, Any]:
        steps, heads, tails, middles = zip(*self._changes)
        return {"changes": {"step": deltas(steps), "head": heads, "tail": tails, "middle": middles}}


def as_json(state: Any) -> str:
    """A state as JSON; what JSON has no form for as Python shows it."""
    try:
        return json.dumps(state, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v), allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(repr(state))


def deltas(values: Sequence[int]) -> list[int]:
    """Each value's distance from the one before it: small numbers, which are short in JSON."""
    return [second - first for first, second in pairwise([0, *values])]


def common(first: str, second: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low


class Replay:
    """The tools, run again over a trajectory.

    Attributes:
        tools: what the page shows of each.
        problems: steps at which a tool does not do again what the trajectory says, and what it does.
    """

    def __init__(self, trajectory: Trajectory, tools: Sequence[Tool], strings: Strings, tokenizer: Any) -> None:
        self._steps = trajectory.steps
        self._tokenizer = tokenizer
        self._facts = [facts_of(tool) for tool in tools]
        self._tool_of = CommandTokens(self._facts, str).tool_of
        self.problems: list[tuple[int, str]] = []
        notes = [self._why_not(facts) for facts in self._facts]
        self._at_work = [self._start(index, notes) for index in range(len(notes))]
        tracks: list[MemoryTrack | StateTrack | None] = [
            MemoryTrack(strings) if hasattr(at_work, "view") else StateTrack() if hasattr(at_work, "state") else None
            for at_work in self._at_work
        ]
        for number in range(len(self._steps)):
            touched = self._take(number)
            for index, track in enumerate(tracks):
                if isinstance(track, MemoryTrack) or (track and index in touched):
                    track.look(number, self._at_work[index])
        self.tools = [
            {"name": type(facts.tool).__name__, "note": note, **(track.columns() if track else {})}
            for facts, note, track in zip(self._facts, notes, tracks)
        ]
        unknown = sorted({each.name for each in self._steps if each.name and each.name not in self._tool_of})
        self.tools += [{"name": name, "note": "not run again: its tool was not given"} for name in unknown]

    def _why_not(self, facts: ToolFacts) -> str:
        if facts.has_side_effects:
            return "not run again: it has side effects"
        spans = (n for n, s in enumerate(self._steps) if s.kind in _REMEMBERED and isinstance(s.content, str))
        span = next(spans, None)
        return "" if span is None or not facts.is_told else f"not run again: step {span} is a text, and no cells"

    def _start(self, index: int, notes: list[str]) -> Any:
        facts, problem = self._facts[index], self._steps[0]
        if notes[index]:
            return None
        try:
            at_work = facts.start(problem.content if facts.unit == "cells" else problem.text, str)
            if hasattr(at_work, "state"):
                at_work.state()
        except Exception as error:
            notes[index] = f"not run again: {error_text(fault('when it was started', error))}"
            return None
        return at_work

    def _take(self, number: int) -> Iterable[int]:
        """Does a step; which tools' states it may have changed, those that are only told aside."""
        step = self._steps[number]
        if step.kind is StepKind.CALL:
            index = self._tool_of.get(step.name)
            if index is not None and self._at_work[index] is not None:
                self._call(number, step, index)
                return (index,)
        elif number and step.kind in _REMEMBERED:
            for facts, at_work in zip(self._facts, self._at_work):
                if facts.is_told and at_work is not None:
                    for cell in step.content or ():
                        at_work.write(cell)
        return () if number else range(len(self._facts))

    def _call(self, number: int, step: Step, index: int) -> None:
        """Makes a call again and compares what it shows with the observation that follows, which may be cut off."""
        facts = self._facts[index]
        if is_broken_off(step, self._tokenizer):
            self.problems.append((number, "the call breaks off, and was not carried out"))
            return
        observed: Any
        try:
            argument = (step.content or ()) if facts.unit == "cells" else step.text
            observed = self._at_work[index].call(step.name, argument)
            observed = tuple(observed) if facts.unit == "cells" else text_of(observed, step.name)
        except Exception as raised:
            error = raised if isinstance(raised, ToolError) else fault(f"on {step.name}", raised)
            if facts.on_error == "end":
                self.problems.append((number, f"the tool ends the row: {error_text(error)}"))
                return
            observed = error_text(error)
        after = self._steps[number + 1 : number + 2]
        recorded = after[0].content if after and after[0].kind is StepKind.OBSERVATION else type(observed)()
        if type(recorded) is not type(observed):
            recorded, observed = "".join(recorded or ()), "".join(observed)
        if number + 2 >= len(self._steps):
            observed = observed[: len(recorded or ())]
        if recorded != observed:
            shown = "nothing" if not observed else f"{''.join(observed)[:300]!r}"
            self.problems.append((number + 1 if recorded else number, f"run again, the tool shows {shown} here"))


def is_broken_off(step: Step, tokenizer: Any) -> bool:
    """Whether the tokens of a call lack the one that begins it or the one that ends it."""
    if step.ids is None or step.content is None:
        return False
    ends = tokenizer.convert_tokens_to_ids([begin_token(step.name), end_token(step.name)])
    return [step.ids[0], step.ids[-1]] != ends
