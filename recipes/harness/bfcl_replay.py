"""Replays BFCL's multi-turn episodes through the chat loop, with a script in place of a model's choices.

    python -m venv bfcl && bfcl/bin/pip install --no-deps bfcl-eval mpmath
    python recipes/harness/bfcl_replay.py --bfcl_python bfcl/bin/python --tokenizer 20B_tokenizer.json

The package `bfcl-eval` pins versions that this one cannot share, so its tools run in an environment of their own, by
`bfcl_worker.py`. Every method of its environments is a tool, with BFCL's own document as the schema, and every episode
a chat of several turns: a tiny random Mamba is fed every token, and a sampler writes the calls of the ground truth
through the template. All functions are offered from the first turn on, also those that BFCL holds back for a while.

Two claims are checked against the observations and the end state that BFCL's own executor makes. (Where BFCL's
document forbids the arguments of BFCL's own call, the loop refuses it, and the executor leaves it out.)

- All observations and the end state are the expected ones, and every token of the conversation was fed once.
- With one call left out they are not. Some calls can be left out unseen, as neither the other observations nor the end
  state change; they are found by running the calls without any loop, and one of the others is drawn by the seed.

Results go to one file per category in `--output`, and the same command goes on where it was interrupted.
"""

import ast
import json
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import HfArgumentParser, PreTrainedTokenizerFast

from bfcl_backend import Worker, json_schema
from hf_toolssm import Chat, Function, ToolMambaConfig, ToolMambaForCausalLM, add_chat_tokens
from hf_toolssm.errors import InvalidArgumentsError, ToolSSMError
from hf_toolssm.evaluation.report import markdown_table
from hf_toolssm.files import escape_unprintable, write_atomically
from hf_toolssm.protocol.chat_template import ChatTemplate
from hf_toolssm.tools.schemas import read_arguments
from hf_toolssm.tools.tool import error_text

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")

ANSWER = "Done."
"""What the script says to the user when a turn's calls are over."""

OBSERVATIONS, END_STATE = "observations", "end state"


class ScriptError(ToolSSMError):
    """The loop went on behind the end of what the script holds for a turn, or did not come so far."""


@dataclass
class ReplayArguments:
    bfcl_python: str = field(metadata={"help": "the Python of the environment that has bfcl-eval"})
    tokenizer: str = field(metadata={"help": "a tokenizer.json, such as that of GPT-NeoX-20B, which Mamba has too"})
    output: str = field(default="outputs/bfcl", metadata={"help": "folder of the results"})
    categories: list[str] = field(default_factory=lambda: [*CATEGORIES], metadata={"help": "which are replayed"})
    episodes: int | None = field(default=None, metadata={"help": "only the first so many of each category"})
    seed: int = field(default=0, metadata={"help": "draws the call that is left out"})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(ReplayArguments).parse_args_into_dataclasses()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    with closing(Worker(options.bfcl_python)) as worker:
        model, tokenizer = tiny_model(options.tokenizer)
        found = {
            category: measure_category(category, worker, model, tokenizer, options) for category in options.categories
        }
    print(table(found))


