"""Builds conversations about the functions that BFCL documents, half of which no training row has.

    python -m venv bfcl && bfcl/bin/pip install --no-deps bfcl-eval mpmath
    python recipes/function_calling/documented.py --bfcl_python bfcl/bin/python --output outputs/documented-data

A row offers four functions as BFCL documents them, two of which have as many words as any with the one that is meant.
What a user says is made of its description, of which some words are left out, and of arguments that its schema allows.
`documents.json` says which functions are held out, for `measure_calls.py --documents`. Which function is right, a rule
that counts words in common tells in 99% of the test's problems: a model's share stands beside that.

No question of BFCL's is read. But a model of these rows knows half of the functions that BFCL asks for: a figure of
`harness/bfcl.py` is then not one of unknown functions.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset

from conversations import TEST_FRAMES, Problem, turn
from dataset_builders.task import example_rng
from functions import CITIES, COLORS, NAMES, TEST, drawn_result
from hf_toolssm.files import escape_unprintable, write_atomically
from hf_toolssm.training.message_rows import FEATURES

sys.path.append(str(Path(__file__).parents[1] / "harness"))
from bfcl_backend import Worker, json_schema

OFFERED = 4
NEAREST = 2
"""Of those that are offered beside the right one, the most alike in words."""

ALIKE = 0.7
"""Share of words in common from which on a function is not held out beside one of training."""

LONGEST = 900
"""Characters of a document; nine of ten of BFCL's are shorter."""

SCALARS = {"string", "integer", "number", "boolean"}
WORDINGS = ("with {name} {value}", "{name}: {value}", "{value} as {name}", "where {name} is {value}")
"""How a person says an argument; the last is the test's."""

LEFT_OUT = 0.2
"""Of the words of a description, in a request."""

FEWEST_WORDS = 4
"""Of a description that are said, if it has as many."""

_QUOTED = re.compile(r"'([A-Za-z][\w .-]{0,18}\w)'")
"""What a description gives as an example of a value."""

_FORM = re.compile("[ymdhst:. -]+|dontcare|first last", re.IGNORECASE)
"""What says how a value is written, as in 'YYYY-MM-DD', and is none."""


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bfcl_python", required=True, help="the Python of the environment that has bfcl-eval")
    parser.add_argument("--output", type=Path, required=True, help="a folder; its files are written anew")
    parser.add_argument("--num-examples", type=int, default=12_000, help="rows")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other rows")
    options = parser.parse_args()
    with closing(Worker(options.bfcl_python)) as worker:
        documents = [json_schema(each) for each in worker.ask("functions")]
    training, held_out = split([each for each in documents if is_fit(each)])
    if min(len(training), len(held_out)) < OFFERED + NEAREST:
        sys.exit(f"{options.bfcl_python} has too few documented functions for two halves: install a whole bfcl-eval")
    options.output.mkdir(parents=True, exist_ok=True)
    rows = Dataset.from_list(list(training_rows(training, options.num_examples, options.seed)), FEATURES)
    rows.to_parquet(options.output / "train.parquet")
    parts = {"training": training, "held out": held_out}
    write_atomically(options.output / "documents.json", json.dumps(parts))
    left = len(documents) - len(training) - len(held_out)
    print(
        f"{len(rows):,} conversations in {options.output}, about {len(training):,} functions; {len(held_out):,} others"
        f" are held out, and {left:,} of {len(documents):,} in neither: too long, of values within values, or alike"
    )


def is_fit(document: Mapping[str, Any]) -> bool:
    """Whether rows are made of a document: not of long ones, nor of those that say nothing or demand values within
    values."""
    parameters = document["parameters"]
    required = [parameters["properties"].get(name, {}) for name in parameters.get("required", ())]
    return len(json.dumps(document)) <= LONGEST and all(map(_is_plain, required)) and bool(words(document))


def _is_plain(schema: Mapping[str, Any]) -> bool:
    kind, items = schema.get("type"), schema.get("items", {})
    allowed = all(isinstance(each, _OF_TYPE.get(str(kind), ())) for each in schema.get("enum", ()))
    return allowed and (
        kind in SCALARS or kind == "array" and items.get("type") in SCALARS - {"boolean"} and _is_plain(items)
    )


