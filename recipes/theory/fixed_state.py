"""Theorem 2.1 as a run: how many different answers a model of a fixed-size state can give.

    python recipes/reproduce/run.py regimes
    python recipes/theory/fixed_state.py --runs outputs/reproduce/regimes

takes models that answer at once, think first, or make one call, and lets each answer problems that all have different
answers. When the last token of the problem is read, only the state knows the problem: it is rounded to `--bits` bits,
to the nearest of 2^bits states that the first problems gave, and from there come at most as many answers, however long
the model thinks and whatever one call shows it. With N problems the error is at least 1 - 2^bits / N, and a model that
knows all answers meets it. Writes `table.md`, `results.json` and `answers.png`.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TEST, ProblemSet, problem_at
from hf_toolssm import Session
from hf_toolssm.cache.cache_tensors import cache_tensors
from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.evaluation.report import hardware, markdown_table, write_json
from hf_toolssm.files import escape_unprintable, write_atomically
from hf_toolssm.models.architectures import load_model
from hf_toolssm.protocol.render import Renderer

REGIMES = {
    "no_cot": "no chain of thought",
    "reversed_answer": "no chain of thought, reversed answer",
    "plain_cot": "chain of thought without a tool",
    "calculator": "single-turn calculator",
}
"""The variants of addition that read their problem once: everything but the interactive ones."""


@dataclass
class FixedStateArguments:
    runs: str = field(metadata={"help": "What `recipes/reproduce/run.py regimes` wrote."})
    seed: int = field(default=0, metadata={"help": "Of the runs."})
    lengths: list[int] = field(default_factory=lambda: [2, 3, 5, 8, 12], metadata={"help": "Digits of the problems."})
    bits: list[int] = field(default_factory=lambda: [4, 8], metadata={"help": "Sizes of the rounded state."})
    num_problems: int = field(default=512, metadata={"help": "Problems of each length, with as many answers."})
    output: str = field(default="outputs/theory/fixed_state", metadata={"help": "Folder for the results."})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(FixedStateArguments).parse_args_into_dataclasses()
    trained = finished_runs(Path(options.runs), options.seed)
    rows = []
    with tqdm(total=len(trained) * len(options.lengths), desc="fixed state", unit="run") as bar:
        for variant, folder in trained.items():
            model, tokenizer = load_model(str(folder)), AutoTokenizer.from_pretrained(folder)
            for length in options.lengths:
                problems = different_answers(variant, length, options.num_problems)
                for bits in [*options.bits, None]:
                    found = answers(model, tokenizer, list(problems), bits)
                    rows.append(
                        {"regime": REGIMES[variant], "length": length, "bits": bits, **counted(found, problems, bits)}
                    )
                bar.update()
    result = {**asdict(options), "hardware": hardware(), "rows": rows}
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", result)
    write_atomically(folder / "table.md", table(rows, options.num_problems))
    draw(rows, folder / "answers.png")
    print(table(rows, options.num_problems))
    print(f"table.md, results.json and answers.png are in {folder}")


def finished_runs(runs: Path, seed: int) -> dict[str, Path]:
    """The folder of each regime's model.

    Raises:
        SystemExit: one is missing.
    """
    found = {}
    for path in runs.glob("*/results.json"):
        about = json.loads(path.read_text(encoding="utf-8"))
        if about.get("seed") == seed:
            found[about.get("variant")] = path.parent
    if missing := [name for variant, name in REGIMES.items() if variant not in found]:
        raise SystemExit(f"{runs} holds no finished run of {missing[0]!r}: run recipes/reproduce/run.py regimes first")
    return {variant: found[variant] for variant in REGIMES}


def different_answers(variant: str, length: int, count: int) -> dict[str, str]:
    """Problems of that many digits with their answers, of which no two are equal; fewer where there are fewer."""
    task, found = load_task("addition"), {}
    problems = ProblemSet(task, TEST, length, (("test", 20 * count),), variant)
    seen: set[str] = set()
    for index in range(20 * count):
        problem = problem_at(problems, "test", index)
        answer = task.answer(problem, variant)
        if answer not in seen:
            found[problem] = answer
            seen.add(answer)
        if len(found) == count:
            break
    return found


def answers(model: Any, tokenizer: Any, problems: list[str], bits: int | None) -> list[str]:
    """What the model answers from its state after each problem, rounded to that many bits; None leaves it as it is."""
    renderer = Renderer(tokenizer)
    prompts = [renderer.problem(problem) for problem in problems]
    read = Session.start(model, [prompt[:-1] for prompt in prompts], tokenizer=tokenizer)
    state = read.state if bits is None else rounded(read.state, bits)
    # The last token of all problems is the same sign, which tells nothing.
    session = Session.start(model, [prompt[-1:] for prompt in prompts], tokenizer=tokenizer, state=state)
    session.run(40 * max(map(len, problems)))
    return session.answers


def rounded(state: ModelState, bits: int) -> ModelState:
    """A state of that many bits: every row's becomes the nearest of the first 2^bits rows'."""
    numbers = [tensor.flatten(1) for tensor in cache_tensors(state.cache).values()]
    flat = torch.cat(numbers, dim=1)
    # Every number counts in units of its own spread; what is the same in all rows is 0, and does not drown the rest.
    flat = (flat - flat.mean(0)) / flat.std(0).clamp_min(1e-6)
    return state.select(torch.cdist(flat, flat[: 2**bits]).argmin(1).tolist())


def counted(found: list[str], problems: dict[str, str], bits: int | None) -> dict[str, Any]:
    """How many different answers there were, against how many there can be, and how many were right."""
    return {
        "problems": len(problems),
        "bound": len(problems) if bits is None else min(len(problems), 2**bits),
        "distinct": len(set(found)),
        "exact": sum(answer == right for answer, right in zip(found, problems.values())),
    }


def table(rows: list[dict[str, Any]], num_problems: int) -> str:
    """The result as Markdown."""
    head = ["regime", "digits", "state", "problems", "different answers", "at most", "exact"]
    lines = []
    for row in rows:
        size = "as it is" if row["bits"] is None else f"{row['bits']} bits"
        numbers = [f"{row[name]:,}" for name in ("problems", "distinct", "bound", "exact")]
        lines.append([row["regime"], str(row["length"]), size, *numbers])
    body = markdown_table(head, lines)
    return (
        f"# Different answers of a fixed-size state\n\nAddition, up to {num_problems} problems of each length, no two "
        f"with the same answer; one call or none.\n\n{body}\n"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure  # no global state, no display

    regimes = list(dict.fromkeys(row["regime"] for row in rows))
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    for axes, regime in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, regimes):
        mine = [row for row in rows if row["regime"] == regime]
        for number, bits in enumerate(dict.fromkeys(row["bits"] for row in mine)):
            colour = f"C{number}"
            line = [row for row in mine if row["bits"] == bits]
            size = "state as it is" if bits is None else f"{bits} bits"
            lengths = [row["length"] for row in line]
            axes.plot(lengths, [row["distinct"] for row in line], "o-", color=colour, label=f"answers, {size}")
            axes.plot(lengths, [row["exact"] for row in line], "x:", color=colour, label=f"right, {size}")
            if bits is not None:
                axes.plot(lengths, [row["bound"] for row in line], "--", color=colour, alpha=0.5)
        axes.set_yscale("symlog", base=2)
        axes.set_title(regime, fontsize="small")
    axes.legend(fontsize="x-small")
    figure.supxlabel("digits of the problem")
    figure.supylabel("answers (dashed: the bound)")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
