"""Measures a model on BFCL's categories of one turn: the model writes calls, and BFCL's own code scores them.

    python -m venv bfcl && bfcl/bin/pip install --no-deps bfcl-eval mpmath
    python recipes/harness/bfcl.py --model outputs/function-calling --bfcl_python bfcl/bin/python

Every entry is a chat with BFCL's functions offered by the checkpoint's own template. The calls of its first turn go
into `BFCL_v4_CATEGORY_result.json` in `--output`, in BFCL's form of a model that calls functions, and BFCL's checker,
in an environment of its own, reads them there. The same command goes on where it was interrupted.

Three figures beside each other, of all entries of a category: the first turn holds calls that can be read; their
functions are the right ones; and they are right as BFCL means it. Of irrelevant functions the last alone says
something: nothing is to be called. A model that was trained on rows of `function_calling/documented.py` knows half of
BFCL's functions; its figures are to say so.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm
from transformers import AutoTokenizer, HfArgumentParser

from bfcl_backend import Worker, json_schema
from hf_toolssm import Chat, Declared
from hf_toolssm.evaluation.report import hardware, markdown_table, weights_digest, write_json
from hf_toolssm.files import escape_unprintable, write_atomically
from hf_toolssm.models.architectures import load_model

CATEGORIES = (
    *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance"),
)

MAX_NEW_TOKENS = 300
"""Of a turn."""


@dataclass
class BfclArguments:
    model: str = field(metadata={"help": "a folder, or a repository of the Hub, with a chat template"})
    bfcl_python: str = field(metadata={"help": "the Python of the environment that has bfcl-eval"})
    output: str | None = field(default=None, metadata={"help": "folder of the results; by default MODEL/bfcl"})
    categories: list[str] = field(
        default_factory=lambda: [*CATEGORIES[:5]], metadata={"help": f"some of {', '.join(CATEGORIES)}"}
    )
    entries: int | None = field(default=None, metadata={"help": "only the first so many of each category"})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(BfclArguments).parse_args_into_dataclasses()
    unknown = sorted({*options.categories} - {*CATEGORIES})
    if unknown:
        raise SystemExit(f"--categories {unknown[0]} is none of {', '.join(CATEGORIES)}")
    if options.entries is not None and options.entries < 1:
        raise SystemExit(f"--entries is at least 1, and not {options.entries}")
    with closing(Worker(options.bfcl_python)) as worker:
        model = load_model(options.model).eval().to(PartialState().device)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        output = folder_of(options, model)
        found = [measure(name, worker, model, tokenizer, output, options.entries) for name in options.categories]
    facts = {"model": options.model, "entries": options.entries, "hardware": hardware()}
    write_json(output / "results.json", {"categories": found, **facts})
    write_atomically(output / "table.md", table(found))
    print(table(found))


def folder_of(options: BfclArguments, model: Any) -> Path:
    """The folder of the results, which holds those of one model.

    Raises:
        SystemExit: it holds results of another one.
    """
    is_folder = Path(options.model).is_dir()
    named = Path(options.model) / "bfcl" if is_folder else Path("outputs") / "bfcl" / options.model.replace("/", "--")
    output = Path(options.output or named)
    output.mkdir(parents=True, exist_ok=True)
    facts, path = {"weights_sha256": weights_digest(model), "max_new_tokens": MAX_NEW_TOKENS}, output / "model.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != facts:
        raise SystemExit(f"{output} holds the results of other weights: name another folder by --output")
    write_json(path, facts)
    return output


def measure(
    category: str, worker: Worker, model: Any, tokenizer: Any, output: Path, count: int | None
) -> dict[str, Any]:
    """A category's figures, and what goes wrong as BFCL names it."""
    path = output / f"BFCL_v4_{category}_result.json"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {entry["id"]: entry for entry in map(json.loads, lines)}
    entries = worker.ask("entries", category)[:count]
    for entry in tqdm(entries, desc=category, unit="entry"):
        if entry["id"] not in known:
            result = first_turn(entry, model, tokenizer)
            known[entry["id"]] = {"id": entry["id"], "result": result}
            write_atomically(path, "".join(json.dumps(each) + "\n" for each in known.values()))
    truths, said = worker.ask("truths", category), worker.ask("score", category, str(path.resolve()))
    results = [known[entry["id"]] for entry in entries]
    faults = Counter(said[each["id"]] for each in results)
    return {
        "category": category,
        "entries": len(results),
        "well_formed": sum(isinstance(each["result"], list) for each in results),
        "right_function": sum(names_right(each["result"], truths.get(each["id"], [])) for each in results),
        "right": faults.pop("", 0),
        "faults": dict(faults.most_common()),
    }


def first_turn(entry: Mapping[str, Any], model: Any, tokenizer: Any) -> str | list[dict[str, str]]:
    """The calls of the model's first turn as BFCL's files hold them, or what it says where it calls nothing."""
    tools = [Declared(json_schema(function)) for function in entry["functions"]]
    *before, last = entry["messages"]
    chat = Chat.start(model, tokenizer, tools=tools, messages=before, leaves_calls=True)
    reply = chat.send(last["content"], max_new_tokens=MAX_NEW_TOKENS)
    return result_of(reply.tool_calls) or reply.content


def result_of(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Calls as BFCL's files hold them."""
    return [{call["function"]["name"]: json.dumps(call["function"]["arguments"])} for call in calls]


def names_right(result: str | Sequence[Mapping[str, str]], truth: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the functions that are called are those to be called, in any order."""
    return not isinstance(result, str) and _names(result) == _names(truth)


def _names(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(name for call in calls for name in call)


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The figures as Markdown."""
    head = ["category", "entries", "calls that can be read", "right functions", "right", "what goes wrong"]
    rows = [
        [
            each["category"],
            *(f"{each[name]:,}" for name in ("entries", "well_formed", "right_function", "right")),
            "; ".join(f"{fault} ({count})" for fault, count in each["faults"].items()) or "nothing",
        ]
        for each in found
    ]
    return markdown_table(head, rows) + "\n"


if __name__ == "__main__":
    main()