def tiny_model(tokenizer_file: str) -> tuple[ToolMambaForCausalLM, PreTrainedTokenizerFast]:
    """A random Mamba of width 16, and the tokenizer with the tokens of our chat template."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
    add_chat_tokens(tokenizer)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    return ToolMambaForCausalLM(ToolMambaConfig(vocab_size=len(tokenizer), **shape)).eval(), tokenizer


class Call(NamedTuple):
    """A call of the ground truth.

    Attributes:
        arguments: JSON values.
        refusal: what the loop answers where BFCL's own document does not allow the arguments.
    """

    environment: str
    method: str
    arguments: dict[str, Any]
    refusal: str | None


@dataclass
class Episode:
    """What the user says in every turn, the calls that follow, and what comes of them.

    Attributes:
        schemas: by environment, those of its functions.
        expected: the observation of every call, over all turns.
    """

    name: str
    users: list[str]
    turns: list[list[Call]]
    schemas: dict[str, list[dict[str, Any]]]
    expected: list[str]

    @property
    def calls(self) -> list[Call]:
        return [call for calls in self.turns for call in calls]

    def without(self, left_out: int) -> "Episode":
        """The same with one call, counted over all turns, left out."""
        at = count()
        turns = [[call for call in calls if next(at) != left_out] for calls in self.turns]
        return replace(self, turns=turns, expected=self.expected[:left_out] + self.expected[left_out + 1 :])


def read_episode(worker: Worker, entry: dict[str, Any]) -> Episode:
    """An episode as `Backend.load` gives it; the worker then expects its end state."""
    schemas = {name: json_schema(worker.ask("documents", name)) for name in entry["classes"]}
    functions = {schema["name"]: (name, schema) for name, group in schemas.items() for schema in group}
    turns = [[parse_call(source, functions) for source in sources] for _, sources in entry["turns"]]
    calls = [call for calls in turns for call in calls]
    refused = [at for at, call in enumerate(calls) if call.refusal is not None]
    observations = iter(worker.ask("expect", entry["id"], refused))
    expected = [call.refusal or next(observations) for call in calls]
    return Episode(entry["id"], [user for user, _ in entry["turns"]], turns, schemas, expected)


def parse_call(source: str, functions: dict[str, tuple[str, dict[str, Any]]]) -> Call:
    """A call from its source, such as `cd('home')`, of which nothing is evaluated but literals.

    Args:
        source: Python.
        functions: by name, the environment and the schema, whose parameters stand in the method's order.
    """
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call), source
    assert isinstance(call.func, ast.Name), source
    name, refusal = call.func.id, None
    environment, schema = functions[name]
    given = dict(zip(schema["parameters"]["properties"], call.args))
    given |= {keyword.arg: keyword.value for keyword in call.keywords}
    literals = {parameter: ast.literal_eval(value) for parameter, value in given.items()}
    arguments = json.loads(json.dumps(literals))
    try:
        read_arguments(name, schema["parameters"], arguments)
    except InvalidArgumentsError as error:
        refusal = error_text(error)
    return Call(environment, name, arguments, refusal)


class Environment:
    """One of the episode's environments. Calls of its methods run in order, because it owns them all."""

    def __init__(self, worker: Worker, name: str, schemas: Sequence[dict[str, Any]]) -> None:
        self._worker = worker
        self._name = name
        self.tools = [Function(self._method(schema["name"]), schema) for schema in schemas]

    def _method(self, method: str) -> Callable[..., str]:
        def call(self: "Environment", **arguments: Any) -> str:
            return self._worker.ask("call", self._name, method, arguments)

        return MethodType(call, self)


