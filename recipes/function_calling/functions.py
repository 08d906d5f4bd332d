"""A family of synthetic functions: any verb with any noun, and one or two parameters of any kinds.

    book_boat(city: str, nights: int)      "please reserve the boat for 3 nights in Oslo"

A function really runs: its result is drawn from its name and its arguments, the same at every call; some calls fail.
What a person may say of it is in two parts, the wordings of training and those of the test. In training the parameters
of a name are drawn anew for every row, so that they must be read; those of the functions of the test are fixed.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dataset_builders.task import example_rng

TRAINING, TEST = "training", "test"
"""Whose wordings: no wording of the test stands in a training row."""

# By name: what a description says, and what a person does; the last is what a person says in the test.
ACTS = {
    "book": ("Books", ("book", "reserve", "arrange")),
    "cancel": ("Cancels", ("cancel", "revoke", "drop")),
    "order": ("Orders", ("order", "buy", "request")),
    "move": ("Moves", ("move", "shift", "postpone")),
}
ASKS = {
    "find": ("Finds", ("find", "search", "locate")),
    "check": ("Checks", ("check", "inspect", "examine")),
    "price": ("Prices", ("price", "cost", "quote")),
    "rate": ("Rates", ("rate", "grade", "mark")),
}
VERBS = {**ACTS, **ASKS}
NOUNS = (
    *("hotel", "taxi", "table", "flight", "meeting", "parcel", "song", "ticket", "lamp", "room", "report", "garden"),
    *("pump", "boat", "bicycle", "piano", "museum", "doctor", "printer", "oven", "camera", "course", "tent", "cake"),
)
SEEN = {"order_taxi": ("city", "person"), "check_printer": ("color",)}
"""In training, with the same parameters as in the test, but never by the last of their verb's words, nor by the test's
wordings, in which no function is asked for in training."""

UNSEEN = {"book_boat": ("city", "nights"), "price_camera": ("color", "budget")}
"""In no training row, neither to be called nor offered; their verb and their noun are, each with others."""

STRANGE = {"cancel_violin": ("person", "nights"), "find_sauna": ("city", "budget")}
"""In no training row, and their noun nowhere in one."""


@dataclass(frozen=True)
class Parameter:
    """A kind of parameter.

    Attributes:
        schema: JSON Schema of the values.
        draw: a value.
        wordings: how a person says it; the last is the test's.
    """

    schema: Mapping[str, Any]
    draw: Callable[[random.Random], Any]
    wordings: tuple[str, ...]


def _one_of(values: tuple[str, ...]) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(values)


CITIES = ("Oslo", "Paris", "Lima", "Cairo", "Rome", "Delhi", "Quito", "Accra", "Hanoi", "Riga", "Porto", "Bergen")
NAMES = ("Anna", "Bela", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hanna", "Igor", "Jana", "Karim", "Lena")
COLORS = ("red", "blue", "green", "black")

PARAMETERS = {
    "city": Parameter({"type": "string"}, _one_of(CITIES), ("near {}", "in the city of {}", "in {}")),
    "person": Parameter({"type": "string"}, _one_of(NAMES), ("for {}", "in the name of {}", "under the name {}")),
    "color": Parameter(
        {"type": "string", "enum": list(COLORS)}, _one_of(COLORS), ("painted {}", "of {} color", "in {} color")
    ),
    "nights": Parameter(
        {"type": "integer"}, lambda rng: rng.randint(2, 99), ("for {} nights", "{} nights long", "of {} nights")
    ),
    "budget": Parameter(
        {"type": "number"},
        lambda rng: rng.randint(2, 99) + 0.5,
        ("for at most {} euros", "under {} euros", "at most {} euros"),
    ),
}
"""In the test's wordings stand only words that other wordings have too."""

FAILURES = ("nothing is free", "the server is closed", "that is too late", "no such entry")


@dataclass(frozen=True)
class SyntheticFunction:
    """A function of the family. Calling it gives JSON as text, and touches nothing."""

    verb: str
    noun: str
    parameters: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.verb}_{self.noun}"

    def schema(self) -> dict[str, Any]:
        """What is offered to a model."""
        properties = {kind: dict(PARAMETERS[kind].schema) for kind in self.parameters}
        parameters = {"type": "object", "properties": properties, "required": list(self.parameters)}
        description = f"{VERBS[self.verb][0]} the {self.noun}."
        return {
            "type": "function",
            "function": {"name": self.name, "description": description, "parameters": parameters},
        }

    def draw(self, rng: random.Random) -> dict[str, Any]:
        """Arguments."""
        return {kind: PARAMETERS[kind].draw(rng) for kind in self.parameters}

    def request(self, rng: random.Random, arguments: Mapping[str, Any], wordings: str) -> str:
        """What a person says who wants this call: verb, noun and every argument, these in any order."""
        is_test = wordings == TEST
        verbs = VERBS[self.verb][1]
        verb = verbs[-1] if is_test else rng.choice(verbs[:-1] if self.name in SEEN else verbs)
        told = []
        for kind in rng.sample(list(arguments), len(arguments)):
            known = PARAMETERS[kind].wordings
            told.append((known[-1] if is_test else rng.choice(known[:-1])).format(arguments[kind]))
        return " ".join([verb, "the", self.noun, *told])

    def __call__(self, **arguments: Any) -> str:
        return drawn_result(self.name, arguments, is_act=self.verb in ACTS)


def drawn_result(name: str, arguments: Mapping[str, Any], is_act: bool) -> str:
    """What a function gives, as JSON, the same at every call: an error now and then; else a value, or the reference of
    what it did."""
    rng = example_rng("function", name, json.dumps(arguments, sort_keys=True))
    if rng.random() < 0.125:
        return json.dumps({"error": rng.choice(FAILURES)})
    if is_act:
        return json.dumps({"reference": f"{rng.choice('WXYZ')}{rng.randint(100, 999)}"})
    return json.dumps({"value": rng.randint(2, 999)})


def tested(name: str) -> SyntheticFunction:
    """A function of the test."""
    verb, noun = name.split("_")
    return SyntheticFunction(verb, noun, {**SEEN, **UNSEEN, **STRANGE}[name])


def drawn(rng: random.Random, verb: str, noun: str) -> SyntheticFunction:
    """A function of training: its parameters are drawn, unless it is one of `SEEN`."""
    if f"{verb}_{noun}" in SEEN:
        return tested(f"{verb}_{noun}")
    return SyntheticFunction(verb, noun, tuple(rng.sample(list(PARAMETERS), rng.choice((1, 2, 2)))))


def said(results: list[str]) -> str:
    """What the assistant says of the results of a turn's calls: every one of them."""
    return " ".join(map(_said, map(json.loads, results)))


def _said(result: Mapping[str, Any]) -> str:
    if "error" in result:
        return f"Sorry, {result['error']}."
    return f"Done, the reference is {result['reference']}." if "reference" in result else f"It is {result['value']}."
