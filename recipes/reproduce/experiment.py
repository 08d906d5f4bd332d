"""What an experiment is: rows of options for `recipes/sft.py`, read from a YAML file.

    title: one line
    source: where the paper has it
    config: recipes/configs/addition_cpu.yaml     # of every row, unless a row names another
    options: {eval_lengths: [5, 10]}              # of every row
    paper_sized: {hidden_size: 768}               # in place of the laptop's, with --paper_sized
    rows:
      no chain of thought: {variant: no_cot, paper: "100% at 5 digits, does not extrapolate"}
    grid: {max_steps: [250, 500]}                 # instead of rows: one row for every combination

Beside options of `sft.py`, a row may have `config`, `paper`, the paper's figure as text, `long_problems`: lengths of
which one problem is run by `long_problem.py`, with the most tokens that it may take, `proof`: how many tokens attack
the model, which is proved before (`proofs.py`), and `shared_dataset`: whether the rows to train on are built once for
all runs, which then have one task. Several values of `learning_rate`, as a list, are a choice: the first seed is
trained with each, and the other seeds with the best of them (`summary.fitness`). Rows named `A/X` and `B/X` have one
colour in the picture, and those named `A/X` and `A/Y` one kind of line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "experiments"
_FIELDS = {"title", "source", "config", "options", "paper_sized", "rows", "grid"}


@dataclass(frozen=True)
class Run:
    """One row with one seed and one learning rate.

    Attributes:
        row: the row's name.
        options: of `recipes/sft.py`, the seed and the `config` among them.
        long_problems: the most tokens of one problem, by its length.
        proof: the tokens of an attack; None where nothing is proved.
        shared_dataset: whether the rows are built once for all runs.
        several_rates: whether the row has a choice of learning rates.
    """

    row: str
    options: dict[str, Any]
    long_problems: dict[int, int]
    proof: int | None = None
    shared_dataset: bool = False
    several_rates: bool = False

    @property
    def name(self) -> str:
        """The run's folder."""
        plain = "".join(c if c.isalnum() else "_" for c in self.row)
        rate = f"-{self.options['learning_rate']}" if self.several_rates else ""
        return f"{plain}{rate}-{self.options['seed']}"

    def identity(self) -> dict[str, Any]:
        """All that decides the run's results: the options, and what the configuration they name says now."""
        return {**self.options, "configuration": self._configuration()}

    @property
    def configured(self) -> dict[str, Any]:
        """The options, those of the configuration that they leave as they are, and the task."""
        return {"task": "addition", **self._configuration(), **self.options}

    def _configuration(self) -> dict[str, Any]:
        return yaml.safe_load((ROOT / self.options["config"]).read_text(encoding="utf-8"))

    def with_seed(self, seed: int) -> "Run":
        return replace(self, options={**self.options, "seed": seed})

    def arguments(self) -> list[str]:
        """The options as `sft.py` reads them."""
        return _words(self.options)

    def arguments_of(self, names: Mapping[str, str]) -> list[str]:
        """What is configured, as another command reads it, which has these names for options of `sft.py`."""
        return _words({names[name]: value for name, value in self.configured.items() if name in names})


def _words(options: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        if value == []:  # what is written without a value is refused, and left out it is none
            continue
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


@dataclass(frozen=True)
class Experiment:
    """See the module's text.

    Attributes:
        rows: options by row, those of every row among them.
        paper: the paper's figure by row, where there is one.
    """

    name: str
    title: str
    source: str
    rows: dict[str, dict[str, Any]]
    paper: dict[str, str]

    def runs(self, seeds: Sequence[int], rows: Sequence[str] | None, overrides: Sequence[str]) -> list[Run]:
        """Every row with every seed; where it has a choice of learning rates, with each of them.

        Args:
            overrides: options that win over the rows', each as `name=value`; a list as `name=[1, 2]`.

        Raises:
            SystemExit: there is no row of that name, or an override is none.
        """
        changed = {}
        for word in overrides:
            name, sign, value = word.partition("=")
            if not sign or name in ("seed", "output_dir", "config"):
                raise SystemExit(f"--override takes name=value, and not of seed, output_dir or config: {word!r}")
            changed[name] = yaml.safe_load(value)
        chosen = list(self.rows) if rows is None else list(rows)
        unknown = [row for row in chosen if row not in self.rows]
        if unknown:
            raise SystemExit(f"{self.name} has no row {unknown[0]!r}; they are {', '.join(self.rows)}")
        runs = []
        for row in chosen:
            options = {**self.rows[row], **changed}
            own = options.pop("long_problems", {}), options.pop("proof", None), options.pop("shared_dataset", False)
            rates = options.get("learning_rate")
            choices = [{"learning_rate": rate} for rate in rates] if isinstance(rates, list) else [{}]
            for chosen_rate in choices:
                run = Run(row, {**options, **chosen_rate}, *own, len(choices) > 1)
                runs += map(run.with_seed, dict.fromkeys(seeds))
        return runs


def names() -> list[str]:
    """The experiments that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_experiment(name: str, paper_sized: bool) -> Experiment:
    """Reads an experiment.

    Raises:
        SystemExit: there is no such experiment, its file has a field that none has, or it has no paper-sized options.
    """
    if name not in names():
        raise SystemExit(f"there is no experiment {name!r}; they are {', '.join(names())}")
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    unknown = sorted(set(content) - _FIELDS)
    if unknown:
        raise SystemExit(
            f"{name}.yaml has an unknown field {unknown[0]!r}; the fields are {', '.join(sorted(_FIELDS))}"
        )
    common = {"config": content["config"], **content.get("options", {})}
    if paper_sized:
        if "paper_sized" not in content:
            raise SystemExit(f"the paper has no shapes for {name}: leave out --paper_sized")
        common |= content["paper_sized"]
    rows = content.get("rows") or _combinations(content["grid"])
    paper = {row: options["paper"] for row, options in rows.items() if "paper" in options}
    options = {row: {k: v for k, v in {**common, **own}.items() if k != "paper"} for row, own in rows.items()}
    return Experiment(name, content["title"], content["source"], options, paper)


def _combinations(grid: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    chosen = [dict(zip(grid, values)) for values in product(*grid.values())]
    return {", ".join(f"{name} {value}" for name, value in options.items()): options for options in chosen}
