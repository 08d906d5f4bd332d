"""The words of memory tasks: keys, values, and how a user speaks of them, apart for training and for tests.

A word, number or wording belongs to training or to the tests by its own hash, so no test is made of what was trained
on. Keys and values stand in the user's text as JSON has them, in quotes.
"""

import json
import random
from collections.abc import Callable
from functools import cache
from string import ascii_letters, ascii_lowercase, digits

from dataset_builders.task import bucket

_TRAINED = 80
"""Of 100 words as many as may occur in training."""

_SIGNS = [chr(code) for code in range(33, 127)]
_UNQUOTED = [" ", *(sign for sign in _SIGNS if sign != '"')]
_ALPHABETS = (
    ascii_lowercase,
    ascii_letters,
    digits,
    "01",
    f"{digits}:-./",
    f"{ascii_lowercase} ",
    *[[" ", *_SIGNS]] * 4,
)
_ONSETS = (*"bcdfghklmnprstvwz", *(a + b for a in "bcfgkp" for b in "lr"), *("dr", "tr", "ch", "sh", "sl", "st", "th"))
_VOWELS = (*"aeiou", "ai", "ea", "io", "ou")
_CODAS = ("", "", "", *"lmnrstx", "nd", "rn", "st")

_COMMANDS = (
    *("<|get|>{}", "<|done|>{}", "<|answer|>{}", "<|absent|>{}", "{}<|value_end|>"),
    *("none {}", 'forget "{}".', '"{}"?'),
)

PUT_BEGINS = (
    "remember that",
    "please note that",
    "write down that",
    "keep in mind that",
    "for later,",
    "from now on",
    "I tell you that",
    "you should know that",
    "by the way,",
    "new entry:",
    "save this:",
    "store that",
    "they say that",
    "it turns out that",
    "take note,",
    "let us say that",
    "as of today",
    "my notes say that",
    "do not forget that",
    "one more thing:",
)
PUT_LINKS = (
    "is",
    "has the value",
    "stands for",
    "goes with",
    "means",
    "belongs to",
    "is now",
    "equals",
    "leads to",
    "maps to",
    "gives",
    "is called",
    "becomes",
    "points to",
    "gets",
    "is set to",
)
GET_BEGINS = (
    "what is",
    "tell me",
    "do you know",
    "look up",
    "which value has",
    "what goes with",
    "what did I say about",
    "can you find",
    "and what about",
    "what belongs to",
    "remind me of",
    "what stands for",
    "I need",
    "show me",
    "what do you have for",
    "please find",
)
DELETE_BEGINS = (
    "forget",
    "remove",
    "delete",
    "strike out",
    "take away",
    "drop",
    "there is no more",
    "erase",
    "cancel",
    "throw away",
    "clear",
    "get rid of",
)


def is_of_tests(text: str) -> bool:
    """Whether a word or wording occurs in tests alone."""
    return bucket(text) >= _TRAINED


def drawn(of_tests: bool, make: Callable[[], str]) -> str:
    """The first that `make` gives of those for training, or for tests."""
    while is_of_tests(found := make()) is not of_tests:
        pass
    return found


def word(rng: random.Random, of_tests: bool) -> str:
    """A word that may be pronounced, of two or three syllables."""

    def make() -> str:
        syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 3)))
        return "".join(syllables) + rng.choice(_CODAS)

    return drawn(of_tests, make)


def number(rng: random.Random, of_tests: bool, fewest: int = 2, most: int = 7) -> str:
    """A number of some digits."""

    def make() -> str:
        digits = rng.randint(fewest, most)
        return str(rng.randrange(10 ** (digits - 1), 10**digits))

    return drawn(of_tests, make)


def phrase(rng: random.Random, of_tests: bool) -> str:
    """A text of two words."""
    return f"{word(rng, of_tests)} {word(rng, of_tests)}"


def signs(rng: random.Random, of_tests: bool) -> str:
    """Any characters that one can type, quotes and brackets among them."""
    return drawn(of_tests, lambda: "".join(rng.choices(_SIGNS, k=rng.randint(2, 6))))


def near(rng: random.Random, of_tests: bool, text: str) -> str:
    """A text of which one letter is another."""

    def make() -> str:
        at = rng.choice([place for place, letter in enumerate(text) if letter != " "])
        return text[:at] + rng.choice(ascii_lowercase.replace(text[at], "")) + text[at + 1 :]

    return drawn(of_tests, make)


def command(rng: random.Random, of_tests: bool) -> str:
    """A text that looks like a call, like what the store shows, or like something that the user asks for."""

    def make() -> str:
        return rng.choice(_COMMANDS).format(word(rng, of_tests))

    return drawn(of_tests, make)


def patchwork(rng: random.Random, of_tests: bool) -> str:
    """Two of a word, a number and signs, apart or not."""

    def make() -> str:
        parts = rng.choices((word, number, signs), k=2)
        return rng.choice(("", " ", ": ", "-")).join(part(rng, of_tests) for part in parts)

    return drawn(of_tests, make)


def scrap(rng: random.Random, of_tests: bool) -> str:
    """Characters of one alphabet in any order, which nothing but copying can write again."""

    def make() -> str:
        alphabet = rng.choice(_ALPHABETS)
        return "".join(rng.choices(alphabet, k=rng.randint(1, 12)))

    return drawn(of_tests, make)


def any_text(rng: random.Random, of_tests: bool) -> str:
    """A word, a number, a phrase, signs, a patchwork, or, every other time, a scrap."""
    kinds = (word, word, number, number, phrase, signs, patchwork)
    return rng.choice((scrap, rng.choice(kinds)))(rng, of_tests)


def wording(rng: random.Random, of_tests: bool, choices: tuple[str, ...]) -> str:
    """One of the wordings for training, or for tests; every other one in training is any characters but quotes, since
    nothing that a user says beside the quoted texts decides anything."""
    if of_tests or rng.random() < 0.5:
        return rng.choice(_of_side(of_tests, choices))
    return drawn(of_tests, lambda: "".join(rng.choices(_UNQUOTED, k=rng.randint(1, 12))).strip() or "-")


@cache
def _of_side(of_tests: bool, choices: tuple[str, ...]) -> list[str]:
    return [each for each in choices if is_of_tests(each) is of_tests]


def quoted(text: str) -> str:
    """As it stands in a user's text and in a call."""
    return json.dumps(text, ensure_ascii=False)
