"""Associative recall of pairs so short that a state holds some: out of the state, or out of a store (TASS).

As in multi-query associative recall (Arora et al., arXiv 2312.04927) a key and its value are a few tokens, here three
letters and a capital one. As there, what was said lately is asked for more often than what was said long ago: the pair
that came n-th from the end with a probability in proportion to log(1 + 1/n). So there is something to decide before an
answer: whether the state will be right, or the store has to be asked.

Worked example, `2 pairs, 2 queries; seed 33`, variant either, with what the calls of a name show one after another:

    user    alkL
    call    seek_key    a
    call    take_key    lkL
    call    take_value  <|text_end|>
    call    put
    call    done
    user    irjI
    call    seek_key    i
    call    take_key    rjI
    call    take_value  <|text_end|>
    call    put
    call    done
    user    irj?
    answer  I
    call    done
    user    alk?
    call    seek_key    a
    call    take_key    lk?
    call    get         L
    call    show        <|value_end|>
    answer  L
    call    done

Variants:
    either: every pair goes into the store, and a query is answered out of the state, or out of it, as chance has it.
    store: every query is answered out of the store.
    state: nothing goes into the store, and every query is answered out of the state.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from string import ascii_lowercase, ascii_uppercase

from dataset_builders.algorithms.memory_contexts import QUERY_ENDS
from dataset_builders.algorithms.memory_task import MemoryTask, Turn, answer_directly, show
from dataset_builders.algorithms.memory_texts import drawn, is_of_tests
from dataset_builders.task import Task
from hf_toolssm.errors import InvalidProblemError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.rule import Rule
from hf_toolssm.tools.pointer_store import DONE, PUT, seek, take

LETTERS, KEY_LENGTH = ascii_lowercase, 3
"""Of keys."""

_ANSWERED, _ASKED_A_PAIR = 0.75, 6
"""How many of the questions are answered out of the state where either may be, and how many there are in training at
most a pair. What is to be learned is in these answers; all else is copying."""


@cache
def _number_of_keys(of_tests: bool) -> int:
    """How many keys there are in all."""
    return sum(is_of_tests("".join(key)) is of_tests for key in product(LETTERS, repeat=KEY_LENGTH))


class ShortRecall(MemoryTask):
    """See the module's text."""

    title = "Associative recall of short pairs, out of the state or of a key-value store"
    version = "1"
    variants: Sequence[str] = ("store", "either", "state")
    adversarial: Sequence[str] = ()

    def cells(self, variant: str) -> Sequence[str]:
        return (*LETTERS, *ascii_uppercase, QUERY_ENDS)

    def rule(self, variant: str) -> Rule:
        return Task.rule(self, variant)

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        length = rng.randint(1, max_length)
        return self.problem(rng, length, rng.randint(1, _ASKED_A_PAIR * length))

    def turns(self, rng: random.Random, length: int, queries: int, kind: str | None) -> Iterator[Turn]:
        if length > (most := _number_of_keys(kind is not None)):
            raise InvalidProblemError(
                f"of {KEY_LENGTH} letters there are {most:,} keys for {'tests' if kind else 'training'}: ask for no "
                f"more pairs than these, and not for {length:,}"
            )

        def make() -> str:
            return "".join(rng.choices(LETTERS, k=KEY_LENGTH))

        keys = dict[str, None]()
        while len(keys) < length:
            key = drawn(kind is not None, make)
            if key not in keys:
                keys[key] = None
                yield Turn(key, rng.choice(ascii_uppercase))
        latest = list(keys)[::-1]
        for _ in range(queries):
            yield Turn(latest[min(int((length + 1) ** rng.random()), length) - 1])

    def say(self, turn: Turn, rng: random.Random, of_tests: bool) -> str:
        return turn.key + (QUERY_ENDS if turn.value is None else turn.value)

    def reply(self, pen: Recorder, variant: str, right: str | None, rng: random.Random) -> None:
        if variant == "state":
            answer_directly(pen, right)
            return
        if variant == "either" and right is not None and rng.random() < _ANSWERED:
            answer_directly(pen, right)
            pen.call(DONE)  # the pointer is to begin before the next question, and not before this one
            return
        (cell,) = pen.call(seek("key"))
        while cell in LETTERS:
            (cell,) = pen.call(take("key"))
        if right is None:
            pen.call(take("value"))
            pen.call(PUT)
        else:
            show(pen)
        pen.call(DONE)
