"""Runs one very long problem free-running, with the tool executed, and compares the answer with the task's own.

    python recipes/long_problem.py --model outputs/addition --length 1000000 --output outputs/long-addition

saves the session every minute into `--output` and, at the end, writes `certificate.json` there, which
`recipes/certificate.py` checks. Interrupted, even by `kill -9`, the same command goes on from the last save. A problem
of many turns is said turn by turn, and every answer is compared; what is said from the second turn counts as tokens.
"""

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
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
from hf_toolssm.protocol.trajectory import StepKind, step

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
    max_new_tokens: int = field(
        default=10**9, metadata={"help": "Of all turns together; there a model that is lost is cut off."}
    )
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
    if task.most_tokens is not None:
        parser.error(f"whether a problem of {task.name} is solved a check decides: use recipes/evaluate.py")
    turns = list(task.dialogue(problem, options.variant))  # before the run: without an answer it is said at once
    model = load_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    renderer, in_cells = Renderer(tokenizer), bool(task.cells(options.variant))
    prompts = (list(renderer.step(step(StepKind.INPUT, tuple(text) if in_cells else text))) for text, _ in turns)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    facts = stated(options, task)
    session, history, taken = open_session(facts, output, model, tokenizer, prompts)

    saved, stride = time.perf_counter(), 100
    name = f"{task.name} {options.length:,}"
    with tqdm(initial=session.tokens, desc=name, unit="token", unit_scale=True) as bar:
        while taken.turns < len(turns):
            if session.finished:
                taken.take(session, turns[taken.turns][1])
                if taken.turns < len(turns):
                    session.append([next(prompts)])
                continue
            if session.tokens >= options.max_new_tokens:
                break
            start = time.perf_counter()
            bar.update(session.run(min(stride, options.max_new_tokens - session.tokens)))
            seconds = time.perf_counter() - start
            stride = stride * 2 if seconds < SLICE / 2 and not session.finished else stride
            history.seconds += seconds
            if time.perf_counter() - saved >= options.save_seconds:
                save(session, history, taken, facts, output)
                saved, stride = time.perf_counter(), 100
    if taken.turns < len(turns):  # it was cut off
        taken.take(session, turns[taken.turns][1])
    expected = [right for _, right in turns if right is not None]
    found = "\n".join(taken.answers)
    task.save(output)
    certificate = {
        **facts,
        "problem_sha256": digest(problem),
        "exact": taken.complete and taken.answers == expected,
        "first_wrong_symbol": first_difference("\n".join(expected), found),
        "complete": taken.complete,
        "error": taken.error,
        "turns": len(turns),
        "answers": len(expected),
        "right_answers": taken.right_answers,
        "answer_length": len(found),
        "answer_sha256": digest(found),
        "tokens": session.tokens,
        "tool_calls": session.rows[0].tool_calls,
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
class Taken:
    """What was taken of the turns that have ended; it stands in the session's file.

    Attributes:
        turns: how many.
        answers: of those that ask for one.
        right_answers: how many of these are right and complete.
        complete: whether each was answered, and the others ended without an answer.
        error: the first of a row.
    """

    turns: int = 0
    answers: list[str] = field(default_factory=list)
    right_answers: int = 0
    complete: bool = True
    error: str | None = None

    def take(self, session: Session, right: str | None) -> None:
        """Takes the turn that has ended, or was cut off, and whose right answer is that, or None."""
        row, asks = session.rows[0], right is not None
        self.turns += 1
        self.error = self.error or row.error
        self.complete &= row.finished and row.error is None and row.complete is asks
        if asks:
            self.answers += session.answers
            self.right_answers += row.complete and session.answers == [right]


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


def open_session(
    facts: dict[str, Any], output: Path, model, tokenizer, prompts: Iterator[list[int]]
) -> tuple[Session, History, Taken]:
    """The session that an earlier run saved, or a new one on the first prompt; what was measured and taken so far.

    The prompts that it has had are taken from `prompts`.
    """
    path = output / "session.safetensors"
    progress = output / "progress.json"
    history, first = History(commits=[commit()]), next(prompts)
    if not path.exists() or not progress.exists():
        return Session.start(model, [first], tokenizer=tokenizer), history, Taken()
    before = json.loads(progress.read_text(encoding="utf-8"))
    if any(before.get(name) != value for name, value in facts.items()):
        raise SystemExit(f"{output} holds a session of another problem: give another --output")
    session = Session.load(path, model, tokenizer=tokenizer)
    history.seconds = before["seconds_per_token"] * session.tokens  # the session may be older than the file beside it
    history.peak_memory_mib, history.resumed = before["peak_memory_mib"], before["resumed"] + 1
    history.commits = list(dict.fromkeys([*before["commits"], *history.commits]))
    taken = Taken(**session.beside.get("taken", {}))
    deque(islice(prompts, taken.turns), 0)
    return session, history, taken


def save(session: Session, history: History, taken: Taken, facts: dict[str, Any], output: Path) -> None:
    peak = max(history.peak_memory_mib, peak_memory_mib())
    progress = {**facts, **asdict(history), "peak_memory_mib": peak}
    write_json(output / "progress.json", progress | {"seconds_per_token": history.seconds / session.tokens})
    session.save(output / "session.safetensors", {"taken": asdict(taken)})


if __name__ == "__main__":
    main()
