"""Measures a model free-running by length, with teacher forcing as a fast check beside it.

    python recipes/evaluate.py --model outputs/addition --lengths 5 10 100 1000 --num_problems 32

prints a table and writes `results.json` and `length_generalization.png` to `--output`: by default `evaluation/` in the
model's folder, or `outputs/` for a model on the Hub. They are written after every problem set; interrupted, the same
command goes on with the sets that are missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from free_running import free_running
from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.mixture import measured_task, trained_part
from dataset_builders.problem_sets import ReferenceTrajectories, evaluation_sets
from hf_toolssm.evaluation import LengthResult, evaluate_teacher_forced
from hf_toolssm.evaluation.report import hardware, table, training_facts, weights_digest, write_report
from hf_toolssm.files import escape_unprintable
from hf_toolssm.hub.model_card import read_json
from hf_toolssm.models.architectures import load_model


@dataclass
class EvaluationArguments:
    model: str = field(metadata={"help": "A folder or a Hub id with model and tokenizer."})
    task: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    variant: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    lengths: list[int] = field(default_factory=list, metadata={"help": "Lengths of the plain sets, free-running."})
    adversarial_lengths: list[int] = field(
        default_factory=list, metadata={"help": "Lengths of the adversarial sets, free-running."}
    )
    teacher_forced_lengths: list[int] = field(
        default_factory=list, metadata={"help": "Lengths of plain sets that are only teacher-forced, in pieces."}
    )
    num_problems: int = field(default=32, metadata={"help": "Problems a set."})
    batch_size: int = field(default=32, metadata={"help": "Problems that run side by side."})
    seed: int = field(default=0, metadata={"help": "Seed of the problems."})
    output: str | None = field(default=None, metadata={"help": "Folder for the results."})


def main() -> None:
    escape_unprintable()
    parser = HfArgumentParser(EvaluationArguments)
    (options,) = parser.parse_args_into_dataclasses()
    if not (options.lengths or options.adversarial_lengths or options.teacher_forced_lengths):
        parser.error("nothing to measure: give --lengths, --adversarial_lengths or --teacher_forced_lengths")
    about = training_facts(options.model)
    task, variant = measured_task(about, options.model, options.task, options.variant)

    # All problems before the first run: a set that does not exist is said at once.
    def drawn(lengths: list[int], adversarial_lengths: list[int]) -> list[ReferenceTrajectories]:
        sets = evaluation_sets(task, variant, lengths, adversarial_lengths, options.num_problems, options.seed)
        return list(map(ReferenceTrajectories, sets))

    plain, adversarial = drawn(options.lengths, []), drawn([], options.adversarial_lengths)
    forced = drawn(options.teacher_forced_lengths, [])

    model = load_model(options.model).to(PartialState().device)
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def measure(references: ReferenceTrajectories) -> LengthResult:
        return free_running(model, tokenizer, references, options.batch_size)

    def teacher_forced(references: ReferenceTrajectories) -> LengthResult:
        problems = references.problem_set
        return evaluate_teacher_forced(model, tokenizer, problems.name, problems.length, references)

    measured = {
        "train_max_length": trained_part(about, task).get("train_max_length"),
        "task": task.saved_name,
        "task_version": task.version,
        "variant": variant,
        "unit": task.unit,
        "environment": task.environment,
        "problem_seed": options.seed,
        "training_hardware": about.get("hardware"),
        "weights_sha256": weights_digest(model),
    }
    folder = Path(options.model)
    output = Path(options.output or (folder / "evaluation" if folder.is_dir() else f"outputs/{folder.name}"))
    found = measured_before(output / "results.json", {**measured, "hardware": hardware()}, options.num_problems)
    parts = (("free-running", plain), ("free-running", adversarial), ("teacher-forced", forced))
    keys = [[(mode, references.problem_set.name) for references in sets] for mode, sets in parts]
    for mode, sets in parts:
        for references in sets:
            key = (mode, references.problem_set.name)
            if key not in found:
                found[key] = (teacher_forced if mode == "teacher-forced" else measure)(references)
            # With what an earlier command measured of the sets that come behind: this one may be interrupted as well.
            results = [[found[each] for each in part if each in found] for part in keys]
            more = {"teacher_forced": [result.to_dict() for result in results[2]]}
            write_report(output, *results[:2], {**about, **measured, **more})
    print(table([result for part in results for result in part]))
    print(f"results are in {output}")


def measured_before(path: Path, facts: Mapping[str, Any], num_problems: int) -> dict[tuple[str, str], LengthResult]:
    """The results, by mode and set, of an interrupted command that measured the same weights on the same problems.

    Args:
        facts: what `results.json` says of both, and of the machine.

    Raises:
        UnfinishedModelError: it is no whole file.
    """
    try:
        before = read_json(path)
    except FileNotFoundError:
        return {}
    if any(before.get(name) != value for name, value in facts.items()):
        return {}
    saved = before["by_length"] + before["adversarial"] + before["teacher_forced"]
    # What an older version of this package saved says less.
    found = [LengthResult.from_dict(r) for r in saved if {each.name for each in fields(LengthResult)} <= r.keys()]
    return {(r.mode, r.problem_set): r for r in found if r.num_problems == num_problems}


if __name__ == "__main__":
    main()
