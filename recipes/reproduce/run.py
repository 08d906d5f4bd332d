"""Runs an experiment of `experiments/` for several seeds, and shows its table beside the paper's figures.

    python recipes/reproduce/run.py regimes

trains every row with every seed by `recipes/sft.py`, one after another, and writes `table.md`, `summary.json` and
`accuracy.png` to `outputs/reproduce/regimes`. A run that is finished is not repeated, and one that was interrupted
goes on from its last checkpoint or saved session: the same command finishes what is missing. So a model can be trained
on another machine: a folder with all that `sft.py` saved there, and without `results.json`, is only measured.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import HfArgumentParser

from experiment import ROOT, Experiment, Run, load_experiment, names
from hf_toolssm.evaluation.report import write_json
from hf_toolssm.files import escape_unprintable
from hf_toolssm.hub.model_card import read_json
from hf_toolssm.training.checkpoints import whole_checkpoint
from proofs import prove
from summary import fitness, summarize, write_summary

_BUILDING = {
    "variant": "variant",
    "train_max_length": "train-max-length",
    "num_examples": "num-examples",
    "dataset_seed": "seed",
    "num_proc": "num-proc",
}
"""Options of `dataset_builders.build` by those of `sft.py`."""

_MEASURING = {
    "eval_lengths": "lengths",
    "eval_adversarial_lengths": "adversarial_lengths",
    "eval_num_problems": "num_problems",
    "eval_batch_size": "batch_size",
}
"""Options of `evaluate.py` by those of `sft.py`."""


@dataclass
class ReproduceArguments:
    experiment: str = field(metadata={"help": f"A file of experiments/: {', '.join(names())}."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Training seeds of every row."})
    rows: list[str] | None = field(default=None, metadata={"help": "Only these rows; by default all."})
    output: str = field(default="outputs/reproduce", metadata={"help": "Folder for all experiments."})
    paper_sized: bool = field(
        default=False,
        metadata={
            "help": "The shape and steps of the paper's Mamba for every row; with an --accelerate_config of GPUs."
        },
    )
    accelerate_config: str = field(
        default="recipes/accelerate/cpu.yaml", metadata={"help": "How Accelerate launches a run."}
    )
    override: list[str] = field(
        default_factory=list, metadata={"help": "Options for every run, as name=value; they win over the experiment."}
    )


def main() -> None:
    escape_unprintable()
    parser = HfArgumentParser(ReproduceArguments)
    words = sys.argv[1:]
    # The experiment may stand first without its option's name, as one types it.
    if words and not words[0].startswith("-"):
        words.insert(0, "--experiment")
    (options,) = parser.parse_args_into_dataclasses(words)
    experiment = load_experiment(options.experiment, options.paper_sized)
    folder = Path(options.output) / (options.experiment + ("-paper-sized" if options.paper_sized else ""))
    first_seed, *others = dict.fromkeys(options.seeds)
    first = experiment.runs([first_seed], options.rows, options.override)
    total = len(first) + len(others) * len({run.row for run in first})
    with tqdm(needed(first, others, folder), desc=options.experiment, unit="run", total=total) as bar:
        for run in bar:
            bar.set_postfix_str(run.name)
            finish(run, folder, options.accelerate_config)
    report(experiment, list(needed(first, others, folder)), folder)


def needed(first: Sequence[Run], others: Sequence[int], folder: Path) -> Iterator[Run]:
    """Of each row the runs of the first seed, and then, when these are finished, the best of them with other seeds."""
    for _, runs in groupby(first, key=attrgetter("row")):
        tried = list(runs)
        yield from tried
        best = max(tried, key=lambda run: fitness(results_of(run, folder)))
        yield from map(best.with_seed, others)


def finish(run: Run, folder: Path, accelerate_config: str) -> None:
    """Does what is missing of a run: training, measuring, long problems, proof."""
    if not is_finished(run, folder):
        if (folder / run.name / "training.json").exists():
            measure(run, folder)
        else:
            train(run, folder, accelerate_config)
    run_long_problems(run, folder)
    if run.proof is not None:
        prove((folder / run.name).resolve(), run.proof)


def is_finished(run: Run, folder: Path) -> bool:
    """Whether the run's results are there.

    Raises:
        SystemExit: results of other options are there, which must not be mixed with these.
    """
    path = folder / run.name
    recorded = path / "run.json"
    if recorded.exists() and read_json(recorded) != run.identity():
        raise SystemExit(
            f"{path} was run with other options, or its configuration has changed since: give another --output, or "
            "delete that folder"
        )
    return (path / "results.json").exists()


def train(run: Run, folder: Path, accelerate_config: str) -> None:
    """Launches one run, which also measures; what it prints goes to `log.txt` in its folder."""
    output = (folder / run.name).resolve()
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "run.json", run.identity())
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", accelerate_config]
    command = [*launcher, "recipes/sft.py", *run.arguments(), "--output_dir", str(output), "--disable_tqdm", "true"]
    if run.shared_dataset:
        command += ["--dataset", str(build_dataset(run, folder))]
    if whole_checkpoint(output) is not None:
        command += ["--resume_from_checkpoint", "true"]
    _execute(command, output)


def build_dataset(run: Run, folder: Path) -> Path:
    """The folder of the rows that all runs train on, with those of this run; what is there is reused."""
    dataset = (folder / "dataset").resolve()
    command = [sys.executable, "-m", "dataset_builders.build", run.configured["task"], *run.arguments_of(_BUILDING)]
    # Not into the log: it shows its progress.
    done = subprocess.run([*command, "--num-validation", "0", "--output", str(dataset)], cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"the rows of {run.name} could not be built: repair it, and the same command goes on")
    return dataset


def measure(run: Run, folder: Path) -> None:
    """Measures a model that is trained, as `sft.py` would have done then.

    Raises:
        SystemExit: what was trained there is another run.
    """
    output, configured = (folder / run.name).resolve(), run.configured
    trained = read_json(output / "training.json")
    trained["max_steps"] = trained["steps"]
    for name in ("variant", "architecture", "train_max_length", "max_steps", "learning_rate", "seed"):
        if name in configured and type(trained[name])(configured[name]) != trained[name]:
            raise SystemExit(f"{output} was trained with {name} {trained[name]}, and not {configured[name]}")
    write_json(output / "run.json", run.identity())
    # Beside the place of the results, which stand there only when every set was measured.
    words = ["--model", str(output), "--output", str(output / "evaluation"), *run.arguments_of(_MEASURING)]
    _execute([sys.executable, "recipes/evaluate.py", *words], output)
    write_json(output / "results.json", read_json(output / "evaluation" / "results.json"))


def run_long_problems(run: Run, folder: Path) -> None:
    """One problem of each long length, until one is wrong; none where all of the longest set were wrong."""
    output = (folder / run.name).resolve()
    exact = read_json(output / "results.json")["by_length"][-1]["answer_accuracy"] > 0
    for length, tokens in run.long_problems.items():
        path = output / f"long-{length}"
        if exact and not (path / "certificate.json").exists():
            words = ["--model", output, "--length", length, "--output", path, "--max_new_tokens", tokens]
            _execute([sys.executable, "recipes/long_problem.py", *map(str, words)], output)
        exact = exact and read_json(path / "certificate.json")["exact"]


def _execute(command: list[str], output: Path) -> None:
    with (output / "log.txt").open("a", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{output.name} failed, see {output}/log.txt: repair it, and the same command goes on")


def results_of(run: Run, folder: Path) -> dict[str, Any]:
    """What was measured of a run; of its long problems the answers alone are compared."""
    results = read_json(folder / run.name / "results.json")
    for length in run.long_problems:
        path = folder / run.name / f"long-{length}" / "certificate.json"
        if path.exists():
            facts = {"problem_set": f"length_{length}", "length": length, "num_problems": 1, "first_error": None}
            results["by_length"].append({**facts, "answer_accuracy": float(read_json(path)["exact"])})
    proof = folder / run.name / "proof.json"
    return results | ({"proof": read_json(proof)} if run.proof is not None and proof.exists() else {})


def report(experiment: Experiment, runs: list[Run], folder: Path) -> None:
    results: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        results.setdefault(run.row, []).append(results_of(run, folder))
    summary = summarize(experiment, results)
    print(write_summary(summary, folder))
    print(f"table.md, summary.json and accuracy.png are in {folder}")


if __name__ == "__main__":
    main()
