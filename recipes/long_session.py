"""One session of millions of tokens, turn by turn: right answers, speed and memory by tenths of it.

    python recipes/long_session.py --model outputs/last_write --tokens 10000000 --output outputs/long-session

for a model of a task whose problems are sessions (`last_write` asks between its writes). The user is another process,
so that the session alone is measured. Memory `beyond_store_mib` is what grew behind the first tenth without what the
tool took then, which is found by a copy of what it holds. `--seconds` and `--memory_mib` end what cannot go on, and
`--feeds_again true` reads all that was said and written anew at every turn, as one does without a session.
"""

import multiprocessing
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from queue import Empty
from typing import Any

from certificate import commit
from tqdm import tqdm
from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.catalog import load_task
from dataset_builders.mixture import measured_task
from hf_toolssm import Session
from hf_toolssm.evaluation.report import hardware, resident_mib, training_facts, weights_digest, write_json
from hf_toolssm.files import escape_unprintable
from hf_toolssm.generation.recording import Recording
from hf_toolssm.models.architectures import load_model
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.trajectory import StepKind, step

PARTS = 10
TURNS_AT_ONCE = 100
"""Turns that the user's process hands over together."""

SHORTEST_TURN = 20
"""Tokens; no session has more turns than it has tokens for by this."""


@dataclass
class LongSessionArguments:
    model: str = field(metadata={"help": "A folder or a Hub id with model and tokenizer."})
    output: str = field(metadata={"help": "Folder for session.json."})
    tokens: int = field(default=10_000_000, metadata={"help": "Of the session, what the user says included."})
    task: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    variant: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    seed: int = field(default=0, metadata={"help": "Another seed says other things."})
    seconds: float = field(default=float("inf"), metadata={"help": "The session ends when it has taken so many."})
    memory_mib: float = field(default=float("inf"), metadata={"help": "It ends when its process holds so much."})
    feeds_again: bool = field(default=False, metadata={"help": "Reads everything anew at every turn."})


@dataclass
class Part:
    """A tenth of a session.

    Attributes:
        turns, tokens, seconds: of it.
        asked, right: answers that were asked for, and those that were right.
        resident_mib: what the process holds at its end.
    """

    turns: int = 0
    tokens: int = 0
    seconds: float = 0.0
    asked: int = 0
    right: int = 0
    resident_mib: float = 0.0


def main() -> None:
    escape_unprintable()
    parser = HfArgumentParser(LongSessionArguments)
    (options,) = parser.parse_args_into_dataclasses()
    if options.tokens < PARTS:
        parser.error(f"--tokens is at least {PARTS}, not {options.tokens}")
    task, variant = measured_task(training_facts(options.model), options.model, options.task, options.variant)
    model, tokenizer = load_model(options.model), AutoTokenizer.from_pretrained(options.model)
    longest = options.tokens // SHORTEST_TURN + 1
    problem = f"{longest} pairs, {longest} queries, tested; seed {options.seed}"
    task.length(problem)  # a task of one turn refuses it at once
    Path(options.output).mkdir(parents=True, exist_ok=True)
    turns = said_elsewhere(task.save(Path(options.output)), options.output, variant, problem)
    in_cells = bool(task.cells(variant))
    warm_up = Speaker(model, tokenizer, in_cells, options.feeds_again)  # compiles what a session needs
    for text, right in task.dialogue("2 pairs, 2 queries, tested; seed 0", variant):
        warm_up.say(text, right)
    parts, store = run(Speaker(model, tokenizer, in_cells, options.feeds_again), turns, options)
    first, last = parts[0], parts[-1]
    result = {
        "problem": problem,
        "task": task.saved_name,
        "variant": variant,
        "weights_sha256": weights_digest(model),
        "commit": commit(),
        "tokens": sum(part.tokens for part in parts),
        "whole": len(parts) == PARTS,
        "asked": sum(part.asked for part in parts),
        "right": sum(part.right for part in parts),
        "last_speed_over_first": (last.tokens / last.seconds) / (first.tokens / first.seconds),
        "store_mib": store,
        "beyond_store_mib": last.resident_mib
        - first.resident_mib
        - store * (1 - first.turns / sum(p.turns for p in parts)),
        "parts": [asdict(part) for part in parts],
        "hardware": hardware(),
    }
    write_json(Path(options.output) / "session.json", result)
    shown = ("tokens", "asked", "right", "last_speed_over_first", "store_mib", "beyond_store_mib")
    print("; ".join(f"{name} {result[name]:,.6g}" for name in shown))
    if not result["asked"]:
        sys.exit(f"nothing was asked in {result['tokens']:,} tokens: {task.name} asks behind all that it says first")
    if result["right"] < result["asked"]:
        sys.exit(1)


