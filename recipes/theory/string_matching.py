"""Theorem 2.2 as a run: how many trajectories a learner needs that only matches strings.

    python recipes/theory/string_matching.py --task binary_addition

draws training sets of 1, 2, 4, ... trajectories of a Turing machine, and for each says which share of the (state,
symbol) pairs that the test problems need it covers, how many test problems the learner then solves running free on
the tape, and what the bound says: a pair that a random trajectory shows with probability p is missed by m of them with
probability (1 - p)^m, so that all are covered with probability at least 1 - delta as soon as the sum of these is at
most delta. p is estimated from `--estimate` other trajectories. Writes `table.md`, `results.json` and `coverage.png`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm
from transformers import HfArgumentParser

from dataset_builders.algorithms.turing_machine import TuringMachine
from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TEST, TRAINING, ProblemSet, ReferenceTrajectories
from dataset_builders.task import task_tool
from hf_toolssm.evaluation.report import markdown_table, write_json
from hf_toolssm.evaluation.string_matching import StringMatchingLearner, evaluate_string_matching
from hf_toolssm.files import escape_unprintable, write_atomically
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.trajectory import StepKind, Trajectory
from hf_toolssm.tools.tape import TAPE_READ

VARIANT = "tape"
K = 5
"""Tokens that determine the next one of any machine; see `dataset_builders/algorithms/turing_machine.py`."""

Pair = tuple[str, str]


@dataclass
class StringMatchingArguments:
    task: str = field(default="binary_addition", metadata={"help": "A machine's name, or the path of a .tm."})
    train_max_length: int = field(default=8, metadata={"help": "Longest training input."})
    length: int = field(default=100, metadata={"help": "Length of the test inputs."})
    num_problems: int = field(default=32, metadata={"help": "Test inputs."})
    sizes: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 128], metadata={"help": "Training trajectories."}
    )
    repeats: int = field(default=10, metadata={"help": "Training sets of each size, which share nothing."})
    estimate: int = field(default=4_000, metadata={"help": "Trajectories that p is estimated from."})
    delta: float = field(default=0.05, metadata={"help": "Probability with which the bound may fail."})
    output: str = field(default="outputs/theory", metadata={"help": "Folder for the results."})


def main() -> None:
    escape_unprintable()
    parser = HfArgumentParser(StringMatchingArguments)
    (options,) = parser.parse_args_into_dataclasses()
    task = load_task(options.task)
    if not isinstance(task, TuringMachine):
        parser.error(f"{options.task} is no Turing machine: give one of dataset_builders/machines/, or a .tm of yours")
    drawn = max(options.sizes) * options.repeats
    training = ProblemSet(task, TRAINING, options.train_max_length, (("train", drawn),), VARIANT)
    test = ProblemSet(task, TEST, options.length, (("test", options.num_problems),), VARIANT)
    pool, references = list(ReferenceTrajectories(training, "train")), list(ReferenceTrajectories(test, "test"))
    needed = pairs(references)
    others = replace(training, sizes=(("train", options.estimate),), seed=1)
    shown = Counter(pair for other in ReferenceTrajectories(others, "train") for pair in pairs([other]))
    shares = {pair: shown[pair] / options.estimate for pair in needed}
    rows = []
    with tqdm(total=len(options.sizes) * options.repeats, desc=task.name, unit="run") as bar:
        for size in options.sizes:
            coverage, accuracy = [], []
            for repeat in range(options.repeats):
                seen = pool[repeat * size : (repeat + 1) * size]
                learner = StringMatchingLearner(K).fit(seen)
                found = evaluate_string_matching(
                    learner, task_tool(task, VARIANT), test.name, options.length, references
                )
                coverage.append(len(needed & pairs(seen)) / len(needed))
                accuracy.append(min(found.answer_accuracy, found.trajectory_accuracy))
                bar.update()
            rows.append(
                {
                    "trajectories": size,
                    "coverage": {"median": median(coverage), "worst": min(coverage)},
                    "accuracy": {"median": median(accuracy), "worst": min(accuracy)},
                    "covers_all": sum(share == 1 for share in coverage) / options.repeats,
                    "bound": max(0.0, 1 - sum((1 - share) ** size for share in shares.values())),
                }
            )
    result = {
        **asdict(options),
        "task": task.name,
        "pairs_needed": len(needed),
        "rarest_pair": min((share, *pair) for pair, share in shares.items()),
        "enough_by_the_bound": enough(shares.values(), options.delta),
        "rows": rows,
    }
    folder = Path(options.output) / f"string_matching_{task.name}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", result)
    write_atomically(folder / "table.md", table(result))
    draw(result, folder / "coverage.png")
    print(table(result))
    print(f"table.md, results.json and coverage.png are in {folder}")


def pairs(trajectories: Iterable[Trajectory]) -> set[Pair]:
    """What was read in which state; the walk over the tape for the answer counts as a state."""
    found, read = set(), begin_token(TAPE_READ)
    for trajectory in trajectories:
        texts = [cell for kind, cell in trajectory.cells() if kind is not StepKind.INPUT]
        found |= {(texts[at - 1], texts[at + 1]) for at, text in enumerate(texts) if text == read}
    return found


def enough(shares: Iterable[float], delta: float) -> int | None:
    """The fewest trajectories with which the bound promises every pair; None where one is never shown."""
    shares = list(shares)
    if min(shares) == 0:
        return None
    size = 1
    while sum((1 - share) ** size for share in shares) > delta:
        size += 1
    return size


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    head = ["trajectories", "pairs covered", "all covered", "bound", f"exact at {result['length']:,}"]
    lines = []
    for row in result["rows"]:
        both = [f"{row[name]['median']:.2f} / {row[name]['worst']:.2f}" for name in ("coverage", "accuracy")]
        lines.append([str(row["trajectories"]), both[0], f"{row['covers_all']:.2f}", f"{row['bound']:.2f}", both[1]])
    body = markdown_table(head, lines)
    share, state, symbol = result["rarest_pair"]
    promised = result["enough_by_the_bound"]
    return (
        f"# String matching on {result['task']}\n\nTrained on inputs of at most "
        f"{result['train_max_length']} symbols, {result['num_problems']} test inputs of {result['length']:,}, "
        f"free-running: median / worst of {result['repeats']} training sets. {result['pairs_needed']} pairs are "
        f"needed; the rarest, `{state}` on `{symbol}`, is in {share:.1%} of training trajectories, estimated from "
        f"{result['estimate']:,}. By the bound {promised or 'more than can be said'} are enough with probability at "
        f"least {1 - result['delta']:.0%}.\n\n{body}\n"
    )


def draw(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure  # no global state, no display

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    sizes = [row["trajectories"] for row in result["rows"]]
    for name, colour in (("coverage", "#1f77b4"), ("accuracy", "#d62728")):
        axes.plot(sizes, [row[name]["median"] for row in result["rows"]], "o-", color=colour, label=name)
        axes.plot(sizes, [row[name]["worst"] for row in result["rows"]], "v:", color=colour, alpha=0.6)
    axes.plot(sizes, [row["bound"] for row in result["rows"]], "k--", label="bound: all pairs are covered")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("training trajectories")
    axes.set_ylabel("share: median (line), worst (dots)")
    axes.set_title(f"String matching on {result['task']}, {result['length']:,} symbols")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