class ScriptedChooser:
    """A sampler that writes a script, and never what a model would choose."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self.script: deque[int] = deque()

    def choose(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        if self._chat.session.rows[0].pending:
            return [0]  # something is still to be fed, and nothing is chosen
        if not self.script:
            raise ScriptError("the loop goes on behind the end of the turn's script")
        return [self.script.popleft()]

    def sampled_from(self) -> None:
        return None

    def stop(self, rows: Sequence[int]) -> list[bool]:
        return [False for _ in rows]


def replay(worker: Worker, episode: Episode, model: Any, tokenizer: Any) -> tuple[list[str], int]:
    """Sends the episode's turns through a chat whose assistant writes the episode's calls.

    Returns:
        What is not as expected, and the conversation's tokens.
    """
    worker.ask("begin")
    tools = [tool for name, schemas in episode.schemas.items() for tool in Environment(worker, name, schemas).tools]
    chat = Chat.start(model, tokenizer, tools=tools)
    chooser, writing = ScriptedChooser(chat), ChatTemplate(tokenizer)
    fed: list[int] = []
    with model.register_forward_pre_hook(
        lambda _, __, given: fed.extend(given["input_ids"][0].tolist()), with_kwargs=True
    ):
        for user, calls in zip(episode.users, episode.turns):
            for message in assistant_turns(calls):
                chooser.script.extend(writing.turn(message))
            reply = chat.send(user, max_new_tokens=sys.maxsize, sampler=chooser)
            if reply.error is not None or chooser.script:
                raise ScriptError(f"{episode.name}: the loop ended a turn before its script: {reply.error}")
    ids, _ = chat.session.protocol.template.written(chat.messages)
    observations = [message["content"] for message in chat.messages if message["role"] == "tool"]
    checks = {
        OBSERVATIONS: observations == episode.expected,
        END_STATE: worker.ask("as_expected"),
        "tokens": fed == ids and chat.session.rows[0].length == len(ids),
    }
    return [what for what, is_right in checks.items() if not is_right], len(fed)


def assistant_turns(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """What the assistant says to a user: all calls at once, and when they are over the answer."""
    functions = [{"name": call.method, "arguments": call.arguments} for call in calls]
    calling = [{"type": "function", "function": function} for function in functions]
    answer = {"role": "assistant", "content": ANSWER}
    return [{"role": "assistant", "content": "", "tool_calls": calling}, answer] if calls else [answer]


def is_unseen(worker: Worker, episode: Episode, left_out: int) -> bool:
    """Whether without this call the other observations and the end state are the same, by running them alone."""
    worker.ask("begin")
    shorter = episode.without(left_out)
    observations = [call.refusal or worker.ask("call", *call[:3]) for call in shorter.calls]
    return observations == shorter.expected and worker.ask("as_expected")


def measure(worker: Worker, entry: dict[str, Any], model: Any, tokenizer: Any, seed: int) -> dict[str, Any]:
    """What one episode shows, as its line of the results."""
    start = time.perf_counter()
    episode = read_episode(worker, entry)
    seen = [at for at in range(len(episode.calls)) if not is_unseen(worker, episode, at)]
    wrong, tokens = replay(worker, episode, model, tokenizer)
    result = {
        "id": episode.name,
        "seed": seed,
        "calls": len(episode.calls),
        "refused": sum(call.refusal is not None for call in episode.calls),
        "unseen": len(episode.calls) - len(seen),
        "wrong": wrong,
        "tokens": tokens,
    }
    if seen:
        left_out = random.Random(f"{seed}/{episode.name}").choice(seen)
        wrong, tokens = replay(worker, episode.without(left_out), model, tokenizer)
        result |= {"left_out": left_out, "wrong_without": wrong, "tokens_without": tokens}
    return result | {"seconds": round(time.perf_counter() - start, 2)}


def measure_category(
    category: str, worker: Worker, model: Any, tokenizer: Any, options: ReplayArguments
) -> list[dict[str, Any]]:
    """The results of a category's episodes; those that stand in its file already are taken from there."""
    path = Path(options.output) / f"{category}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {result["id"]: result for result in map(json.loads, lines) if result["seed"] == options.seed}
    results: list[dict[str, Any]] = []
    for entry in tqdm(worker.ask("load", category)[: options.episodes], desc=category, unit="episode"):
        if entry["id"] not in known:
            known[entry["id"]] = measure(worker, entry, model, tokenizer, options.seed)
            write_atomically(path, "".join(json.dumps(result) + "\n" for result in known.values()))
        results.append(known[entry["id"]])
    return results


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """What was found, a line for each category and one for all."""
    head = (
        "category",
        "episodes",
        "calls",
        "refused by the schema",
        "replayed as expected",
        "calls unseen if left out",
    )
    head = (*head, "episodes with no other", "one of the others left out", "noticed", "tokens", "minutes")
    every = [result for results in found.values() for result in results]
    return markdown_table(head, [table_line(name, results) for name, results in [*found.items(), ("all", every)]])


def table_line(category: str, results: Sequence[dict[str, Any]]) -> list[str]:
    shorter = [result["wrong_without"] for result in results if "left_out" in result]
    figures = [
        len(results),
        sum(result["calls"] for result in results),
        sum(result["refused"] for result in results),
        sum(not result["wrong"] for result in results),
        sum(result["unseen"] for result in results),
        len(results) - len(shorter),
        len(shorter),
        sum(bool(wrong) and {*wrong} <= {OBSERVATIONS, END_STATE} for wrong in shorter),
        sum(result["tokens"] + result.get("tokens_without", 0) for result in results),
    ]
    minutes = sum(result["seconds"] for result in results) / 60
    return [category, *(f"{figure:,}" for figure in figures), f"{minutes:.1f}"]


if __name__ == "__main__":
    main()