class Speaker:
    """One session, to which a user's turns are said.

    Args:
        model, tokenizer: that answer.
        in_cells: whether what is said is cells.
        feeds_again: whether all that was said and written is read anew at every turn.
    """

    def __init__(self, model: Any, tokenizer: Any, in_cells: bool, feeds_again: bool) -> None:
        self._model, self._tokenizer, self._in_cells, self._feeds_again = model, tokenizer, in_cells, feeds_again
        self._renderer = Renderer(tokenizer)
        self.session: Session | None = None
        self.history: list[int] = []
        """Of all tokens, where they are fed again."""

    def say(self, text: str, right: str | None) -> tuple[int, bool]:
        """Says a turn and lets the model end its own; returns how many tokens both have, and whether it is right."""
        content = tuple(text) if self._in_cells else text
        prompt = list(self._renderer.step(step(StepKind.INPUT, content)))
        if self._feeds_again:
            self.history += prompt
            if self.session is not None:
                self.session.runner.feed(None, [self.history])
        if self.session is None:
            self.session = Session.start(self._model, [prompt], tokenizer=self._tokenizer)
        else:
            self.session.append([prompt])
        session, heard = self.session, Recording(1) if self._feeds_again else None
        before, most = session.rows[0].length, 100 * len(prompt)  # a model that is lost is cut off
        session.run(most, sink=heard)
        (row,) = session.rows
        if heard is not None:
            self.history += heard.ids[0]
        is_right = row.finished and row.error is None and row.complete is (right is not None)
        return row.length - before, is_right and (right is None or session.answers == [right])


def run(
    speaker: Speaker, turns: Iterator[tuple[str, str | None]], options: LongSessionArguments
) -> tuple[list[Part], float]:
    """The session's tenths, fewer where it had to end, and what its tool holds in MiB."""
    parts, part = [], Part()
    began = time.perf_counter()
    with tqdm(total=options.tokens, desc="session", unit="token", unit_scale=True) as bar:
        for text, right in turns:
            start = time.perf_counter()
            tokens, is_right = speaker.say(text, right)
            part.seconds += time.perf_counter() - start
            part.turns, part.tokens = part.turns + 1, part.tokens + tokens
            part.asked, part.right = part.asked + (right is not None), part.right + (right is not None and is_right)
            bar.update(tokens)
            is_late = time.perf_counter() - began > options.seconds or resident_mib() > options.memory_mib
            if part.tokens >= options.tokens // PARTS or is_late:
                part.resident_mib = resident_mib()
                parts.append(part)
                part = Part()
            if len(parts) == PARTS or is_late:
                break
    return parts, held_mib(speaker)


def held_mib(speaker: Speaker) -> float:
    """What the session's tool holds, by what another one of the same state allocates."""
    assert speaker.session is not None
    (facts,), (row,) = speaker.session.protocol.tools, speaker.session.rows
    state = facts.state(row.tools[0])
    tracemalloc.start()
    copy = facts.restore(state, speaker.session.protocol.marker)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del copy
    return held / 2**20


def said_elsewhere(task: str, folder: str, variant: str, problem: str) -> Iterator[tuple[str, str | None]]:
    """The turns of a problem and their right answers, from a process of their own.

    Raises:
        SystemExit: that process has died, and not all was said.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue(maxsize=10)
    user = context.Process(target=_say, args=(task, folder, variant, problem, queue), daemon=True)
    user.start()
    try:
        while True:
            try:
                yield from queue.get(timeout=1.0)
            except Empty:
                if user.exitcode:
                    raise SystemExit(
                        f"the user's process has died, exit status {user.exitcode}: begin again"
                    ) from None
                if user.exitcode == 0:
                    return
    finally:
        user.terminate()


def _say(task: str, folder: str, variant: str, problem: str, queue: Any) -> None:
    turns = load_task(task, Path(folder)).dialogue(problem, variant)
    while part := list(islice(turns, TURNS_AT_ONCE)):
        queue.put(part)


if __name__ == "__main__":
    main()
