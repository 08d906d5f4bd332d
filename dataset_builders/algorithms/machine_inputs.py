"""What a Turing machine's problems look like: a text of parts, of any length that is asked for.

    [01]+               any word over 0 and 1
    [01]+\\+[01]+        two words and a plus sign between them
    1{1,9}:[01]+        one to nine ones, a colon, a word
    palindrome [ab]     half of them palindromes, the others with one symbol changed
    balanced ()         half of those of even length balanced brackets, the others with one bracket turned around

A part is a character, or a class of characters in brackets, and behind it `+` (one or more) or `{a,b}` (a to b).
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from hf_toolssm.errors import InvalidMachineError, TooFewProblemsError

_PART = re.compile(r"(?:\[([^\]\s]+)\]|\\(\S)|([^\s\[\]+{}\\]))(?:(\+)|\{(\d+),(\d+)\})?")
_SHAPE = re.compile(r"(palindrome|balanced)\s+(?:\[(\S+)\]|(\S\S))")


@dataclass(frozen=True)
class _Part:
    """Symbols of which `shortest` to `longest` stand side by side; None is any number."""

    symbols: str
    shortest: int
    longest: int | None


@dataclass(frozen=True)
class Inputs:
    """A distribution of words.

    Attributes:
        shape: "palindrome", "balanced", or None for a word of parts.
        parts: of the word; of a shape its symbols as one part.
    """

    shape: str | None
    parts: Sequence[_Part]

    @property
    def symbols(self) -> set[str]:
        """All that occurs in a word."""
        return {symbol for part in self.parts for symbol in part.symbols}

    @property
    def shortest(self) -> int:
        """The shortest word's length."""
        return max(1, sum(part.shortest for part in self.parts))

    @property
    def longest(self) -> int | None:
        """The longest word's length; None where there is none."""
        longest = [part.longest for part in self.parts]
        return None if None in longest else sum(length for length in longest if length is not None)

    @cached_property
    def has_few_words(self) -> bool:
        """Whether there are fewer than ten words of each length, as of unary numbers."""
        open_ended = [part for part in self.parts if part.longest is None]
        if self.shape is not None or len(open_ended) > 1 or any(len(part.symbols) > 1 for part in open_ended):
            return False
        bounded = [part for part in self.parts if part.longest is not None]
        return prod(sum(len(p.symbols) ** n for n in range(p.shortest, (p.longest or 0) + 1)) for p in bounded) < 10

    def may_be_only(self, symbol: str) -> bool:
        """Whether a word can consist of that symbol alone."""
        return self.shape is None and all(symbol in part.symbols or part.shortest == 0 for part in self.parts)

    def sample(self, rng: random.Random, length: int, runs: bool = False) -> str:
        """A word of exactly that length; with `runs`, equal symbols stand side by side as far as the shape allows.

        Raises:
            TooFewProblemsError: there is no word of that length.
        """
        if length < self.shortest or (self.longest is not None and length > self.longest):
            raise TooFewProblemsError(f"no input has {length} symbols: choose another length")
        if self.shape == "palindrome":
            return self._palindrome(rng, length, runs)
        if self.shape == "balanced":
            return self._balanced(rng, length, runs)
        return "".join(
            _word(rng, part.symbols, size, runs) for part, size in zip(self.parts, self._sizes(rng, length))
        )

    def _sizes(self, rng: random.Random, length: int) -> list[int]:
        """How long each part is. Bounded parts are drawn evenly as far as the others leave room; then open ones share
        what is left, at random cuts, and bounded ones take what is too much for them."""
        sizes, spare = [part.shortest for part in self.parts], length - sum(part.shortest for part in self.parts)
        bounded = [(at, part.longest) for at, part in enumerate(self.parts) if part.longest is not None]
        for at, longest in rng.sample(bounded, len(bounded)):
            taken = min(spare, rng.randint(0, longest - sizes[at]))
            sizes[at], spare = sizes[at] + taken, spare - taken
        open_ended = [at for at, part in enumerate(self.parts) if part.longest is None]
        if open_ended:
            cuts = sorted(rng.randint(0, spare) for _ in open_ended[1:])
            for at, low, high in zip(open_ended, [0, *cuts], [*cuts, spare]):
                sizes[at] += high - low
            return sizes
        for at, longest in rng.sample(bounded, len(bounded)):
            taken = min(spare, longest - sizes[at])
            sizes[at], spare = sizes[at] + taken, spare - taken
        return sizes

    def _palindrome(self, rng: random.Random, length: int, runs: bool) -> str:
        (part,) = self.parts
        half = _word(rng, part.symbols, (length + 1) // 2, runs)
        word = list(half + half[::-1][length % 2 :])
        if length > 1 and rng.random() < 0.5:
            at = rng.choice([at for at in range(length) if at != length - 1 - at])  # not the middle
            word[at] = rng.choice([symbol for symbol in part.symbols if symbol != word[at]])
        return "".join(word)

    def _balanced(self, rng: random.Random, length: int, runs: bool) -> str:
        symbols = self.parts[0].symbols
        opened, closed = symbols[0], symbols[1]
        pairs = length // 2
        if runs:
            cut = rng.randint(0, pairs)
            word = list(opened * cut + closed * cut + opened * (pairs - cut) + closed * (pairs - cut))
        else:
            word = _balanced_shuffle(rng, pairs, opened, closed)
        if length % 2:  # an odd word is never balanced
            word.insert(rng.randint(0, len(word)), rng.choice((opened, closed)))
        elif rng.random() < 0.5:
            at = rng.randrange(length)
            word[at] = closed if word[at] == opened else opened
        return "".join(word)


def parse_inputs(pattern: str) -> Inputs:
    """Reads a pattern.

    Raises:
        InvalidMachineError: it is none.
    """
    if shape := re.fullmatch(_SHAPE, pattern):
        symbols = shape[2] or shape[3]
        if len(set(symbols)) < 2 or (shape[1] == "balanced" and len(symbols) != 2):
            raise InvalidMachineError(f"{pattern!r} needs two different symbols")
        return Inputs(shape[1], (_Part(symbols, 1, None),))
    parts, at = [], 0
    while at < len(pattern):
        match = _PART.match(pattern, at)
        if match is None:
            break
        symbols = match[1] or match[2] or match[3]
        low, high = (1, None) if match[4] else (int(match[5] or 1), int(match[6] or 1))
        if high is not None and not 0 <= low <= high:
            raise InvalidMachineError(f"{match[0]!r} in {pattern!r} asks for {low} to {high} symbols")
        parts.append(_Part(symbols, low, high))
        at = match.end()
    if at < len(pattern) or not parts or all(part.longest == 0 for part in parts):
        raise InvalidMachineError(
            f"{pattern!r} is no input: write parts like [01]+ and 1{{1,9}}, or `palindrome [ab]`, or `balanced ()`"
        )
    return Inputs(None, tuple(parts))


def _word(rng: random.Random, symbols: str, length: int, runs: bool) -> str:
    if not runs:
        return "".join(rng.choices(symbols, k=length))
    cut = rng.randint(0, length)
    return rng.choice(symbols) * cut + rng.choice(symbols) * (length - cut)


def _balanced_shuffle(rng: random.Random, pairs: int, opened: str, closed: str) -> list[str]:
    """A balanced word, each as likely as any other: of the rotations of a shuffled word with one closing bracket too
    many, exactly one is balanced up to that bracket (the cycle lemma)."""
    word = [1] * pairs + [-1] * (pairs + 1)
    rng.shuffle(word)
    height = lowest = start = 0
    for at, change in enumerate(word, 1):
        height += change
        if height < lowest:
            lowest, start = height, at
    rotated = word[start:] + word[:start]
    return [opened if change > 0 else closed for change in rotated[:-1]]
