"""Measures a model free-running by length, with teacher forcing as a fast check beside it.

    python recipes/evaluate.py --model outputs/addition --lengths 5 10 100 1000 --num_problems 32

prints a table and writes `results.json` and `length_generalization.png` to `--output`, by default the model's folder
under `evaluation/`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.builder import ProblemSet, evaluation_sets, reference_trajectories
from dataset_builders.task import load_task
from hf_toolssm import ToolMambaForCausalLM
from hf_toolssm.evaluation import LengthResult, evaluate_free_running, evaluate_teacher_forced
from hf_toolssm.evaluation.report import table, write_report


@dataclass
class EvaluationArguments:
    model: str = field(metadata={"help": "A folder or a Hub id with model and tokenizer."})
    task: str = field(default="addition", metadata={"help": "A file of dataset_builders/."})
    variant: str | None = field(
        default=None, metadata={"help": "Which of the task's algorithms; by default its first."}
    )
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
    (options,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses()
    model = ToolMambaForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    task = load_task(options.task)
    variant = options.variant or task.variants[0]

    def sets(lengths: list[int], adversarial_lengths: list[int]) -> list[ProblemSet]:
        return evaluation_sets(options.task, variant, lengths, adversarial_lengths, options.num_problems, options.seed)

    def free_running(problems: ProblemSet) -> LengthResult:
        references = reference_trajectories(problems, "test")
        return evaluate_free_running(model, tokenizer, problems.name, problems.length, references, options.batch_size)

    def teacher_forced(problems: ProblemSet) -> LengthResult:
        references = reference_trajectories(problems, "test")
        return evaluate_teacher_forced(model, tokenizer, problems.name, problems.length, references)

    by_length = [free_running(s) for s in sets(options.lengths, [])]
    adversarial = [free_running(s) for s in sets([], options.adversarial_lengths)]
    forced = [teacher_forced(s) for s in sets(options.teacher_forced_lengths, [])]
    training = Path(options.model) / "training.json"
    about = json.loads(training.read_text()) if training.exists() else {"task": options.task, "unit": task.unit}
    about["teacher_forced"] = [result.to_dict() for result in forced]
    output = Path(options.output) if options.output else Path(options.model) / "evaluation"
    write_report(output, by_length, adversarial, about)
    print(table([*by_length, *adversarial, *forced]))
    print(f"results are in {output}")


if __name__ == "__main__":
    main()
