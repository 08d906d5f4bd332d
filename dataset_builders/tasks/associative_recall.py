"""Associative recall: a user says pairs of a key and a value, and then asks for values (TASS; `memory_task.py`).

Worked example, `2 pairs, 1 queries; seed 7`, variant store:

    user    it turns out that "klouniocrear" points to "5364".
    call    put {"key":"klouniocrear","value":"5364"}
            stored
    user    write down that "fty" leads to "clonagrurn".
    call    put {"key":"fty","value":"clonagrurn"}
            stored
    user    can you find "fty"?
    call    get {"key":"fty"}
            found: clonagrurn
    answer  clonagrurn

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
    version = "2"
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
