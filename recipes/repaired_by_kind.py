"""Counts what a model repairs in modules that it never saw, by the kind of bug, beside the teacher.

    python recipes/repaired_by_kind.py --model outputs/module_fixing

gives it 50 modules with each of four kinds of bug, 200 in all. A kind that is finished stands in the model's folder,
in `repaired_by_kind.json`, and an interrupted command goes on with the next.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from free_running import free_running
from tqdm import tqdm
from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.problem_sets import ReferenceTrajectories, evaluation_sets
from dataset_builders.tasks.module_fixing import ModuleFixing
from hf_toolssm.evaluation.report import markdown_table, weights_digest, write_json
from hf_toolssm.files import escape_unprintable
from hf_toolssm.hub.model_card import read_json
from hf_toolssm.models.architectures import load_model


@dataclass
class RepairArguments:
    model: str = field(metadata={"help": "A folder with model and tokenizer."})
    num_problems: int = field(default=50, metadata={"help": "Modules of each kind of bug."})
    batch_size: int = field(default=25, metadata={"help": "Problems that run side by side."})
    seed: int = field(default=0, metadata={"help": "Another seed gives other bugs in the same modules."})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(RepairArguments).parse_args_into_dataclasses()
    if not Path(options.model).is_dir():
        sys.exit(f"{options.model} is no folder, and what is repaired is written into the model's: give a folder")
    task, model = ModuleFixing(), load_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    path = Path(options.model, "repaired_by_kind.json")
    about = {"weights_sha256": weights_digest(model), "problems": options.num_problems, "seed": options.seed}
    about |= {"task_version": task.version, "environment": task.environment}
    saved = read_json(path) if path.exists() else {}
    found = saved.pop("repaired", {})
    if saved != about:  # of other weights or other problems
        found = {}
    for problems in evaluation_sets(task, task.variants[0], [], [1], options.num_problems, options.seed):
        if problems.kind in found:
            continue
        references = ReferenceTrajectories(problems)
        measured = free_running(model, tokenizer, references, options.batch_size)
        teacher = tqdm(references.problems, desc=f"{problems.name}, teacher", unit="row")
        found[problems.kind] = {
            "model": round(measured.answer_accuracy * options.num_problems),
            "teacher": sum(map(task.is_repaired_by_teacher, teacher)),
        }
        write_json(path, {**about, "repaired": found})
    found["all"] = {who: sum(each[who] for each in found.values()) for who in ("model", "teacher")}
    asked = {kind: options.num_problems * (len(task.adversarial) if kind == "all" else 1) for kind in found}
    rows = [[kind, *(f"{each[who]}/{asked[kind]}" for who in ("model", "teacher"))] for kind, each in found.items()]
    print(markdown_table(["bug", "model", "teacher"], rows))


if __name__ == "__main__":
    main()
