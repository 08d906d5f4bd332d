"""Builds conversations about synthetic functions: rows of `messages` and `tools`, as TRL's documentation has them.

    python recipes/function_calling/conversations.py --output outputs/function-calling-data

Every row offers two or three functions in any order; which one is meant depends on what the user says. What a call
gives is what the function gives, which is really called.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from dataset_builders.task import example_rng
from functions import NOUNS, TEST, TRAINING, UNSEEN, VERBS, SyntheticFunction, drawn, said, tested
from hf_toolssm.files import escape_unprintable
from hf_toolssm.training.message_rows import FEATURES

FRAMES = ("please {}", "{}", "can you {}", "I want you to {}", "{} now", "hello, {}", "I need you to {}, please")
TEST_FRAMES = ("now {}", "hello, can you please {}", "{}, I need you to", "please, I want you to {} now")

TALK = {
    "hello": "Hello, what can I do for you?",
    "good morning": "Good morning, what can I do for you?",
    "thank you": "You are welcome.",
    "that is all": "Goodbye.",
}
"""What no function is called for."""


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="a folder; its train.parquet is written anew")
    parser.add_argument("--num-examples", type=int, default=25_000, help="rows")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other rows")
    options = parser.parse_args()
    rows = Dataset.from_list(list(training_rows(options.num_examples, options.seed)), FEATURES)
    options.output.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(options.output / "train.parquet")
    print(f"{len(rows):,} conversations in {options.output}")


def training_rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Conversations of one or two turns."""
    for index in range(count):
        rng = example_rng("function calling", seed, index)
        offered = offer(rng, drawn(rng, *draw_name(rng)))
        messages: list[dict[str, Any]] = []
        for _ in range(rng.choice((1, 2, 2))):
            messages += turn(rng, offered)
        schemas = [function.schema() for function in offered]
        yield {"id": f"function_calling/{seed}/{index}", "messages": messages, "tools": schemas}


def draw_name(rng: random.Random, verb: str | None = None, noun: str | None = None) -> tuple[str, str]:
    """A verb and a noun that are a function of training, of which one may be given."""
    while True:
        name = verb or rng.choice(list(VERBS)), noun or rng.choice(NOUNS)
        if "_".join(name) not in UNSEEN:
            return name


def offer(rng: random.Random, function: SyntheticFunction) -> list[SyntheticFunction]:
    """The function among others in any order: one with its verb, and one with its noun."""
    names = [draw_name(rng, verb=function.verb), draw_name(rng, noun=function.noun)]
    known = {each.name: each for each in (*(drawn(rng, *name) for name in names), function)}
    return rng.sample(list(known.values()), len(known))


def turn(rng: random.Random, offered: Sequence[Any]) -> list[dict[str, Any]]:
    """A user's request, its calls and results, and what the assistant says: one call, two at once, or none."""
    kind = rng.random()
    if kind < 0.1:
        asked, answer = rng.choice([*TALK.items()])
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    functions = rng.sample(offered, 2 if kind < 0.2 and len(offered) > 1 else 1)
    calls = [(function, function.draw(rng)) for function in functions]
    requests = [function.request(rng, arguments, TRAINING) for function, arguments in calls]
    results = [function(**arguments) for function, arguments in calls]
    return [
        {"role": "user", "content": rng.choice(FRAMES).format(" and ".join(requests))},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": function.name, "arguments": arguments}}
                for function, arguments in calls
            ],
        },
        *({"role": "tool", "name": function.name, "content": result} for (function, _), result in zip(calls, results)),
        {"role": "assistant", "content": said(results)},
    ]


class Problem(NamedTuple):
    """A request of the test.

    Attributes:
        offered: the functions that a model may call.
        right: the one that it should call.
        request: what the user says, in the test's wordings.
        arguments: of the right call.
    """

    offered: list[Any]
    right: Any
    request: str
    arguments: dict[str, Any]


def test_problem(name: str, index: int) -> Problem:
    """A problem about a function of the test."""
    rng = example_rng("function calling", "test", name, index)
    function = tested(name)
    arguments = function.draw(rng)
    request = rng.choice(TEST_FRAMES).format(function.request(rng, arguments, TEST))
    return Problem(offer(rng, function), function, request, arguments)


if __name__ == "__main__":
    main()
