"""Runs one very long problem free-running, with the tool executed, and compares the answer with the task's own.

    python recipes/long_problem.py --model outputs/addition --length 1000000 --output outputs/long-addition

saves the session every minute into `--output` and, at the end, writes `certificate.json` there, which
`recipes/certificate.py` checks. Interrupted, even by `kill -9`, the same command goes on from the last save.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from certificate import commit, digest, state_problem
from tqdm import tqdm
from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.mixture import measured_task
from dataset_builders.task import Task
from hf_toolssm import Session
from hf_toolssm.evaluation.exactness import first_difference
from hf_toolssm.evaluation.report import hardware, peak_memory_mib, training_facts, weights_digest, write_json
from hf_toolssm.files import escape_unprintable
from hf_toolssm.models.architectures import load_model
from hf_toolssm.protocol.render import Renderer

SLICE = 1.0
"""Seconds, about, between two looks at the clock."""


@dataclass
class LongProblemArguments:
    model: str = field(metadata={"help": "A folder or a Hub id with model and tokenizer."})
    output: str = field(metadata={"help": "Folder for the session and the certificate."})
    length: int | None = field(default=None, metadata={"help": "Length of a random problem, in the task's unit."})
    problem: str | None = field(default=None, metadata={"help": "This very problem, in place of a random one."})
    task: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    variant: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    seed: int = field(default=0, metadata={"help": "Another seed gives another problem."})
    max_new_tokens: int = field(default=10**9, metadata={"help": "Where a model that is lost is cut off."})
    save_seconds: float = field(default=60.0, metadata={"help": "Seconds of generation between two saves."})


def main() -> None:
    escape_unprintable()
    parser = HfArgumentParser(LongProblemArguments)
    (options,) = parser.parse_args_into_dataclasses()
    if (options.length is None) == (options.problem is None):
        parser.error("give the --length of a random problem, or the --problem itself")
    task, options.variant = measured_task(training_facts(options.model), options.model, options.task, options.variant)
    problem = state_problem(task, asdict(options))
    options.length = task.length(problem)
    expected = task.answer(problem, options.variant)  # before the run: a problem without an answer is said at once
    model = load_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    session, history = open_session(stated(options, task), output, model, tokenizer, problem)

    saved, stride = time.perf_counter(), 100
    name = f"{task.name} {options.length:,}"
    with tqdm(initial=session.tokens, desc=name, unit="token", unit_scale=True) as bar:
        while not session.finished and session.tokens < options.max_new_tokens:
            start = time.perf_counter()
            bar.update(session.run(min(stride, options.max_new_tokens - session.tokens)))
            taken = time.perf_counter() - start
            stride, history.seconds = stride * 2 if taken < SLICE / 2 else stride, history.seconds + taken
            if time.perf_counter() - saved >= options.save_seconds:
                save(session, history, stated(options, task), output)
                saved, stride = time.perf_counter(), 100
    row = session.rows[0]
    found = session.answers[0]
    wrong = first_difference(expected, found)
    task.save(output)
    certificate = {
        **stated(options, task),
        "problem_sha256": digest(problem),
        "exact": row.complete and wrong is None,
        "first_wrong_symbol": wrong,
        "complete": row.complete,
        "error": row.error,
        "answer_length": len(found),
        "answer_sha256": digest(found),
        "tokens": session.tokens,
        "tool_calls": row.tool_calls,
        "minutes": round(history.seconds / 60, 2),
        "tokens_per_second": round(session.tokens / max(history.seconds, 1e-9)),
        "peak_memory_mib": max(history.peak_memory_mib, peak_memory_mib()),
        "resumed": history.resumed,
        "num_parameters": model.num_parameters(),
        "weights_sha256": weights_digest(model),
        "commits": history.commits,
        "hardware": hardware(),
    }
    write_json(output / "certificate.json", certificate)
    print(json.dumps({key: value for key, value in certificate.items() if key != "hardware"}, indent=2))


def stated(options: LongProblemArguments, task: Task) -> dict[str, Any]:
    """What says which problem it is; a table of the user's own lies beside the certificate by its name."""
    named = {name: getattr(options, name) for name in ("variant", "length", "seed", "problem")}
    return {"task": task.saved_name, **named, "task_version": task.version}


@dataclass
class History:
    """What all processes that took part have measured.

    Attributes:
        seconds: of generation.
        peak_memory_mib: the largest of those that were interrupted.
        commits: of the package's source, as `git describe` names them.
        resumed: how often it went on.
    """

    seconds: float = 0.0
    peak_memory_mib: int = 0
    commits: list[str | None] = field(default_factory=list)
    resumed: int = 0


def open_session(facts: dict[str, Any], output: Path, model, tokenizer, problem) -> tuple[Session, History]:
    """The session that an earlier run saved, or a new one; and what was measured so far."""
    path = output / "session.safetensors"
    progress = output / "progress.json"
    history = History(commits=[commit()])
    if not path.exists() or not progress.exists():
        return Session.start(model, [Renderer(tokenizer).problem(problem)], tokenizer=tokenizer), history
    before = json.loads(progress.read_text(encoding="utf-8"))
    if any(before.get(name) != value for name, value in facts.items()):
        raise SystemExit(f"{output} holds a session of another problem: give another --output")
    session = Session.load(path, model, tokenizer=tokenizer)
    history.seconds = before["seconds_per_token"] * session.tokens  # the session may be older than the file beside it
    history.peak_memory_mib, history.resumed = before["peak_memory_mib"], before["resumed"] + 1
    history.commits = list(dict.fromkeys([*before["commits"], *history.commits]))
    return session, history


def save(session: Session, history: History, facts: dict[str, Any], output: Path) -> None:
    peak = max(history.peak_memory_mib, peak_memory_mib())
    progress = {**facts, **asdict(history), "peak_memory_mib": peak}
    write_json(output / "progress.json", progress | {"seconds_per_token": history.seconds / session.tokens})
    session.save(output / "session.safetensors")


if __name__ == "__main__":
    main()
