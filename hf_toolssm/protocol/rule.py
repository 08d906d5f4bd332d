"""What a task's rule says a model has to write, and what a tool or a user may put in: an automaton of tokens."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.locality import END_OF_TURN

END = END_OF_TURN
"""In place of the tokenizer's own end token."""

KEPT_OF_PROMPTS = 4
"""Tokens that a context knows of a prompt of many different cells: what a convolution reaches."""

States = tuple[Hashable, ...]
"""Of a rule: those that it may be in."""


@dataclass(frozen=True)
class Place:
    """What may follow in one state of a rule.

    Attributes:
        right: the token that the model has to write here; None where it is not asked.
        follows: every token that may stand here, and for each the states that it may lead to. Those beside `right` are
            put in without the model; where there are both, they are more of a prompt, which may end here or go on.
        keeps: how many of the last tokens are enough to know here, where any number of them may stand in any order,
            as in a prompt; None is as many as elsewhere. Fewer make fewer contexts, and looser bounds.
    """

    right: str | None = None
    follows: Mapping[str, States] = field(default_factory=dict)
    keeps: int | None = None


@dataclass(frozen=True)
class Saying:
    """A state in which the model writes some tokens one after the other."""

    tokens: tuple[str, ...]
    then: States

    def place(self) -> Place:
        first, *rest = self.tokens
        return Place(first, {first: say(rest, self.then)})


def say(tokens: Sequence[str], then: States) -> States:
    """The states in which the model writes these tokens, if there are any, and then comes to others."""
    return (Saying(tuple(tokens), then),) if tokens else then


def calls(*names: str) -> tuple[str, ...]:
    """The tokens of some calls without arguments, one after the other."""
    return tuple(map(begin_token, names))


class Rule:
    """A task's rule for any prompt of any length.

    Its states are `Saying`, or tuples of a name and what else is known; `_name` is the method that knows their places.

    Every trajectory of every problem that it knows is a path from the start, so what is proved of all paths is proved
    of them. There may be more paths than trajectories, and problems that the task solves and the rule does not know:
    words of another form than a machine's inputs have, a longer second number than a multiplication is trained on.

    Attributes:
        start: the state before the first token of a prompt.
        alike: tokens that a context does not tell apart where they are older than the last `exact`, and what stands
            for each: of ten digits one. Their states are joined. That makes fewer contexts, and looser bounds.
        exact: how many of the last tokens a context tells apart; at least as many of those that are alike elsewhere as
            decide what is right.
        context: how many tokens a context should know; more give tighter bounds.
    """

    start: Hashable
    alike: Mapping[str, str] = MappingProxyType({})
    exact: int = 1
    context: int = 10

    def place(self, state: Hashable) -> Place:
        """What may follow in a state."""
        if isinstance(state, Saying):
            return state.place()
        assert isinstance(state, tuple)
        name, *known = state
        return getattr(self, f"_{name}")(*known)
