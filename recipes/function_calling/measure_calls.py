"""Measures a model that calls synthetic functions: free-running through `Chat`, with the functions executed.

    python recipes/function_calling/measure_calls.py --model outputs/function-calling --num-problems 200

Every problem is one request in wordings that no training row has, with two to four functions offered. It is counted
whether the model's first turn is a call that can be read, whether it is of the right function and of it alone, whether
its arguments are equal, and whether the last turn says what the function gave; and of what goes wrong, what it was.
The figures go into the model's `results.json` and onto its card.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import documented
from conversations import Problem, test_problem
from functions import SEEN, STRANGE, UNSEEN, said
from hf_toolssm import Chat
from hf_toolssm.evaluation.report import hardware, markdown_table, write_json
from hf_toolssm.files import escape_unprintable, write_atomically
from hf_toolssm.hub.model_card import read_json, write_model_card
from hf_toolssm.models.architectures import load_model
from hf_toolssm.tools.function import Function

GROUPS = {"seen in training": SEEN, "never seen, of seen words": UNSEEN, "never seen, with a strange noun": STRANGE}
FIGURES = ("well_formed", "right_function", "right_arguments", "right_answer")
CARD = Path(__file__).parents[2] / "model_cards" / "chat.md"
MAX_NEW_TOKENS = 300
EXAMPLES = 5
"""Of what goes wrong, in `results.json`."""


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the output_dir of recipes/sft.py")
    parser.add_argument("--num-problems", type=int, default=200, help="of each group of functions")
    parser.add_argument("--documents", type=Path, help="of documented functions: the folder that documented.py wrote")
    parser.add_argument("--output", type=Path, help="a folder for table.md and results.json; by default the model's")
    options = parser.parse_args()
    model, tokenizer = load_model(str(options.model)), AutoTokenizer.from_pretrained(options.model)
    model.to(PartialState().device)
    groups = [
        measure(group, problems, model, tokenizer)
        for group, problems in problems_of(options.documents, options.num_problems).items()
    ]
    command = f"by recipes/function_calling/measure_calls.py --num-problems {options.num_problems}"
    evaluation = {
        "command": command + (f" --documents {options.documents}" if options.documents else ""),
        "groups": groups,
        "hardware": hardware(),
    }
    key = "evaluation_documented" if options.documents else "evaluation"
    results = read_json(options.model / "results.json") | {key: evaluation}
    write_json(options.model / "results.json", results)
    write_model_card(options.model, CARD)
    output = options.output or options.model
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "results.json", results)
    write_atomically(output / "table.md", table(groups))
    print(table(groups))


def problems_of(folder: Path | None, count: int) -> dict[str, list[Problem]]:
    """So many problems of each group: of synthetic functions, or of those of a folder that documented.py wrote."""
    if folder is None:
        return {
            group: [test_problem(name, index) for index, name in enumerate((list(names) * count)[:count])]
            for group, names in GROUPS.items()
        }
    parts = json.loads((folder / "documents.json").read_text(encoding="utf-8"))
    return {f"documented, {part}": documented.test_problems(parts[part], count) for part in parts}


def measure(
    group: str, problems: Sequence[Problem], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """A group's figures, and what goes wrong in it."""
    figures: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    for problem in tqdm(problems, desc=group, file=sys.stderr):
        tools = [Function(function, function.schema(), has_side_effects=False) for function in problem.offered]
        reply = Chat.start(model, tokenizer, tools=tools).send(problem.request, max_new_tokens=MAX_NEW_TOKENS)
        reached, fault = judge(reply.messages, reply.content, problem)
        figures.update(FIGURES[:reached])
        if fault is not None:
            faults[fault] += 1
            if len(examples) < EXAMPLES:
                examples.append({"request": problem.request, "fault": fault, "messages": reply.messages})
    shares = {name: round(figures[name] / len(problems), 4) for name in FIGURES}
    return {
        "group": group,
        "num_problems": len(problems),
        **shares,
        "faults": dict(faults.most_common()),
        "examples": examples,
    }


def judge(messages: Sequence[Mapping[str, Any]], content: str, problem: Problem) -> tuple[int, str | None]:
    """How many of `FIGURES` a reply reaches, one after the other, and what is wrong where it is not all of them."""
    right, arguments = problem.right, problem.arguments
    first = messages[0] if messages else {}
    calls = [call["function"] for call in first.get("tool_calls", ())]
    if not calls:
        return 0, "the call cannot be read" if len(messages) > 1 else "no call"
    if len(calls) > 1:
        return 1, "more than one call"
    name, given = calls[0]["name"], calls[0]["arguments"]
    if name != right.name:
        known = name in [function.name for function in problem.offered]
        return 1, "another function that was offered" if known else "a function that was not offered"
    if given.keys() != arguments.keys():
        return 2, "other parameters than were asked for"
    wrong = sorted(kind for kind in arguments if json.dumps(given[kind]) != json.dumps(arguments[kind]))
    if wrong:
        return 2, f"another value: {', '.join(wrong)}"
    if content != said([right(**arguments)]):
        return 3, "the answer does not say what the function gave"
    return 4, None


def table(groups: Sequence[Mapping[str, Any]]) -> str:
    """The figures, and what goes wrong, as Markdown."""
    head = ["functions", "conversations", *(name.replace("_", " ") for name in FIGURES), "what goes wrong"]
    rows = [
        [
            group["group"],
            str(group["num_problems"]),
            *(f"{group[name]:.3f}" for name in FIGURES),
            "; ".join(f"{fault} ({count})" for fault, count in group["faults"].items()) or "nothing",
        ]
        for group in groups
    ]
    return markdown_table(head, rows) + "\n"


if __name__ == "__main__":
    main()
