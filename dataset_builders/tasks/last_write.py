"""The last write: pairs are put, changed and deleted, and a query asks for what was said last (`memory_task.py`).

Worked example, `3 pairs, 2 queries; seed 62512`, variant store, with what the calls of a name show one after another;
a length counts what is put, changed and deleted:

    user    remember that "16973" has the value "a".
    call    seek_key    remember that "
    call    open_key    1
    call    take_key    6973"
    call    close_key
    call    seek_value  has the value "
    call    open_value  a
    call    take_value  "
    call    put
    call    done
    user    new entry: "fathapra" has the value "6000486".
    call    seek_key    new entry: "
    call    open_key    f
    call    take_key    athapra"
    call    close_key
    call    seek_value  has the value "
    call    open_value  6
    call    take_value  000486"
    call    put
    call    done
    user    tell me "16973"?
    call    seek_key    tell me "
    call    open_key    1
    call    take_key    6973"
    call    close_key   ?
    call    get         a
    call    show        <|value_end|>
    answer  a
    call    done
    user    throw away "fathapra".
    call    seek_key    throw away "
    call    open_key    f
    call    take_key    athapra"
    call    close_key   .
    call    delete
    call    done
    user    what do you have for "fathapra"?
    call    seek_key    what do you have for "
    call    open_key    f
    call    take_key    athapra"
    call    close_key   ?
    call    get         <|absent|>
    answer  none
    call    done

Adversarial sets:
    overwritten: what is asked for was changed just before.
    deleted: wherever two keys have a value, one was deleted just before; half of the queries ask for that, the others
        for what is still there.
    near_equal: keys that differ in one letter from another, some of which were never put.
    commands: keys and values that look like calls, or like what the store says.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from dataset_builders.algorithms.memory_task import MemoryTask, Turn
from dataset_builders.algorithms.memory_texts import any_text, command, near, word

_CHANGE, _DELETE = "change", "delete"
_JUST_BEFORE = {"overwritten": _CHANGE, "deleted": _DELETE}


class LastWrite(MemoryTask):
    """See the module's text."""

    title = "What was said last, with a key-value store"
    version = "3"
    adversarial: Sequence[str] = (*_JUST_BEFORE, "near_equal", "commands")

    def turns(self, rng: random.Random, length: int, queries: int, kind: str | None) -> Iterator[Turn]:
        of_tests = kind is not None
        make: Callable[..., str] = command if kind == "commands" else any_text
        asked = deque([*sorted(rng.choices(range(length), k=queries - 1)), length - 1])  # the last turn is a query
        keys: list[str] = []
        there: dict[str, None] = {}

        def new_key() -> str:
            if kind == "near_equal":
                return near(rng, of_tests, rng.choice(keys)) if keys and rng.random() < 0.8 else word(rng, of_tests)
            return make(rng, of_tests)

        for at in range(length):
            writes = rng.choices(("new", _CHANGE, _DELETE), (5, 3, 2))[0] if keys else "new"
            if keys and asked and asked[0] == at:
                writes = _JUST_BEFORE.get(kind or "", writes)
                if kind == "deleted" and len(there) < 2:
                    writes = "new"
            key = new_key() if writes == "new" else rng.choice(keys[-8:] if rng.random() < 0.5 else keys)
            if writes == "new":
                keys.append(key)
            if writes == _DELETE:
                if there and key not in there:
                    key = next(reversed(there))
                there.pop(key, None)
                yield Turn(key, deletes=True)
            else:
                there[key] = None
                yield Turn(key, make(rng, of_tests))
            while asked and asked[0] == at:
                asked.popleft()
                if kind == "overwritten" or rng.random() < (0.5 if kind == "deleted" else 0.3):
                    yield Turn(key)
                elif kind == "deleted" and there:
                    yield Turn(next(reversed(there)))
                else:
                    yield Turn(rng.choice(keys) if rng.random() < 0.8 else new_key())