_OF_TYPE: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def split(documents: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those of training, and those held out: half, by the letters of their names. BFCL has some functions under other
    names again, and a request would not tell which is meant: of those that are alike in words one is taken, for
    training if they are in both halves."""
    halves: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    known: list[frozenset[str]] = []
    letters = [re.sub("[^a-z0-9]", "", document["name"].lower()) for document in documents]
    is_held_out = [hashlib.sha256(each.encode()).digest()[0] % 2 for each in letters]
    for wanted, half in enumerate(halves):
        for document in (each for each, half_of in zip(documents, is_held_out) if half_of == wanted):
            said = words(document)
            if all(alike(said, each) < ALIKE for each in known):
                known.append(said)
                half.append(document)
    return halves


def words(document: Mapping[str, Any]) -> frozenset[str]:
    """The words of what is done."""
    return frozenset(re.findall("[a-z0-9]+", sentence(document).lower()))


def alike(first: frozenset[str], second: frozenset[str]) -> float:
    """The share of the words of both that both have."""
    return len(first & second) / len(first | second)


def sentence(document: Mapping[str, Any]) -> str:
    """What a description's first sentence says is done, as a request: "retrieves the name" is "retrieve the name"."""
    said = re.sub(r"\s*\([^)]*\)?", "", document.get("description", "")).strip()
    said = re.sub("^(?:this|the|a) (?:function|tool|api|method)(?: is used to)? ", "", said, flags=re.IGNORECASE)
    said = re.split(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bU\.S)\.(?:\s|$)|[;:]", said, maxsplit=1)[0]
    verb, _, rest = said.partition(" ")
    verb = verb[:1].lower() + verb[1:]
    if verb.endswith("ies"):
        verb = verb[:-3] + "y"
    elif verb.endswith(("ches", "shes", "sses", "xes")):
        verb = verb[:-2]
    elif verb.endswith("s") and not verb.endswith("ss"):
        verb = verb[:-1]
    return f"{verb} {rest}".strip()


@dataclass(frozen=True)
class DocumentedFunction:
    """A function that is documented, and does nothing: its result is drawn from its name and its arguments."""

    document: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.document["name"]

    @cached_property
    def properties(self) -> dict[str, Mapping[str, Any]]:
        """Schemas of the parameters that a request may speak of."""
        return {name: part for name, part in self.document["parameters"]["properties"].items() if _is_plain(part)}

    def schema(self) -> dict[str, Any]:
        """What is offered to a model."""
        return {"type": "function", "function": dict(self.document)}

    def draw(self, rng: random.Random) -> dict[str, Any]:
        """Arguments: all that are required, and a third of the others."""
        required = self.document["parameters"].get("required", ())
        given = {name: part for name, part in self.properties.items() if name in required or rng.random() < 1 / 3}
        return {name: _value(rng, part) for name, part in given.items()}

    def request(self, rng: random.Random, arguments: Mapping[str, Any], wordings: str) -> str:
        """What a person says who wants this call."""
        words = sentence(self.document).split()
        spare = max(0, len(words) - FEWEST_WORDS)
        out = set(rng.sample(range(len(words)), min(spare, round(LEFT_OUT * len(words)))))
        said = [word for at, word in enumerate(words) if at not in out]
        told = []
        for name in rng.sample(list(arguments), len(arguments)):
            wording = WORDINGS[-1] if wordings == TEST else rng.choice(WORDINGS[:-1])
            told.append(wording.format(name=name.replace("_", " "), value=_said(arguments[name])))
        return ", ".join([" ".join(said), *told])

    def __call__(self, /, **arguments: Any) -> str:
        return drawn_result(self.name, arguments, is_act=len(self.name) % 2 == 0)


def _value(rng: random.Random, schema: Mapping[str, Any]) -> Any:
    """A value that a schema allows."""
    if "enum" in schema:
        return rng.choice([each for each in schema["enum"] if each not in ("", None)] or schema["enum"])
    kind = schema["type"]
    if kind == "array":
        return [_value(rng, schema["items"]) for _ in range(rng.choice((1, 2, 3)))]
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "integer":
        return rng.randint(1, 10 ** rng.choice((1, 2, 3)))
    if kind == "number":
        return rng.randint(1, 500) + rng.choice((0.25, 0.5, 0.75))
    examples = [each for each in _QUOTED.findall(schema.get("description", "")) if not _FORM.fullmatch(each)]
    if examples and rng.random() < 0.3:
        return rng.choice(examples)
    date = f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    code = "".join(rng.choice("ABCDEFGHKLMNPRSTXYZ") for _ in range(2)) + str(rng.randint(10, 9999))
    word = "".join(rng.choice(("ka", "lo", "mi", "ner", "sta", "tu", "ven", "do", "ri", "pel")) for _ in range(3))
    return rng.choice((rng.choice(CITIES), rng.choice(NAMES), rng.choice(COLORS), date, code, word))


def _said(value: Any) -> str:
    """A value as a person says it."""
    if isinstance(value, list):
        return " and ".join(map(_said, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def training_rows(documents: Sequence[dict[str, Any]], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Conversations of one or two turns."""
    near = neighbours(documents)
    for index in range(count):
        rng = example_rng("documented functions", seed, index)
        offered = offer(rng, documents, near, rng.randrange(len(documents)))
        messages: list[dict[str, Any]] = []
        for _ in range(rng.choice((1, 2, 2))):
            messages += turn(rng, offered)
        schemas = [function.schema() for function in offered]
        yield {"id": f"documented/{seed}/{index}", "messages": messages, "tools": schemas}


def neighbours(documents: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Of each document those that are the most alike in words, the most alike first."""
    said = [*map(words, documents)]
    return [
        sorted((at for at in range(len(said)) if at != own), key=lambda at: -alike(said[own], said[at]))[:NEAREST]
        for own in range(len(said))
    ]


def offer(
    rng: random.Random, documents: Sequence[dict[str, Any]], near: Sequence[Sequence[int]], own: int
) -> list[DocumentedFunction]:
    """A function among its neighbours and others, in any order."""
    others = [at for at in rng.sample(range(len(documents)), OFFERED + NEAREST) if at not in (own, *near[own])]
    chosen = [own, *near[own], *others][:OFFERED]
    return [DocumentedFunction(documents[at]) for at in rng.sample(chosen, len(chosen))]


def test_problems(documents: Sequence[dict[str, Any]], count: int) -> list[Problem]:
    """Functions among others of the same half, asked for in the test's wordings."""
    near, problems = neighbours(documents), []
    for index in range(count):
        rng = example_rng("documented functions", "test", index)
        own = rng.randrange(len(documents))
        offered, right = offer(rng, documents, near, own), DocumentedFunction(documents[own])
        arguments = right.draw(rng)
        request = rng.choice(TEST_FRAMES).format(right.request(rng, arguments, TEST))
        problems.append(Problem(offered, right, request, arguments))
    return problems


if __name__ == "__main__":
    main()
