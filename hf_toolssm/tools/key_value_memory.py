"""Keys and values in memory: a copy shares them in constant time, and what is written after it is nobody else's.

What was there when a copy was made is a frozen layer, on which both go on with an empty one. Once there are many,
each is merged into the one below it that is less than twice as large, so that a lookup passes few of them.
"""

import json
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import nsmallest
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from hf_toolssm.errors import StoreError
from hf_toolssm.tools.words import words_of

MOST_LAYERS = 16
"""From which they are merged."""


class _Put(NamedTuple):
    """What was put under a key; None where it was taken away."""

    number: int
    key: str
    value: str | None


class _Layer:
    """The newest of each key that was written in it, in the order of their writing."""

    __slots__ = ("_indexed", "_lock", "_postings", "_stale", "puts")

    def __init__(self, puts: dict[str, _Put]) -> None:
        self.puts = puts
        self._postings: dict[bytes, list[tuple[_Put, list[tuple[bytes, ...]]]]] = {}
        self._indexed = self._stale = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Layer, (self.puts,)  # a lock is nobody else's, and what a search has indexed it finds again

    def write(self, put: _Put) -> None:
        """Adds what was put, behind all others."""
        self.remove(put.key)
        self.puts[put.key] = put

    def remove(self, key: str) -> None:
        """Takes away what was put under a key, if it was."""
        before = self.puts.pop(key, None)
        self._stale += before is not None and before.number <= self._indexed

    def find(self, phrases: list[tuple[bytes, ...]]) -> Iterator[_Put]:
        """What holds each phrase in key or value, in the order of writing."""
        with self._lock:  # rows of several threads may share a layer
            self._index()
        known = [self._postings.get(word, []) for phrase in phrases for word in phrase]
        for put, texts in min(known, key=len):
            if self.puts.get(put.key) is put and all(any(_holds(text, p) for text in texts) for p in phrases):
                yield put

    def _index(self) -> None:
        """Adds the words of what was put since the last search. What has been replaced since is skipped by `find`, and
        dropped here once it is as much as the rest."""
        if self._stale > len(self.puts):
            self._postings, self._indexed, self._stale = {}, 0, 0
        new: list[_Put] = []
        for put in reversed(self.puts.values()):
            if put.number <= self._indexed:
                break
            new.append(put)
        for put in reversed(new):
            texts = [] if put.value is None else [words_of(put.key), words_of(put.value)]
            for word in {word for text in texts for word in text}:
                self._postings.setdefault(word, []).append((put, texts))
        self._indexed = next(reversed(self.puts.values())).number if self.puts else 0


class MemoryPairs:
    """Keys and values; see `Pairs`."""

    def __init__(self) -> None:
        self._frozen: tuple[_Layer, ...] = ()
        self._layer, self._number = _Layer({}), 0

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> "MemoryPairs":
        """Those that had that state.

        Raises:
            StoreError: it is the state of a file.
        """
        if "pairs" not in state:
            raise StoreError("the saved store is a file's: give the tool the path of that file")
        pairs = cls()
        for key, value in json.loads(zlib.decompress(state["pairs"].tobytes())):
            pairs._write(key, value)
        return pairs

    def get(self, key: str) -> str | None:
        put = self._newest(key)
        return None if put is None else put.value

    def change(self, key: str, to: Callable[[str | None], str | None]) -> str | None:
        had = self.get(key)
        value = to(had)
        if value is None and not any(key in layer.puts for layer in self._frozen):
            self._layer.remove(key)  # nothing below has to be hidden
        elif had is not None or value is not None:
            self._write(key, value)
        return had

    def keys(self, prefix: str, after: str, most: int) -> list[str]:
        wanted = {key for layer in self._layers() for key in layer.puts if key.startswith(prefix) and key > after}
        return nsmallest(most, (key for key in wanted if self.get(key) is not None))

    def search(self, words: list[str], most: int) -> list[tuple[str, str]]:
        phrases = [*map(words_of, words)]
        puts = (put for layer in reversed(self._layers()) for put in layer.find(phrases))
        return list(islice(self._present(puts), most))

    def clone(self) -> "MemoryPairs":
        if self._layer.puts:
            layers = [*self._frozen, self._layer]
            is_deep = len(layers) > MOST_LAYERS
            while is_deep and len(layers) > 1 and len(layers[-2].puts) <= 2 * len(layers[-1].puts):
                above, below = layers.pop(), layers.pop()
                merged = _Layer(dict(below.puts))
                for put in above.puts.values():
                    merged.write(put)
                    if put.value is None and not layers:
                        merged.remove(put.key)
                layers.append(merged)
            self._frozen, self._layer = tuple(layers), _Layer({})
        clone = MemoryPairs()
        clone._frozen, clone._number = self._frozen, self._number
        return clone

    def state(self) -> Mapping[str, Any]:
        pairs = [*self._present(put for layer in reversed(self._layers()) for put in layer.puts.values())]
        return {"pairs": np.frombuffer(zlib.compress(json.dumps(pairs).encode(), 1), np.uint8)}

    def _write(self, key: str, value: str | None) -> None:
        self._number += 1
        self._layer.write(_Put(self._number, key, value))

    def _present(self, puts: Iterable[_Put]) -> Iterator[tuple[str, str]]:
        """The pairs among what was put once that are there now."""
        return ((put.key, put.value) for put in puts if put.value is not None and self._newest(put.key) is put)

    def _layers(self) -> list[_Layer]:
        """The newest first."""
        return [self._layer, *reversed(self._frozen)]

    def _newest(self, key: str) -> _Put | None:
        return next((put for layer in self._layers() if (put := layer.puts.get(key)) is not None), None)


def _holds(text: tuple[bytes, ...], phrase: tuple[bytes, ...]) -> bool:
    return any(text[at : at + len(phrase)] == phrase for at in range(len(text) - len(phrase) + 1))
