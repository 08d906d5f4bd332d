"""Writes a session as one HTML file that people read: who wrote what, calls, observations, and the tools' state.

    python recipes/trace.py --recording session.jsonl --model outputs/addition --output trace.html
    python recipes/trace.py --dataset outputs/tool-addition --config max_length_5 --row 7 --output trace.html

opens without a server. The first shows what a `RecordingFile` has taken down of a session, with log-probabilities if
they are in it, the second a row of a dataset. The tools are run again over the trajectory, so that their pointers,
heads and matches move as one steps through it; an observation that they do not show again is marked. Tools with side
effects are never run.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import load_dataset
from trace_replay import Replay, Strings, is_broken_off
from transformers import AutoConfig

from dataset_builders.algorithms.turing_machine import TABLE
from dataset_builders.catalog import load_task
from dataset_builders.task import describe_tools
from hf_toolssm.errors import ToolSSMError
from hf_toolssm.files import escape_unprintable, write_atomically
from hf_toolssm.generation.recording import read_recording
from hf_toolssm.models.tool_models import checkpoint_tokenizer
from hf_toolssm.protocol.calls import end_token
from hf_toolssm.protocol.parse import parse
from hf_toolssm.protocol.trajectory import Step, StepKind, Trajectory, Writer
from hf_toolssm.tools import Tool, make_tool

PAGE, *SCRIPTS = (Path(__file__).with_name(f"trace_{name}") for name in ("page.html", "tools.js", "page.js"))
KINDS = (StepKind.INPUT, StepKind.THOUGHT, StepKind.CALL, StepKind.OBSERVATION, StepKind.OUTPUT)
"""By the digits that stand for them in the page."""

NEVER = -999.0
"""The log-probability that the page shows where a token had none at all: JSON has no infinity."""


class TraceError(ToolSSMError):
    """A session that cannot be found, read or shown."""


def units(step: Step, tokenizer: Any = None) -> list[str]:
    """What the page shows side by side: cells, or a text, in its tokens' pieces where they are known.

    A call's name comes first; an empty unit at its end is the token that ends the argument.
    """
    if isinstance(step.content, tuple):
        shown = list(step.content)
    elif tokenizer is not None and step.ids is not None:
        shown = pieces(step.ids, tokenizer)
        if step.kind is StepKind.CALL:
            return [step.name, *("" if piece == end_token(step.name) else piece for piece in shown[1:])]
        return shown
    else:
        shown = [] if step.content is None else [step.content]
    if step.kind is not StepKind.CALL:
        return shown
    return [step.name, *shown, *([] if step.content is None or is_broken_off(step, tokenizer) else [""])]


MOST_BYTES = 4


def pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text of each token beside its neighbours; nothing of one that only begins a character."""
    shown, before, begin = [], 0, 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[before:end])
        # A character has at most four bytes; what is longer is none, as in a tool's answer of any bytes.
        if text.endswith("\ufffd") and end < len(ids) and end - begin < MOST_BYTES:
            shown.append("")
        else:
            shown.append(text[len(tokenizer.decode(ids[before:begin])) :])
            before, begin = begin, end
    return shown


def page(
    trajectory: Trajectory,
    tools: Sequence[Tool],
    title: str,
    facts: Mapping[str, str],
    log_probabilities: Sequence[tuple[float, float]] | None = None,
    tokenizer: Any = None,
) -> str:
    """The page of a trajectory.

    Args:
        tools: those that ran, or as many of them as are known.
        facts: what else is to be said, by name.
        log_probabilities: of every token of the steps, the model's own and that of the distribution it was drawn
            from; nan of a token that the model did not write.
        tokenizer: that the steps' `ids` are of; it splits texts into tokens.

    Raises:
        TraceError: there are more or fewer log-probabilities than tokens.
    """
    strings = Strings()
    shown = [units(each, tokenizer) for each in trajectory.steps]
    replay = Replay(trajectory, tools, strings, tokenizer)
    ids = [s.ids if s.ids and len(s.ids) == len(u) else [None] * len(u) for s, u in zip(trajectory.steps, shown)]
    content: dict[str, Any] = {
        "title": title,
        "facts": list(facts.items()),
        "kinds": "".join(str(KINDS.index(each.kind)) for each in trajectory.steps),
        "forms": "".join(str(int(not isinstance(each.content, str))) for each in trajectory.steps),
        "sizes": [len(each) for each in shown],
        "units": [strings[text] for each in shown for text in each],
        "problems": replay.problems,
        "tools": replay.tools,
    }
    if any(each.ids is not None for each in trajectory.steps):
        content["ids"] = [token for each in ids for token in each]
    if log_probabilities is not None:
        if len(log_probabilities) != len(content["units"]):
            raise TraceError(
                f"there are {len(log_probabilities):,} log-probabilities for {len(content['units']):,} tokens: give "
                "one pair for each token of the steps"
            )
        for name, values in zip(("own", "sampled"), zip(*log_probabilities)):
            content[name] = [None if math.isnan(value) else round(max(value, NEVER), 3) for value in values]
    written = json.dumps(content | {"strings": list(strings)}, separators=(",", ":")).replace("<", "\\u003c")
    # The data comes last, so that nothing in it is filled in.
    return (
        PAGE.read_text(encoding="utf-8")
        .replace("@SCRIPT@", "".join(script.read_text(encoding="utf-8") for script in SCRIPTS))
        .replace("@DATA@", written)
    )


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description="Writes a session as one HTML file that people read.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--recording", type=Path, help="what a RecordingFile has written")
    source.add_argument("--dataset", help="a folder or a Hub id")
    parser.add_argument("--row", type=int, default=0, help="of the recording or the dataset, from 0")
    parser.add_argument("--model", help="a folder or a Hub id: the model that was recorded")
    parser.add_argument("--config", help="of the dataset, for example max_length_5")
    parser.add_argument("--split", help="of the dataset; by default its first")
    parser.add_argument("--variant", help="of the dataset's task; by default its first")
    parser.add_argument("--tools", type=tool_specs, help="""in place of the model's or task's: '[{"name": "tape"}]'""")
    parser.add_argument("--output", type=Path, default=Path("trace.html"))
    options = parser.parse_args()
    if options.recording is not None:
        if options.model is None:
            parser.error("give the --model that was recorded: its tokenizer reads the tokens")
        written = recording_page(options.recording, options.row, options.model, options.tools)
    else:
        written = row_page(options.dataset, options.config, options.split, options.row, options.variant, options.tools)
    if options.output.is_dir():
        parser.error(f"--output {options.output} is a folder: name a file")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, written)
    print(f"{options.output}: {len(written):,} bytes; open it in a browser")


