"""A phonebook: a user says names with their numbers, and then asks for numbers (`memory_task.py`).

Worked example, `2 pairs, 1 queries; seed 3`, variant store, with what the calls of a name show one after another:

    user    write down that "Muchioband Blapa" is now "270 8360".
    call    seek_key    write down that "
    call    open_key    M
    call    take_key    uchioband Blapa"
    call    close_key
    call    seek_value  is now "
    call    open_value  2
    call    take_value  70 8360"
    call    put
    call    done
    user    keep in mind that "Muchioband Priokoulit" is set to "1468 756".
    call    seek_key    keep in mind that "
    call    open_key    M
    call    take_key    uchioband Priokoulit"
    call    close_key
    call    seek_value  is set to "
    call    open_value  1
    call    take_value  468 756"
    call    put
    call    done
    user    do you know "Muchioband Priokoulit"?
    call    seek_key    do you know "
    call    open_key    M
    call    take_key    uchioband Priokoulit"
    call    close_key   ?
    call    get         1
    call    show        468 756<|value_end|>
    answer  1468 756
    call    done

Adversarial sets:
    families: every family name, and every first name, is that of many.
    near_equal: names that differ in one letter from another.
"""

import random
from collections.abc import Iterator, Sequence

from dataset_builders.algorithms.memory_task import MemoryTask, Turn
from dataset_builders.algorithms.memory_texts import near, number, word


class Phonebook(MemoryTask):
    """See the module's text."""

    title = "A phonebook said turn by turn, with a key-value store"
    version = "3"
    adversarial: Sequence[str] = ("families", "near_equal")

    def turns(self, rng: random.Random, length: int, queries: int, kind: str | None) -> Iterator[Turn]:
        of_tests = kind is not None

        def names(count: int) -> list[str]:
            return [word(rng, of_tests) for _ in range(count)]

        def name() -> str:
            return f"{rng.choice(first).title()} {rng.choice(family).title()}"

        # As many as there are pairs, so that most of them are of one; for families just enough.
        few = kind == "families"
        first, family = (names(2 + (int((2 * length) ** 0.5) if few else length)) for _ in range(2))
        said: dict[str, None] = {}
        while len(said) < length:
            whole = name()
            if kind == "near_equal" and len(said) % 2:
                whole = near(rng, of_tests, next(reversed(said)).lower()).title()
            if whole not in said:
                said[whole] = None
                yield Turn(whole, " ".join(number(rng, of_tests, 3, 4) for _ in range(rng.randint(2, 3))))
        for key in rng.choices(list(said), k=queries):
            yield Turn(key)
