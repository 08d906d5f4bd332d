"""What the package wrote before it was redesigned, so that the same can be asked of it now.

`PYTHONPATH=tests python tests/golden/recording.py` writes `golden.json` beside this file. Tokens are exact; logits and
states stand as a few numbers each, because another processor rounds them differently.
"""

import hashlib
import json
import tempfile
from itertools import zip_longest
from pathlib import Path

import torch
from conftest import CELL_TASKS, random_model
from small_models import ARCHITECTURES, lively, small_model, start_lively

from dataset_builders.catalog import available_machines, load_task
from dataset_builders.problem_sets import TEST, ProblemSet, generate_rows
from hf_toolssm import Session
from hf_toolssm.cache.cache_tensors import cache_tensors
from hf_toolssm.errors import TooFewProblemsError
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import Trajectory, Writer
from hf_toolssm.tools import make_tool

GOLDEN = Path(__file__).with_name("golden.json")
PROBLEMS = ["7+5=", "98765+4321=", "1+1="]
LENGTHS = {"hanoi_iterative": 3, "hanoi_recursive": 3}


def digest(values):
    """A short hash of something that JSON can write."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def numbers(tensor):
    """A few numbers that change when the tensor does."""
    flat = tensor.detach().double().flatten()
    weights = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    return [float(flat.mean()), float(flat @ weights), float(flat.abs().max())]


def tool_states(row):
    """What the tools of a row remember, as JSON."""
    return [
        {name: value.tolist() if hasattr(value, "tolist") else value for name, value in facts.state(tool).items()}
        for facts, tool in zip(row.protocol.tools, row.tools)
    ]


def results(session):
    """All that a user sees of the rows, and what the model remembers of them."""
    state = session.state
    return {
        "rows": [[row.answer, row.tool_calls, row.complete, (row.error or "").split(":")[0]] for row in session.rows],
        "tools": digest([tool_states(row) for row in session.rows]),
        "tokens": session.tokens,
        "logits": numbers(state.logits),
        "state": [numbers(tensor) for _, tensor in sorted(cache_tensors(state.cache).items())],
    }


class Sink:
    """Keeps every token and who wrote it."""

    def __init__(self, rows):
        self.heard = [[] for _ in range(rows)]

    def take(self, events):
        for event in events:
            by_tool = [int(writer == Writer.TOOL) for writer in event.writers]
            self.heard[event.row].extend(map(list, zip(event.tokens, by_tool)))


def forced(session, texts, turns):
    """Feeds every row the model's tokens of a reference; a tool's are the session's own, and a user says `turns`."""
    left = [iter(text) for text in texts]

    class Sampler:
        def choose(self, rows, logits):
            return [0 if session.rows[row].pending else next(left[row]) for row in rows]

        def stop(self, rows):
            return [False] * len(rows)

    sink = Sink(len(texts))
    session.run(sampler=Sampler(), sink=sink)
    for now in zip_longest(*turns, fillvalue=()):
        session.append(now)
        session.run(sampler=Sampler(), sink=sink)
    return sink.heard


def test_rows(task, variant):
    """Two rows of about five symbols; some lengths of some tasks have no test problem."""
    for length in range(LENGTHS.get(task, 5), 40):
        try:
            return list(
                generate_rows(ProblemSet(load_task(task), TEST, length, (("test", 2),), variant), "test", 0, 2)
            )
        except TooFewProblemsError:
            continue
    raise AssertionError(f"{task} has no test problems")


def task_record(task_name, variant):
    """Rows of a task, and a session of a random model that writes them."""
    task = load_task(task_name)
    rows = test_rows(task_name, variant)
    specs = task.tools(variant)
    tokenizer = build_task_tokenizer(task.cells(variant), [make_tool(spec) for spec in specs])
    renderer = Renderer(tokenizer)
    rendered = [renderer.row(row) for row in rows]
    asked = [[renderer.problem(turn[0].cells()) for turn in Trajectory.from_row(row).turns()] for row in rows]
    prompts = [first for first, *_ in asked]
    model = random_model(tokenizer, specs)
    texts = [[token for token, label in zip(row["input_ids"], row["labels"]) if label >= 0] for row in rendered]
    session = Session.start(model, prompts, tokenizer=tokenizer)
    heard = forced(session, texts, [turns for _, *turns in asked])
    whole = [[*prompt, *(token for token, _ in row)] for prompt, row in zip(prompts, heard)]
    assert whole == [row["input_ids"] for row in rendered], (task_name, variant)
    return {
        "vocabulary": len(tokenizer),
        "tokens": [len(row["input_ids"]) for row in rendered],
        "ids": digest([row["input_ids"] for row in rendered]),
        "labels": digest([row["labels"] for row in rendered]),
        "answers": [row["answer"][:60] for row in rows],
        "forced": results(session),
    }


def architecture_record(name):
    """A random model that wanders on, greedy and sampled, in one go and saved in the middle."""
    task = load_task("addition")
    specs = task.tools("local")
    tokenizer = build_task_tokenizer(task.cells("local"), [make_tool(spec) for spec in specs])
    model = lively(small_model(name, tokenizer, specs), tokenizer)
    options = {"tools": specs, "end_ids": [tokenizer.eos_token_id]}
    record = {}
    for temperature in (0.0, 0.7):
        session = start_lively(model, tokenizer, PROBLEMS, temperature=temperature, seed=4, **options)
        sink = Sink(3)
        session.run(25, sink=sink)
        with tempfile.TemporaryDirectory() as folder:
            session.save(f"{folder}/session")
            session = Session.load(f"{folder}/session", model, tokenizer=tokenizer, **options)
        session.run(35, sink=sink)
        record[str(temperature)] = {"heard": sink.heard, **results(session)}
    if name == "tool_mamba":
        torch.manual_seed(3)
        inputs = tokenizer(PROBLEMS, padding=True, return_tensors="pt")
        output = model.generate(
            **inputs, do_sample=True, max_new_tokens=30, return_dict_in_generate=True, tokenizer=tokenizer
        )
        record["generate"] = output.sequences.tolist()
    return record


def variants():
    names = [*CELL_TASKS, *available_machines()]
    return [(name, variant) for name in names for variant in load_task(name).variants]


def record():
    return {
        "tasks": {f"{name}/{variant}": task_record(name, variant) for name, variant in variants()},
        "architectures": {name: architecture_record(name) for name in ARCHITECTURES},
    }


def _lines(records):
    return ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in records.items())


if __name__ == "__main__":
    kinds = (f'"{kind}": {{\n{_lines(records)}\n}}' for kind, records in record().items())
    GOLDEN.write_text("{\n" + ",\n".join(kinds) + "\n}\n", encoding="utf-8")
