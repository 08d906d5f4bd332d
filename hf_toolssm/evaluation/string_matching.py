"""The string-matching learner of PAPER, Theorem 2.2: it remembers what followed what, and nothing else.

Of the last tokens it looks up the longest end, of at most k tokens, that training has shown, and writes what followed
there. The problem is in the tool's memory, and of it the learner sees only what it asks for. Where every trajectory
is k-local it is right as soon as it has seen every end of k tokens that a problem needs; on a Turing machine's
trajectories these are the pairs of state and symbol.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from hf_toolssm.errors import ToolError
from hf_toolssm.evaluation.exactness import LengthResult, RowOutcome, first_error, most_tokens, summarize
from hf_toolssm.protocol.calls import Call, CallReader, CommandTokens
from hf_toolssm.protocol.locality import END_OF_TURN
from hf_toolssm.protocol.trajectory import ANSWER, StepKind, Trajectory
from hf_toolssm.tools import Tool, facts_of

_BEGIN = "<|begin of trajectory|>"


class StringMatchingLearner:
    """Learns by remembering every end of at most k tokens.

    Args:
        k: tokens that it looks back.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"k is a number of tokens of at least 1, not {k}")
        self.k = k
        self._next: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)

    def fit(self, trajectories: Iterable[Trajectory]) -> "StringMatchingLearner":
        """Remembers trajectories, beside those it knows."""
        for trajectory in trajectories:
            tokens = [_BEGIN, *_behind_problem(trajectory), END_OF_TURN]
            kinds = [kind for kind, _ in trajectory.cells() if kind is not StepKind.INPUT]
            observed = [True, *(kind is StepKind.OBSERVATION for kind in kinds), False]
            for at in (at for at, by_tool in enumerate(observed) if not by_tool):
                for size in range(min(self.k, at) + 1):
                    self._next[tuple(tokens[at - size : at])][tokens[at]] += 1
        return self

    def choose(self, tokens: Sequence[str]) -> str:
        """What it writes behind these tokens of a trajectory.

        Raises:
            ValueError: it has seen nothing.
        """
        for size in range(min(self.k, len(tokens)), -1, -1):
            found = self._next.get(tuple(tokens[len(tokens) - size :]))
            if found:
                return found.most_common(1)[0][0]
        raise ValueError("the learner has seen no trajectory: call fit first")

    def solve(self, problem: Sequence[str], tool: Tool, max_tokens: int) -> tuple[list[str], str | None]:
        """Runs free, with the tool executed.

        Returns:
            All tokens behind the problem, and the answer; None where it was cut off, or ended by a tool's error.
        """
        facts = facts_of(tool)
        at_work, reader = facts.start(problem, str), CallReader(CommandTokens([facts], str))
        tokens, answer, answering = [_BEGIN], "", False
        while len(tokens) <= max_tokens:
            token = self.choose(tokens[-self.k :])
            if token == END_OF_TURN:
                return tokens[1:], answer if answering else None
            tokens.append(token)
            try:
                read = reader.read(token)
                if isinstance(read, Call):
                    tokens.extend(at_work.call(read.name, read.argument))
            except ToolError:
                break
            if read is False:
                if facts.is_told:
                    at_work.write(token)
                answer += token if answering else ""
                answering = answering or token == ANSWER
        return tokens[1:], None


def _behind_problem(trajectory: Trajectory) -> list[str]:
    """The cells of a trajectory of one turn."""
    return [cell for kind, cell in trajectory.cells() if kind is not StepKind.INPUT]


def evaluate_string_matching(
    learner: StringMatchingLearner, tool: Tool, problem_set: str, length: int, references: Sequence[Trajectory]
) -> LengthResult:
    """Runs the learner free on each problem and compares, as `evaluate_free_running` does with a model.

    Args:
        learner: has seen trajectories.
        tool: of the problems; its observations are cells.
        problem_set, length: for the report.
        references: the problems with their reference trajectories; at least one.
    """
    outcomes, start = [], time.perf_counter()
    for number, reference in enumerate(references):
        expected = _behind_problem(reference)
        found, answer = learner.solve(reference.problem, tool, most_tokens(len(expected)))
        error = first_error(number, expected, found)
        exact = answer == reference.answer
        outcomes.append(RowOutcome(reference.problem, [exact], exact, error is None, error, len(found)))
    return summarize(problem_set, length, "free-running", outcomes, time.perf_counter() - start)
