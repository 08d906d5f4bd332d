"""Builds conversations about the functions that BFCL documents, half of which no training row has.

    python -m venv bfcl && bfcl/bin/pip install --no-deps bfcl-eval mpmath
    python recipes/function_calling/documented.py --bfcl_python bfcl/bin/python --output outputs/documented-data

A row offers four functions as BFCL documents them. What a user says is made of the description of one of them, of
which some words are left out, and of arguments that its schema allows; no question of BFCL's is read. `documents.json`
says which functions are held out, for `measure_calls.py --documents`.
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
    """Whether rows are made of a document: not of long ones, nor of those that demand values within values."""
    parameters = document["parameters"]
    required = [parameters["properties"].get(name, {}) for name in parameters.get("required", ())]
    return len(json.dumps(document)) <= LONGEST and all(map(_is_plain, required)) and bool(sentence(document).split())


def _is_plain(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    return kind in SCALARS or kind == "array" and schema.get("items", {}).get("type") in SCALARS - {"boolean"}


def split(documents: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those of training, and those held out: half, by their names. BFCL has some functions under several names, and a
    request would not tell which is meant: each sentence is taken once, for training if it is in both halves."""
    by_name = [hashlib.sha256(document["name"].encode()).digest()[0] % 2 for document in documents]
    halves: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    known: set[str] = set()
    for wanted, half in enumerate(halves):
        for document, is_held_out in zip(documents, by_name):
            said = sentence(document).casefold()
            if is_held_out == wanted and said not in known:
                known.add(said)
                half.append(document)
    return halves


def sentence(document: Mapping[str, Any]) -> str:
    """What a description's first sentence says is done, as a request: "retrieves the name" is "retrieve the name"."""
    said = re.split(r"\.(?:\s|$)|[;:(]", document.get("description", "").strip(), maxsplit=1)[0]
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
    examples = _QUOTED.findall(schema.get("description", ""))
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
    functions = [*map(DocumentedFunction, documents)]
    for index in range(count):
        rng = example_rng("documented functions", seed, index)
        offered = rng.sample(functions, OFFERED)
        messages: list[dict[str, Any]] = []
        for _ in range(rng.choice((1, 2, 2))):
            messages += turn(rng, offered)
        schemas = [function.schema() for function in offered]
        yield {"id": f"documented/{seed}/{index}", "messages": messages, "tools": schemas}


def test_problem(documents: Sequence[dict[str, Any]], index: int) -> Problem:
    """One of these functions among three others of them, asked for in the test's wordings."""
    rng = example_rng("documented functions", "test", index)
    offered = [*map(DocumentedFunction, rng.sample(documents, OFFERED))]
    right = rng.choice(offered)
    arguments = right.draw(rng)
    return Problem(offered, right, rng.choice(TEST_FRAMES).format(right.request(rng, arguments, TEST)), arguments)


if __name__ == "__main__":
    main()
