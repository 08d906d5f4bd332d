"""When to ask the store: a controller, the dual objective, and a calibrated threshold, beside the published rules.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/sft.py \\
        --config recipes/configs/short_recall_cpu.yaml
    python recipes/lazy_retrieval/measure_retrieval.py --models outputs/short_recall --output outputs/lazy_retrieval

trains each of the models on with every weight of the dual objective, asks all questions both ways, fits controllers,
calibrates thresholds, and lets the models answer lazily, free-running. Give models of several seeds for medians and
worst ones. What is finished is not done again; `results.json`, `results.md` and `calls.png` are made anew from it.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from transformers import AutoTokenizer, HfArgumentParser

from dual_objective import LOADS, QUESTIONS, Controller, fit, heads, labelled_rows, train_dual
from hf_toolssm import Session
from hf_toolssm.evaluation.exactness import in_evaluation_mode, most_tokens
from hf_toolssm.evaluation.report import hardware, training_facts, weights_digest, write_json
from hf_toolssm.evaluation.selective import calibrate
from hf_toolssm.files import escape_unprintable
from hf_toolssm.generation.lazy_retrieval import LazyRetrieval
from hf_toolssm.hub.model_card import read_json
from hf_toolssm.models.architectures import load_model
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.training.heads import Head, binary_loss, load_heads, save_heads
from questions import TASK, VARIANT, Asked, ask_both_ways, drawn_problems, ways
from retrieval_results import RATES, write_results
from rules import answerable, at_rate, by_load, hardest_load, promises, scores, sessions_of, worth

LARGER = (512, 1024)
"""Pairs of sessions beyond all that the controller has learned from."""

ANSWERABLE, MOST_CALLS = 0.7, 0.35
ALPHA, DELTA = 0.05, 0.1
JOINT, FITTED = "controller, trained with the model", "controller"


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


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(LazyRetrievalArguments).parse_args_into_dataclasses()
    output, runs = Path(options.output), []
    for path in options.models:
        about = training_facts(path)
        if (about.get("task"), about.get("variant")) != (TASK.name, VARIANT):
            sys.exit(f"{path} is no model of {TASK.name}, variant {VARIANT}: train one by short_recall_cpu.yaml")
    for path in options.models:
        seed, base = training_facts(path)["seed"], load_model(path)
        rows = _rows(base, path, output / f"rows-{weights_digest(base)[:8]}", options.rows_per_load, seed)
        for weight in options.weights:
            folder = output / f"seed-{seed}-lambda-{weight:g}"
            stated = {"base": weights_digest(base), **asdict(options)}
            stated |= {"models": path, "weights": weight, "seed": seed}
            if not (folder / "measured.json").exists() or read_json(folder / "measured.json")["options"] != stated:
                found = _measure(path, folder, rows, weight, seed, options)
                write_json(folder / "measured.json", {"options": stated, "hardware": hardware(), **found})
            runs.append({"seed": seed, "lambda": weight, **read_json(folder / "measured.json")})
    write_results(output, runs)


def _rows(model: Any, path: str, folder: Path, rows_per_load: int, seed: int) -> Dataset:
    """The labelled rows, made once a model."""
    if not folder.exists():
        labelled_rows(model, AutoTokenizer.from_pretrained(path), rows_per_load, seed).save_to_disk(folder)
    return load_from_disk(folder)


def _measure(
    path: str, folder: Path, rows: Dataset, weight: float, seed: int, options: LazyRetrievalArguments
) -> dict[str, Any]:
    """Trains one model on, and measures all that is said of it."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    joint = _trained(path, folder, rows, weight, seed, options.steps)
    model = load_model(folder)

    def ask(name: str, of_tests: bool, loads: Sequence[int], sessions: int, questions: int = QUESTIONS) -> Asked:
        file = folder / f"{name}.npz"
        if not file.exists():
            problems = [
                problem
                for load in loads
                for problem in drawn_problems(of_tests, load, sessions, questions, f"{name} {seed}")
            ]
            ask_both_ways(model, tokenizer, problems, f"{folder.name}, {name}").save(file)
        return Asked.load_from(file)

    train = ask("train", False, LOADS, options.sessions)
    test = ask("test", True, (*LOADS, *LARGER), options.sessions)
    fitted = fit(train.hidden, train.state_is_right, seed)
    save_heads([Head(FITTED, fitted, "knows", binary_loss)], folder / "fitted")
    controllers = {FITTED: fitted} | ({} if joint is None else {JOINT: joint})
    of_test = scores(test, train, controllers, seed)
    mixed = answerable(train, ANSWERABLE)  # which loads these are is not chosen by what is tested
    loads = sorted({int(load) for load in mixed.load})
    pool = ask("pool", True, loads, options.pool // len(loads))
    of_pool = scores(pool, train, controllers, seed)
    halves = sessions_of(pool, of_pool[FITTED])
    promise = calibrate(halves[::2], [at / 100 for at in range(1, 101)], ALPHA, DELTA)
    beyond = [each for each in sessions_of(test, of_test[FITTED]) if promise and not promise.covers(each.load)]
    found = {
        "state and store": by_load(test),
        "hardest load": hardest_load(test),
        "rules": {name: worth(test, score) for name, score in of_test.items()},
        "answerable": {
            "loads": loads,
            "state": float(pool.state_is_right.mean()),
            "store": float(pool.tool_is_right.mean()),
            "rules": {name: at_rate(pool, score, MOST_CALLS) for name, score in of_pool.items()},
            "curves": {
                name: [at_rate(pool, score, rate)["accuracy"] for rate in RATES] for name, score in of_pool.items()
            },
        },
        "promise": {"alpha": ALPHA, "delta": DELTA, **(asdict(promise) if promise else {})},
        "promises": promises(halves, ALPHA, DELTA, options.pairs, seed),
    }
    if promise is not None:
        wrong = [1 - each.lazily(promise.threshold)[0].mean() for each in beyond]
        found["beyond the promise"] = {"sessions": len(wrong), "wrong": float(sum(wrong) / max(1, len(wrong)))}
        problems = [
            each for load in loads for each in drawn_problems(True, load, 16, QUESTIONS, f"conversations {seed}")
        ]
        for name, threshold in (("always", 2.0), ("lazily", promise.threshold), ("never", 0.0)):
            found.setdefault("conversations", {})[name] = converse(model, tokenizer, problems, fitted, threshold)
    return found


def _trained(path: str, folder: Path, rows: Dataset, weight: float, seed: int, steps: int) -> Controller | None:
    """The controller that was trained with the model; None without one. Trains both unless that is done."""
    model, done = load_model(path), folder / "model.safetensors"
    both = heads(model.config.hidden_size, weight, seed)
    if not done.exists():
        train_dual(model, AutoTokenizer.from_pretrained(path), rows, both, folder, steps, seed)
    if not both:
        return None
    load_heads(both, folder)
    return both[0].module.eval()


def converse(
    model: Any, tokenizer: Any, problems: Sequence[str], controller: Controller, threshold: float
) -> dict[str, float]:
    """Ordinary sessions, in which every answer is read by what follows; of one load those go side by side."""
    renderer, begin = Renderer(tokenizer), ways(tokenizer)
    lazy = LazyRetrieval(controller, threshold, begin.answers, begin.asks)
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
                if at >= load:
                    calls += sum(each < threshold for each in lazy.decide(session).values())
                session.run(most_tokens(40))
                if at >= load:
                    expected = [each[at][2] for each in turns]
                    pairs = zip(session.rows, session.answers, expected)
                    right += sum(row.complete and answer == wanted for row, answer, wanted in pairs)
                    asked += len(expected)
            tokens += session.tokens
    seconds = time.perf_counter() - start
    return {
        "accuracy": right / asked,
        "calls": calls / asked,
        "questions": asked,
        "tokens": tokens,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