def tool_specs(text: str) -> list[dict[str, Any]]:
    """What `--tools` says."""
    try:
        specs = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error})") from error
    if not isinstance(specs, list):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of tools: put it into []")
    return specs


def recording_page(path: Path, number: int, model: str, specs: list[dict[str, Any]] | None) -> str:
    """The page of a row of a recording.

    Raises:
        RecordingError: the file is no recording.
        TraceError: it has no such row, or the tokens are not the model's.
        TokenizerNeededError: the model has no tokenizer.
    """
    recording = read_recording(path)
    if not 0 <= number < len(recording.ids):
        raise TraceError(f"{path} has no row {number}: its rows are 0 to {len(recording.ids) - 1}")
    tokenizer = checkpoint_tokenizer(model, None)
    specs = specs if specs is not None else getattr(AutoConfig.from_pretrained(model), "tools", None) or []
    tools, ids, writers = [make_tool(spec) for spec in specs], recording.ids[number], recording.writers[number]
    if max(ids, default=0) >= len(tokenizer):
        raise TraceError(f"{path} holds token {max(ids)}, which {model} does not have: give the model that ran")
    trajectory = parse(ids, writers, tokenizer, tools)
    # The ends of turns stand in no step.
    kept = [at for at, token in enumerate(ids) if writers[at] != Writer.MODEL or token != tokenizer.eos_token_id]
    if [ids[at] for at in kept] != [token for each in trajectory.steps for token in each.ids or ()]:
        raise TraceError(f"the tokens of {path} do not read as steps: give the --model and the --tools that ran")
    own, sampled = recording.log_probs[number], recording.sampled_log_probs[number]
    known = [(own[at], sampled[at]) for at in kept] if own and sampled else None
    facts = {"recording": str(path), "row": str(number), "model": model, "tools": describe_tools(specs)}
    return page(trajectory, tools, f"{path.stem}, row {number}", facts, known, tokenizer)


def row_page(
    dataset: str,
    config: str | None,
    split: str | None,
    number: int,
    variant: str | None,
    specs: list[dict[str, Any]] | None,
) -> str:
    """The page of a row of a dataset.

    Raises:
        TraceError: there is no such row.
        CorruptRowError: it is no trajectory.
    """
    row = dataset_row(dataset, config, split, number)
    title = row.get("id") or f"row {number} of {dataset}"
    specs = specs if specs is not None else task_specs(dataset, title, variant)
    tools = [make_tool(spec) for spec in specs]
    facts = {"dataset": dataset, "row": str(number), "tools": describe_tools(specs)}
    return page(Trajectory.from_row(row), tools, title, facts)


def dataset_row(dataset: str, config: str | None, split: str | None, number: int) -> dict[str, Any]:
    """A row of a dataset.

    Raises:
        TraceError: there is none.
    """
    source = str(Path(dataset).resolve()) if Path(dataset).is_dir() else dataset
    try:
        found = load_dataset(source, config, split=split)
        rows = found if split else next(iter(found.values()))
    except (OSError, ValueError) as error:
        raise TraceError(f"{dataset} cannot be read ({error}): give --dataset, --config and --split") from error
    if not 0 <= number < len(rows):
        raise TraceError(f"{dataset} has no row {number}: its rows are 0 to {len(rows) - 1}")
    return rows[number]


def task_specs(dataset: str, row: str, variant: str | None) -> list[dict[str, Any]]:
    """The tools of the task that a row's id names; a table of the user's own lies beside the dataset.

    Raises:
        UnknownTaskError: there is no such task; `--tools` says what ran.
        InvalidProblemError: it has no such variant.
    """
    name = row.partition("/")[0]
    table = f"{name}{TABLE}"
    task = load_task(table if (Path(dataset) / table).is_file() else name, beside=dataset)
    return task.tools(task.check_variant(variant or task.variants[0]))


if __name__ == "__main__":
    main()
