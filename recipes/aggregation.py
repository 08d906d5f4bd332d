"""Scores a model on questions about many labelled texts, by their number, as Oolong does, and on labelling alone.

    LABELLED_TEXTS=FOLDER python recipes/aggregation.py --model outputs/label_aggregation --lengths 5 25 100 1000

measures, free-running with tools executed, problems of every length with texts and with gold labels in their place,
and then every text of the test split by itself. What is finished stands in the model's folder, in `aggregation.json`,
and an interrupted command goes on with the next set.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm
from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.algorithms.labelled_texts import VARIABLE, labelled_texts
from dataset_builders.mixture import measured_task
from dataset_builders.problem_sets import ReferenceTrajectories, evaluation_sets
from dataset_builders.tasks.label_aggregation import LabelAggregation, given_labels, score, single_problem
from hf_toolssm.evaluation.exactness import in_evaluation_mode, most_tokens
from hf_toolssm.evaluation.report import markdown_table, training_facts, weights_digest, write_json
from hf_toolssm.files import escape_unprintable
from hf_toolssm.generation.session import Session
from hf_toolssm.hub.model_card import read_json
from hf_toolssm.models.architectures import load_model
from hf_toolssm.protocol.render import Renderer

SINGLE = "each alone"


@dataclass
class AggregationArguments:
    model: str = field(metadata={"help": "A folder with model and tokenizer."})
    variant: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    lengths: list[int] = field(default_factory=lambda: [5, 25, 100, 1000], metadata={"help": "Numbers of examples."})
    num_problems: int = field(default=100, metadata={"help": "Questions of each length."})
    batch_size: int = field(default=25, metadata={"help": "Problems that run side by side."})
    seed: int = field(default=0, metadata={"help": "Seed of the problems."})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(AggregationArguments).parse_args_into_dataclasses()
    about = training_facts(options.model)
    if not Path(options.model).is_dir():
        sys.exit(f"{options.model} is no folder, and the scores are written into the model's: give a folder")
    task = LabelAggregation()
    _, variant = measured_task(about, options.model, task.name, options.variant)
    if about.get("task") == task.name and about["environment"] != task.environment:
        sys.exit(f"{options.model} was trained on {about['environment']}, and {VARIABLE} names {task.environment}")
    model, tokenizer = load_model(options.model), AutoTokenizer.from_pretrained(options.model)
    path = Path(options.model, "aggregation.json")
    facts = {"weights_sha256": weights_digest(model), "seed": options.seed}
    facts |= {"task_version": task.version, "environment": task.environment, "variant": variant}
    runs = read_json(path)["runs"] if path.exists() else []  # those of other weights and problems stay beside these
    run = next((each for each in runs if {**each, "sets": {}} == {**facts, "sets": {}}), None)
    if run is None:
        run = {**facts, "sets": {}}
        runs.append(run)
    found = run["sets"]
    lengths = options.lengths
    drawn = evaluation_sets(task, variant, lengths, lengths, options.num_problems, options.seed)
    sets = {f"{each.name} x {options.num_problems}": ReferenceTrajectories(each).problems for each in drawn}
    sets[SINGLE] = [single_problem(index) for index in range(len(labelled_texts().tested))]
    for name, problems in sets.items():
        if name not in found:
            answers = answered(model, tokenizer, task, variant, name, problems, options.batch_size)
            found[name] = summary(task, variant, answers)
            write_json(path, {"runs": runs})
    rows = []
    for name in sets:
        set_found = found[name]
        exact, labels = (f"{right}/{of}" for right, of in (set_found["exact"], set_found["labels"]))
        rows.append([name, f"{set_found['score']:.3f}", exact, labels])
    print(markdown_table(["problems", "score", "exact", "labels that are right"], rows))


class Answered(NamedTuple):
    """What came of a problem: its answer, None where the row did not end by itself, and the labels that it counted."""

    problem: str
    answer: str | None
    labels: Sequence[str]


def answered(
    model: Any,
    tokenizer: Any,
    task: LabelAggregation,
    variant: str,
    name: str,
    problems: Sequence[str],
    batch_size: int,
) -> Iterator[Answered]:
    """Lets the model answer problems, tools executed; a row is cut where it takes a tenth more than the longest."""
    renderer, tools = Renderer(tokenizer), task.make_tools(variant)
    with in_evaluation_mode(model), tqdm(total=len(problems), desc=f"{name}, free-running", unit="row") as bar:
        for first in range(0, len(problems), batch_size):
            part = problems[first : first + batch_size]
            rendered = [[list(renderer.step(step)) for step in task.solve(each, variant).steps] for each in part]
            prompts, longest = [row[0] for row in rendered], max(sum(map(len, row[1:])) for row in rendered)
            session = Session.start(model, prompts, tools=tools, tokenizer=tokenizer, record=True)
            session.run(most_tokens(longest))
            for problem, row, answer, said in zip(part, session.rows, session.answers, session.trajectories):
                yield Answered(problem, answer if row.complete else None, given_labels(said))
                bar.update()


def summary(task: LabelAggregation, variant: str, found: Iterable[Answered]) -> dict[str, Any]:
    """The mean score, how many answers are exact, and how many of the labels on the way are right.

    A label is right if it is that of the example which is to be labelled at the same place; a row that labels fewer
    examples has wrong ones for the others.
    """
    by_kind, exact, right, asked = dict[str, list[float]](), 0, 0, 0
    for problem, answer, labels in found:
        question = task.question(problem)
        expected, wanted = question.answer(), question.labels() if variant == "retrieval" else []
        right += sum(label == other for label, other in zip(wanted, labels))
        asked += len(wanted)
        exact += answer == expected
        by_kind.setdefault(question.kind, []).append(score(expected, answer, is_count=question.label is not None))
    scores = [each for of in by_kind.values() for each in of]
    return {
        "score": sum(scores) / len(scores),
        "exact": [exact, len(scores)],
        "labels": [right, asked],
        "score_by_kind": {kind: [sum(of) / len(of), len(of)] for kind, of in sorted(by_kind.items())},
    }


if __name__ == "__main__":
    main()
