"""Exact speculation: what the rows wrote before predicts what they write next, and a whole run is checked at once.

The trajectories of this package are local: the last few tokens determine the next one. A tree of contexts, learned
while the model writes, therefore drafts long runs, with the tool executed on a clone. The model has the last word:
a run counts as far as the model itself chooses the same tokens, so the output is that of greedy decoding.

Where the compiled loop applies, model and tool run in one compiled call and nothing is drafted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_toolssm.generation.row import Row
from hf_toolssm.protocol.trajectory import Writer

ORDER = 16
"""Tokens of the longest context."""

MAX_CONTEXTS = 50_000
"""Contexts that are remembered: about 10 MB."""

SHORT, LONGEST = 32, 4_096
"""The shortest draft that is tried, of one row, and the longest, of all rows together."""

_AMBIGUOUS = -1
_BITS = 20  # of a token in a context
_MASKS = tuple((1 << (_BITS * order)) - 1 for order in range(1, ORDER + 1))


class NgramTree:
    """Which token followed which context, by the shortest context that has always been followed by the same."""

    def __init__(self) -> None:
        # Masks of different orders may meet in one number, so each order has its own table.
        self._tables: list[dict[int, int]] = [{} for _ in _MASKS]
        self._orders = list(zip(_MASKS, self._tables))
        self._contexts = 0

    def predict(self, context: int) -> int | None:
        """The token that followed this context, if it is known and always was the same."""
        for mask, table in self._orders:
            token = table.get(context & mask)
            if token != _AMBIGUOUS:
                return token
        return None

    def learn(self, context: int, token: int) -> None:
        """Remembers that the model wrote this token behind this context."""
        for mask, table in self._orders:
            key = context & mask
            known = table.get(key)
            if known == token:
                return
            if known is None:
                if self._contexts < MAX_CONTEXTS:
                    self._contexts += 1
                    table[key] = token
                return
            table[key] = _AMBIGUOUS


def extend(context: int, tokens: Sequence[int]) -> int:
    """The context behind more tokens."""
    for token in tokens[-ORDER:]:
        context = ((context << _BITS) | token) & _MASKS[-1]
    return context


@dataclass
class Draft:
    """A run that a row may write.

    Attributes:
        row: the row after the run, its tools executed on clones.
        tokens: the run; the first token is certain.
        writers: who wrote each of them.
    """

    row: Row
    tokens: list[int]
    writers: list[Writer]


class NgramDrafter:
    """Drafts for all rows of a session, which learn from each other.

    A draft is tried only while drafts have lately been long and right: each failure doubles the steps until the next
    try, and each success doubles the length of the next draft.

    Args:
        shortest: tokens of one row from which checking a run beats a step for each.
    """

    def __init__(self, shortest: int) -> None:
        self.tree = NgramTree()
        self._shortest = shortest
        self._length = SHORT
        self._backoff = 1
        self._wait = 0

    def may_try(self) -> bool:
        """Whether it is time for a draft again; asked before every step."""
        self._wait -= 1
        return self._wait <= 0

    def draft(self, row: Row, choice: int, rows: int) -> Draft:
        """Goes on from the model's certain choice for as long as the tree knows what follows.

        Args:
            row: stays as it is.
            choice: used only if nothing is pending.
            rows: how many rows draft side by side.
        """
        draft, context = row.draft(), row.context
        predict, ends, advance, pending = self.tree.predict, row.protocol.ends, draft.advance, draft.pending
        tokens: list[int] = []
        writers: list[Writer] = []
        limit = min(self._length, max(SHORT, LONGEST // rows))
        following: int | None = choice
        while len(tokens) < limit and not draft.finished:
            if not pending and (following is None or following in ends):
                break
            token, writer = advance(-1 if following is None else following)
            tokens.append(token)
            writers.append(writer)
            context = extend(context, (token,))
            following = None if pending else predict(context)
        return Draft(draft, tokens, writers)

    def pays(self, tokens: int, rows: int) -> bool:
        """Whether checking that many tokens at once beats steps of that many rows."""
        return tokens >= self._shortest * rows

    def judge(self, paid: bool) -> None:
        """Takes note of how a try went."""
        if paid:
            self._backoff, self._wait, self._length = 1, 0, min(2 * self._length, LONGEST // 4)
        else:
            self._backoff, self._length = min(2 * self._backoff, 64), max(self._length // 2, SHORT)
            self._wait = self._backoff
