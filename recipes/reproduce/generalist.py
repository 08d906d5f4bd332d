"""Trains one model on all tasks and measures it as each task's own model is measured.

    python recipes/reproduce/generalist.py --specialists recipes/reproduce/results/table1

trains `recipes/configs/generalist_cpu.yaml` with every seed, runs every task of the experiment `table1` at its
lengths, and writes `table.md`, `summary.json` and `accuracy.png` to `outputs/reproduce/generalist`; with
`--specialists`, what `run.py table1` wrote, each task's own models stand beside it. The same command finishes what is
missing.
"""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import HfArgumentParser

from experiment import ROOT, Run, load_experiment
from hf_toolssm.evaluation.report import weights_digest
from hf_toolssm.files import escape_unprintable
from hf_toolssm.hub.model_card import read_json
from hf_toolssm.models.architectures import load_model
from run import finish
from summary import summarize, write_summary


@dataclass
class GeneralistArguments:
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Training seeds."})
    rows: list[str] | None = field(default=None, metadata={"help": "Only these tasks of table1; by default all."})
    specialists: str | None = field(default=None, metadata={"help": "Where table1's summary.json lies."})
    output: str = field(default="outputs/reproduce", metadata={"help": "Folder for all experiments."})
    accelerate_config: str = field(
        default="recipes/accelerate/cpu.yaml", metadata={"help": "How Accelerate launches a run."}
    )
    override: list[str] = field(
        default_factory=list,
        metadata={"help": "Options as name=value: of the training, and how all tasks are measured (eval_lengths)."},
    )


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(GeneralistArguments).parse_args_into_dataclasses()
    folder = Path(options.output) / "generalist"
    models = load_experiment("generalist", False).runs(options.seeds, None, options.override)
    table1 = load_experiment("table1", False)
    tasks = table1.runs([0], options.rows, options.override)
    results: dict[str, list[dict[str, Any]]] = {}
    with tqdm(total=len(models) * (1 + len(tasks)), desc="generalist", unit="run") as bar:
        for model in models:
            finish(model, folder, options.accelerate_config)
            bar.update()
            weights = weights_digest(load_model(str(folder / model.name)))
            for task in tasks:
                bar.set_postfix_str(f"{model.name}, {task.row}")
                results.setdefault(task.row, []).append(measured(folder / model.name, task, weights))
                bar.update()
    summary = summarize(replace(load_experiment("generalist", False), paper=table1.paper), results)
    if options.specialists is not None:
        summary = beside_specialists(summary, Path(options.specialists) / "summary.json")
    print(write_summary(summary, folder))
    print(f"table.md, summary.json and accuracy.png are in {folder}")


def measured(model: Path, task: Run, weights: str) -> dict[str, Any]:
    """The model's results on a task, at the lengths that the task's own configuration measures.

    Args:
        model: its folder.
        task: a run of `table1`.
        weights: the digest of the model's weights, whose results are measured once.
    """
    path = model / task.row.replace(" ", "_") / "results.json"
    configured = task.configured
    lengths, number = configured["eval_lengths"], configured.get("eval_num_problems", 32)
    found = read_json(path) if path.exists() else {"by_length": []}
    sets = [(r["length"], r["num_problems"]) for r in found["by_length"]]
    if sets != [(length, number) for length in lengths] or found["weights_sha256"] != weights:
        command = [
            sys.executable,
            "recipes/evaluate.py",
            "--model",
            str(model.resolve()),
            "--task",
            configured["task"],
        ]
        command += ["--lengths", *map(str, lengths), "--output", str(path.parent.resolve())]
        command += ["--num_problems", str(number)]
        with (model / "log.txt").open("a", encoding="utf-8") as log:
            done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            raise SystemExit(f"measuring {task.row} failed, see {model}/log.txt: the same command goes on")
    return read_json(path)


def beside_specialists(summary: dict[str, Any], specialists: Path) -> dict[str, Any]:
    """The summary with, behind every task's row, that of its own models where these were run, and their hardware."""
    if not specialists.exists():
        raise SystemExit(f"{specialists} is not there: run recipes/reproduce/run.py table1, and give its folder")
    own, rows = read_json(specialists), {}
    for task, row in summary["rows"].items():
        rows[task] = row
        if task in own["rows"]:
            rows[f"{task}, its own model"] = own["rows"][task]
    return {**summary, "rows": rows, "hardware": sorted({*summary["hardware"], *own["hardware"]})}


if __name__ == "__main__":
    main()
