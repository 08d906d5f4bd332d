"""Measures a model free-running by length, with teacher forcing as a fast check beside it.

    python recipes/evaluate.py --model outputs/addition --lengths 5 10 100 1000 --num_problems 32

prints a table and writes `results.json` and `length_generalization.png` to `--output`: by default `evaluation/` in the
model's folder, or `outputs/` for a model on the Hub.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.mixture import measured_task, trained_part
from dataset_builders.problem_sets import ReferenceTrajectories, evaluation_sets
from hf_toolssm.evaluation import LengthResult, evaluate_free_running, evaluate_teacher_forced
from hf_toolssm.evaluation.report import table, training_facts, weights_digest, write_report
from hf_toolssm.files import escape_unprintable
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

    model = load_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def free_running(references: ReferenceTrajectories) -> LengthResult:
        problems, size = references.problem_set, options.batch_size
        return evaluate_free_running(model, tokenizer, problems.name, problems.length, references, size)

    def teacher_forced(references: ReferenceTrajectories) -> LengthResult:
        problems = references.problem_set
        return evaluate_teacher_forced(model, tokenizer, problems.name, problems.length, references)

    plain_results = list(map(free_running, plain))
    adversarial_results = list(map(free_running, adversarial))
    forced_results = list(map(teacher_forced, forced))
    measured = {
        "train_max_length": trained_part(about, task).get("train_max_length"),
        "task": task.saved_name,
        "variant": variant,
        "unit": task.unit,
        "problem_seed": options.seed,
        "weights_sha256": weights_digest(model),
        "teacher_forced": [result.to_dict() for result in forced_results],
    }
    folder = Path(options.model)
    output = Path(options.output or (folder / "evaluation" if folder.is_dir() else f"outputs/{folder.name}"))
    write_report(output, plain_results, adversarial_results, {**about, **measured})
    print(table([*plain_results, *adversarial_results, *forced_results]))
    print(f"results are in {output}")


if __name__ == "__main__":
    main()
