"""Associative recall: a user says pairs of a key and a value, and then asks for values (TASS; `memory_task.py`).

Worked example, `2 pairs, 1 queries; seed 7`, variant store, with what the calls of a name show one after another:

    user    it turns out that "klouniocrear" points to "5364".
    call    seek_key    it turns out that "
    call    open_key    k
    call    take_key    louniocrear"
    call    close_key
    call    seek_value  points to "
    call    open_value  5
    call    take_value  364"
    call    put
    call    done
    user    write down that "fty" leads to "clonagrurn".
    call    seek_key    write down that "
    call    open_key    f
    call    take_key    ty"
    call    close_key
    call    seek_value  leads to "
    call    open_value  c
    call    take_value  lonagrurn"
    call    put
    call    done
    user    can you find "fty"?
    call    seek_key    can you find "
    call    open_key    f
    call    take_key    ty"
    call    close_key   ?
    call    get         c
    call    show        lonagrurn<|value_end|>
    answer  clonagrurn
    call    done

Adversarial sets:
    near_equal: keys that differ in one letter from another.
    commands: keys and values that look like calls, or like what the store says.
"""

import random
from collections.abc import Iterator, Sequence

from dataset_builders.algorithms.memory_task import MemoryTask, Turn
from dataset_builders.algorithms.memory_texts import any_text, command, near, word


class AssociativeRecall(MemoryTask):
    """See the module's text."""

    title = "Associative recall over a session of many turns, with a key-value store"
    version = "3"
    adversarial: Sequence[str] = ("near_equal", "commands")

    def turns(self, rng: random.Random, length: int, queries: int, kind: str | None) -> Iterator[Turn]:
        of_tests, keys, last = kind is not None, dict[str, None](), ""
        while len(keys) < length:
            if kind == "near_equal" and last:
                key = near(rng, of_tests, last)
            else:
                key = {"commands": command, "near_equal": word}.get(kind or "", any_text)(rng, of_tests)
            last = key if len(keys) % 8 else ""
            if key not in keys:
                keys[key] = None
                yield Turn(key, (command if kind == "commands" else any_text)(rng, of_tests))
        for key in rng.choices(list(keys), k=queries):
            yield Turn(key)
