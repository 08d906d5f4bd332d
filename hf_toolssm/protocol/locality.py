"""How local a set of trajectories is: the smallest k such that the last k tokens determine the next one.

A model whose state forgets everything older than k tokens can follow k-local trajectories at any length; a task whose
k grows with the problem asks for memory that a fixed-size state does not have.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from hf_toolssm.protocol.calls import begin_token, end_token
from hf_toolssm.protocol.trajectory import WRITER_OF, Step, StepKind, Trajectory

END_OF_TURN = "<|end of turn|>"


@dataclass(frozen=True, slots=True)
class Locality:
    """The locality of a set of trajectories.

    Attributes:
        k: the smallest context length that determines every token the model writes, the end included; None when two
            whole contexts are equal and go on differently, so that no length is enough.
        context: the last k tokens of one context that needs all of them.
        continuations: what follows the last k - 1 tokens of `context`: at least two different tokens.
    """

    k: int | None
    context: tuple[str, ...]
    continuations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenContext:
    """The last tokens before one that they do not determine.

    Attributes:
        tokens: as many as there were, at most those that were asked for.
        continuations: what followed, and how often.
    """

    tokens: tuple[str, ...]
    continuations: dict[str, int]


def open_contexts(trajectories: Iterable[Trajectory], k: int) -> list[OpenContext]:
    """The contexts that need more than k tokens: those whose last k tokens go on differently, the most frequent first.

    There are none where the locality is at most k.
    """
    found: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for trajectory in trajectories:
        sequence, written = _sequence(trajectory)
        for at in written:
            found[tuple(sequence[max(0, at - k) : at])][sequence[at]] += 1
    contexts = [OpenContext(tokens, dict(after.most_common())) for tokens, after in found.items() if len(after) > 1]
    return sorted(contexts, key=lambda context: -sum(context.continuations.values()))


def locality(trajectories: Iterable[Trajectory]) -> Locality:
    """Computes the locality of trajectories.

    Contexts are grouped by their last token; a group whose members all go on alike is settled, every other group is
    split by the token one further back, until none is left. The time grows with the number of tokens times k at worst,
    but only unsettled contexts are looked at again.

    Raises:
        ValueError: there is no trajectory.
    """
    sequences: list[list[str]] = []
    group: list[tuple[int, int]] = []
    for trajectory in trajectories:
        sequence, written = _sequence(trajectory)
        group.extend((len(sequences), at) for at in written)
        sequences.append(sequence)
    if not sequences:
        raise ValueError("locality needs at least one trajectory")

    k, unsettled = 0, [group]
    example: list[tuple[int, int]] = group
    while True:
        unsettled = [g for g in unsettled if len({sequences[i][at] for i, at in g}) > 1]
        if not unsettled:
            break
        example, k = unsettled[0], k + 1
        split = [_split(sequences, g, k) for g in unsettled]
        if all(len(parts) == 1 and next(iter(parts)) is None for parts in split):
            return Locality(None, *_example(sequences, example, k))
        unsettled = [members for parts in split for members in parts.values()]
    return Locality(k, *_example(sequences, example, k))


def _sequence(trajectory: Trajectory) -> tuple[list[str], list[int]]:
    """All tokens, the ends included, and where those stand that the model writes."""
    sequence: list[str] = []
    written: list[int] = []
    for number, step in enumerate(trajectory.steps):
        if number and step.kind is StepKind.INPUT:
            written.append(len(sequence))
            sequence.append(END_OF_TURN)
        cells = tokens(step)
        if step.kind not in WRITER_OF:
            written += range(len(sequence), len(sequence) + len(cells))
        sequence += cells
    return [*sequence, END_OF_TURN], [*written, len(sequence)]


def tokens(step: Step) -> list[str]:
    """A step's cells; of a span its characters, which a task tokenizer writes as a token each where they are ASCII."""
    if not isinstance(step.content, str):
        return list(step.cells())
    ends = (begin_token(step.name), end_token(step.name)) if step.kind is StepKind.CALL else ("", "")
    return [token for token in (ends[0], *step.text, ends[1]) if token]


def _split(
    sequences: list[list[str]], group: list[tuple[int, int]], k: int
) -> dict[str | None, list[tuple[int, int]]]:
    """Splits a group by the token k places back; None stands before the beginning."""
    parts: dict[str | None, list[tuple[int, int]]] = defaultdict(list)
    for i, at in group:
        parts[sequences[i][at - k] if at >= k else None].append((i, at))
    return parts


def _example(
    sequences: list[list[str]], group: list[tuple[int, int]], k: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    i, at = group[0]
    return tuple(sequences[i][max(0, at - k) : at]), tuple(sorted({sequences[j][p] for j, p in group}))
