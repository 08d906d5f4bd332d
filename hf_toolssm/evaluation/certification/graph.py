"""The graph of contexts: the last tokens, and what is right there, of all that a rule allows."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import CertificationError
from hf_toolssm.protocol.rule import END, Rule

MOST_NODES = 200_000


@dataclass(frozen=True)
class Node:
    """A context.

    Attributes:
        tokens: the last j, oldest first; fewer where they are all since the beginning, or the rule keeps fewer. An old
            one stands for all that the rule says are alike.
        right: the token that the model has to write behind them; None where it is not asked.
    """

    tokens: tuple[str, ...]
    right: str | None


@dataclass(frozen=True)
class Graph:
    """All contexts of a rule.

    Attributes:
        nodes: the first is the beginning, without a token.
        edges: pairs of node numbers: the second's last token may follow the first.
        j: how many tokens a node knows.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    j: int


class TokenIds(dict[str, int]):
    """The id of each token that a rule has.

    Raises:
        CertificationError: one is asked for that the tokenizer does not know.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__({**tokenizer.get_vocab(), END: tokenizer.eos_token_id})

    def __missing__(self, token: str) -> int:
        raise CertificationError(f"the model's tokenizer does not know {token!r}, which the rule has")


def build_graph(rule: Rule, j: int) -> Graph:
    """Explores a rule from its start, until no context is new.

    A context from which the rule may go on in several ways is one node for each right token.

    Raises:
        CertificationError: there are more than `MOST_NODES`, or one context has two right tokens: j is too small.
    """
    if min(j, rule.exact) < 1:
        raise CertificationError(f"a context knows at least one token, not {min(j, rule.exact)}")
    place = cache(rule.place)  # of few states, each of which is met with many contexts
    numbers: dict[Node, int] = {}
    edges: dict[tuple[int, int], None] = {}

    def number(state: Hashable, tokens: tuple[str, ...]) -> int:
        return numbers.setdefault(Node(tokens, place(state).right), len(numbers))

    def known(tokens: tuple[str, ...], keeps: int | None) -> tuple[str, ...]:
        tokens = tokens[-(keeps or j) :][-j:]
        old, new = tokens[: -rule.exact], tokens[-rule.exact :]
        return (*(rule.alike.get(token, token) for token in old), *new)

    first: tuple[Hashable, tuple[str, ...]] = (rule.start, ())
    number(*first)
    seen, waiting = {first}, [first]
    while waiting:
        state, tokens = waiting.pop()
        at = number(state, tokens)
        for token, states in place(state).follows.items():
            for then in states:
                after = known((*tokens, token), place(then).keeps)
                edges[at, number(then, after)] = None
                if (then, after) not in seen:
                    seen.add((then, after))
                    waiting.append((then, after))
        if len(numbers) > MOST_NODES:
            raise CertificationError(f"with {j} tokens a context there are more than {MOST_NODES:,} contexts")
    _check_determined(numbers, j)
    return Graph(tuple(numbers), tuple(edges), j)


def _check_determined(numbers: Mapping[Node, int], j: int) -> None:
    right: dict[tuple[str, ...], str] = {}
    for node in numbers:
        if node.right is not None and right.setdefault(node.tokens, node.right) != node.right:
            raise CertificationError(
                f"the last {j} tokens do not determine the next: behind {' '.join(node.tokens)} both "
                f"{right[node.tokens]} and {node.right} may be right; take more tokens"
            )
