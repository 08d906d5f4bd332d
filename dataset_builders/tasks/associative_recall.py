"""Associative recall: a user says pairs of a key and a value, and then asks for values (TASS; `memory_task.py`).

Worked example, `2 pairs, 1 queries; seed 324`, variant store, with what the calls of a name show one after another:

    user    take note, "mafynkdgw" stands for "Qj".
    call    seek_key    take note, "
    call    open_key    m
    call    take_key    afynkdgw"
    call    close_key
    call    seek_value  stands for "
    call    open_value  Q
    call    take_value  j"
    call    put
    call    done
    user    you should know that "u" belongs to "Qnndqu".
    call    seek_key    you should know that "
    call    open_key    u
    call    take_key    "
    call    close_key
    call    seek_value  belongs to "
    call    open_value  Q
    call    take_value  nndqu"
    call    put
    call    done
    user    what is "u"?
    call    seek_key    what is "
    call    open_key    u
    call    take_key    "
    call    close_key   ?
    call    get         Q
    call    show        nndqu<|value_end|>
    answer  Qnndqu
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
