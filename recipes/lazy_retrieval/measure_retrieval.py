"""When to ask the store: a controller, the dual objective, and a calibrated threshold, beside the published rules.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/sft.py \\
        --config recipes/configs/short_recall_cpu.yaml
    python recipes/lazy_retrieval/measure_retrieval.py --models outputs/short_recall --output outputs/lazy_retrieval

trains each of the models on, first on longer sessions and then with every weight of the dual objective, asks all
questions both ways, fits controllers, calibrates thresholds, and lets the models answer lazily, free-running. Give
models of several seeds for medians and worst ones. What is finished is not done again; `results.json`, `results.md`
and `calls.png` are made anew from it.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer, HfArgumentParser

from dual_objective import (
    LOADS,
    QUESTIONS,
    Controller,
    fit,
    fit_controller,
    heads,
    key_loss,
    key_reader,
    keys_read,
    labelled_rows,
    train_dual,
)
from hf_toolssm import Session
from hf_toolssm.evaluation.exactness import in_evaluation_mode, most_tokens
from hf_toolssm.evaluation.report import hardware, training_facts, weights_digest, write_json
from hf_toolssm.evaluation.selective import calibrate
from hf_toolssm.files import atomic_write, escape_unprintable
from hf_toolssm.generation.lazy_retrieval import LazyRetrieval
from hf_toolssm.hub.model_card import read_json
from hf_toolssm.models.architectures import load_model
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.training.heads import Head, binary_loss, load_heads, save_heads
from questions import TASK, VARIANT, Asked, ask_both_ways, drawn_problems, ways
from retrieval_results import RATES, write_results
from rules import (
    THRESHOLDS,
    answerable_loads,
    at_rate,
    by_load,
    hardest_load,
    learn,
    probabilities,
    promises,
    scores,
    sessions_of,
    worth,
)

LARGER = (512, 1024)
"""Pairs of sessions beyond all that the controller has learned from."""

ANSWERABLE, MOST_CALLS = 0.7, 0.35
JOINT, FITTED = "controller, trained with the model", "controller"
_LM = ["input_ids", "labels"]


@dataclass
class LazyRetrievalArguments:
    models: list[str] = field(metadata={"help": "Models of short_recall, variant either, one a seed."})
    output: str = field(metadata={"help": "Folder for all that is trained and measured."})
    weights: list[float] = field(
        default_factory=lambda: [0.0, 0.1, 0.3, 1.0, 3.0], metadata={"help": "Of the dual objective's heads."}
    )
    steps: int = field(default=300, metadata={"help": "Of every training."})
    rows_per_load: int = field(default=200, metadata={"help": "Sessions of each load to train on."})
    sessions: int = field(default=24, metadata={"help": "Of each load, to fit controllers on and to test them."})
    pool: int = field(default=400, metadata={"help": "Sessions that calibrate thresholds and test them."})
    pairs: int = field(default=200, metadata={"help": "Of calibration and test sessions."})
    alpha: float = field(default=0.05, metadata={"help": "Share of wrong answers that a promise allows."})
    delta: float = field(default=0.1, metadata={"help": "Probability with which a promise may be broken."})


def main() -> None:
    escape_unprintable()
    parser = HfArgumentParser(LazyRetrievalArguments)
    (options,) = parser.parse_args_into_dataclasses()
    if min(options.weights) < 0 or min(options.sessions, options.steps, options.rows_per_load, options.pairs) < 1:
        parser.error("weights are at least 0, and sessions, steps, rows_per_load and pairs at least 1")
    if options.pool < 2 * len(LOADS):
        parser.error(f"a pool of {options.pool} sessions has not two of each of {len(LOADS)} loads")
    about = {path: training_facts(path) for path in options.models}
    for path, facts in about.items():
        if (facts.get("task"), facts.get("variant")) != (TASK.name, VARIANT):
            sys.exit(f"{path} is no model of {TASK.name}, variant {VARIANT}: train one by short_recall_cpu.yaml")
    if len({facts["seed"] for facts in about.values()}) < len(about):
        sys.exit("two of the models have one seed, and would count as one: train them with different ones")
    runs = [run for path, facts in about.items() for run in _runs(path, facts["seed"], options)]
    write_results(Path(options.output), runs, options.alpha, options.delta)


def _runs(path: str, seed: int, options: LazyRetrievalArguments) -> Iterator[dict[str, Any]]:
    """One for each weight, of a model. All that they share is in a folder of this very model and these options."""
    stated = {"base": weights_digest(load_model(path)), "seed": seed, **asdict(options)}
    for name in ("models", "output", "weights"):
        del stated[name]
    folder = Path(options.output, f"seed-{seed}-{sha256(json.dumps(stated).encode()).hexdigest()[:8]}")
    tokenizer = AutoTokenizer.from_pretrained(path)
    adapted, rows = folder / "adapted", folder / "rows.parquet"
    _train(path, adapted, lambda: _labelled(path, tokenizer, options, seed).select_columns(_LM), [], seed, options)
    if not rows.exists():
        with atomic_write(rows) as temporary:
            _labelled(adapted, tokenizer, options, seed + 1_000).to_parquet(temporary)
    found = _ask(adapted, tokenizer, "train", False, LOADS, seed, options.sessions)
    loads, hardest = answerable_loads(found, ANSWERABLE), hardest_load(found)  # the same for all weights
    for weight in options.weights:
        measured = folder / f"lambda-{weight:g}" / "measured.json"
        if not measured.exists():
            both = heads(load_model(adapted).config.hidden_size, weight, seed)
            _train(adapted, measured.parent, lambda: Dataset.from_parquet(str(rows)), both, seed, options)
            if both:
                load_heads(both, measured.parent)
            facts = _measure(measured.parent, tokenizer, both, loads, hardest, seed, options)
            write_json(measured, {"options": stated, "hardware": hardware(), **facts})
        yield {"seed": seed, "lambda": weight, **read_json(measured)}


def _labelled(model: str | Path, tokenizer: Any, options: LazyRetrievalArguments, seed: int) -> Dataset:
    return labelled_rows(load_model(model), tokenizer, options.rows_per_load, seed)


def _train(
    start: str | Path,
    folder: Path,
    rows: Callable[[], Dataset],
    both: list[Head],
    seed: int,
    options: LazyRetrievalArguments,
) -> None:
    """Trains a model on, with its heads, unless that is done; `trained.json` is written last."""
    if (folder / "trained.json").exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(start)
    train_dual(load_model(start), tokenizer, rows(), both, folder, options.steps, seed)
    write_json(folder / "trained.json", {"steps": options.steps, "heads": [head.name for head in both]})


def _ask(
    folder: Path,
    tokenizer: Any,
    name: str,
    of_tests: bool,
    loads: Sequence[int],
    seed: int,
    sessions: int,
) -> Asked:
    """Questions of so many sessions of each load, asked both ways once."""
    file = folder / f"{name}.npz"
    if not file.exists():
        drawn = (drawn_problems(of_tests, load, sessions, QUESTIONS, f"{name} {seed}") for load in loads)
        problems = [problem for of_load in drawn for problem in of_load]
        ask_both_ways(load_model(folder), tokenizer, problems, f"{folder.name}, {name}").save(file)
    return Asked.load_from(file)


def _measure(
    folder: Path,
    tokenizer: Any,
    both: list[Head],
    loads: list[int],
    hardest: int,
    seed: int,
    options: LazyRetrievalArguments,
) -> dict[str, Any]:
    """All that is said of one model.

    Args:
        loads: those of which the state could answer about 70%.
        hardest: the load at which it is right nearest to half of the time.
    """
    train = _ask(folder, tokenizer, "train", False, LOADS, seed, options.sessions)
    test = _ask(folder, tokenizer, "test", True, (*LOADS, *LARGER), seed, options.sessions)
    pool = _ask(folder, tokenizer, "pool", True, loads, seed, options.pool // len(loads))
    fitted = fit_controller(train.hidden, train.state_is_right, seed)
    save_heads([Head(FITTED, fitted, "knows", binary_loss)], folder / "fitted")
    reader = fit(key_reader, key_loss, train.hidden, train.key, seed)
    controllers = {FITTED: fitted} | ({JOINT: both[0].module.eval()} if both else {})
    learned = learn(train, seed)
    of_test, of_pool = (scores(asked, learned, controllers, seed) for asked in (test, pool))
    sessions = sessions_of(pool, of_pool[FITTED])
    random.Random(seed).shuffle(sessions)  # they come load by load
    promise = calibrate(sessions[: len(sessions) // 2], THRESHOLDS, options.alpha, options.delta)
    often = float(np.quantile(probabilities(fitted, train.hidden)[np.isin(train.load, loads)], MOST_CALLS))
    beyond = [each for each in sessions_of(test, of_test[FITTED]) if each.load not in loads]
    problems = [each for load in loads for each in drawn_problems(True, load, 16, QUESTIONS, f"conversations {seed}")]
    ways_to_go: dict[str, float | bool] = {"always": True, "never": False, "at a third of the calls": often}
    if promise is not None:
        ways_to_go["as promised"] = promise.threshold
    model = load_model(folder)
    return {
        "state and store": by_load(test),
        "hardest load": hardest,
        "rules": {name: worth(test, score, hardest) for name, score in of_test.items()},
        "keys read": keys_read(reader, test.hidden, test.key),
        "answerable": {
            "loads": loads,
            "state": float(pool.state_is_right.mean()),
            "store": float(pool.tool_is_right.mean()),
            "rules": {name: at_rate(pool, score, MOST_CALLS) for name, score in of_pool.items()},
            "curves": {
                name: [at_rate(pool, score, rate)["accuracy"] for rate in RATES] for name, score in of_pool.items()
            },
        },
        "promise": None if promise is None else asdict(promise),
        "promises": promises(sessions, options.alpha, options.delta, options.pairs, seed),
        "wrong beyond": None if promise is None else float(np.mean([each.loss(promise.threshold) for each in beyond])),
        "conversations": {name: converse(model, tokenizer, problems, fitted, way) for name, way in ways_to_go.items()},
    }


def converse(
    model: Any, tokenizer: Any, problems: Sequence[str], controller: Controller, way: float | bool
) -> dict[str, float]:
    """Ordinary sessions, in which every answer is read by what follows; of one load those go side by side.

    Args:
        way: whether the store is always asked or never, or the threshold of the controller's probability.
    """
    renderer, begin = Renderer(tokenizer), ways(tokenizer)
    right, calls, asked, tokens, start = 0, 0, 0, 0, time.perf_counter()
    with in_evaluation_mode(model):
        for load in sorted({TASK.length(problem) for problem in problems}):
            turns = [list(TASK.session(problem)) for problem in problems if TASK.length(problem) == load]
            said = [[renderer.problem(text) for _, text, _ in each] for each in turns]
            tools = TASK.make_tools(VARIANT)
            session = Session.start(model, [each[0] for each in said], tools=tools, tokenizer=tokenizer)
            session.run(most_tokens(40))
            for at in range(1, len(said[0])):
                session.append([each[at] for each in said])
                if at < load:
                    session.run(most_tokens(40))
                    continue
                if isinstance(way, bool):
                    session.held_choices.update(dict.fromkeys(range(len(said)), begin.asks if way else begin.answers))
                else:
                    LazyRetrieval(controller, way, begin.answers, begin.asks).decide(session)
                calls += list(session.held_choices.values()).count(begin.asks)
                session.run(most_tokens(40))
                pairs = zip(session.rows, session.answers, [each[at][2] for each in turns])
                right += sum(row.complete and answer == wanted for row, answer, wanted in pairs)
                asked += len(said)
            tokens += session.tokens
    shares = {"accuracy": right / asked, "calls": calls / asked, "questions": asked}
    return {**shares, "tokens": tokens, "seconds": round(time.perf_counter() - start, 1)}


if __name__ == "__main__":
    main()
