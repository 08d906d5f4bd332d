"""Median and worst of several seeds, as a table, as JSON and as a picture."""

from pathlib import Path
from statistics import median
from typing import Any

from experiment import Experiment
from hf_toolssm.evaluation.report import markdown_table, write_json
from hf_toolssm.files import write_atomically
from proofs import proofs_table


def summarize(experiment: Experiment, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What `results.json` of every run says, by row and problem set.

    An accuracy is the share of problems whose answer and, where it was compared, trajectory are exact, free-running. A
    set on which not every seed was measured is left out. Where the first seed was run at several learning rates, the
    row is of the best, and the figures of the others stand beside it.
    """
    rows = {}
    for row, found in results.items():
        runs, rejected = _at_the_best_rate(found)
        by_set: dict[str, list[dict[str, Any]]] = {}
        for result in runs:
            for measured in (*result["by_length"], *result["adversarial"]):
                by_set.setdefault(_set_name(result, measured), []).append(measured)
        by_set = {name: found for name, found in by_set.items() if len(found) == len(runs)}
        plain = [(_set_name(runs[0], measured), measured["length"]) for measured in runs[0]["by_length"]]
        rows[row] = {
            "parameters": runs[0]["num_parameters"],
            "seeds": [result["seed"] for result in runs],
            "problems": runs[0]["by_length"][0]["num_problems"],
            "trained_up_to": runs[0]["train_max_length"],
            "median_minutes": _median_minutes(runs),
            "lengths": {name: length for name, length in plain if name in by_set},
            "accuracy": {name: _over_seeds(found) for name, found in by_set.items()},
            "paper": experiment.paper.get(row),
        }
        if all("proof" in result for result in runs):
            rows[row]["proofs"] = [result["proof"] for result in runs]
        if rejected:
            rows[row] |= {"learning_rate": runs[0]["learning_rate"], "rejected": list(map(_rejected, rejected))}
    every = [result for runs in results.values() for result in runs]
    single = [_set_name(r, m) for r in every for m in r["by_length"] if "trajectory_accuracy" not in m]
    # Of what was trained on one machine and measured on another, both.
    hardware = [h for result in every for h in (result["hardware"], result.get("training_hardware")) if h]
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "hardware": sorted({f"{h['gpu'] or h['cpu']}, {h['cores']} cores, {h['memory_gib']} GiB" for h in hardware}),
        "commits": sorted({result["commit"] or "unknown" for result in every}),
        "single": list(dict.fromkeys(single)),
        "checked": any(m.get("trajectory_accuracy", 1) is None for r in every for m in r["by_length"]),
        "rows": rows,
    }


def fitness(result: dict[str, Any]) -> tuple[float, float]:
    """By what a learning rate is the best of several: what is exact of the measured lengths up to the longest in
    training, added up, and among equals the lower loss of the training (since it was resumed, if it was).
    """
    trained = [measured for measured in result["by_length"] if measured["length"] <= (result["train_max_length"] or 0)]
    return sum(map(_accuracy, trained)), -result["train_loss"]


def _at_the_best_rate(found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The results of a row without those that its first seed had at worse learning rates, and these."""
    tried = [result for result in found if result["seed"] == found[0]["seed"]]
    best = max(tried, key=fitness)
    rejected = [result for result in tried if result is not best]
    return [result for result in found if result not in rejected], rejected


def _rejected(result: dict[str, Any]) -> dict[str, Any]:
    measured = (*result["by_length"], *result["adversarial"])
    return {
        **{fact: result[fact] for fact in ("learning_rate", "seed", "train_loss")},
        "accuracy": {_set_name(result, each): _accuracy(each) for each in measured},
    }


def _set_name(result: dict[str, Any], measured: dict[str, Any]) -> str:
    """A problem set's name without the variant, whose problems are those of every other."""
    return measured["problem_set"].removeprefix(f"{result['variant']}_")


def _median_minutes(runs: list[dict[str, Any]]) -> float | None:
    """Of the runs that were not interrupted; the others know only the minutes since."""
    whole = [result["train_minutes"] for result in runs if not result["resumed"]]
    return round(median(whole), 1) if whole else None


def _over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every seed's figures on a set: median and worst accuracy, and the first wrong token of the worst."""
    accuracies = list(map(_accuracy, found))
    worst = min(accuracies)
    return {
        "median": median(accuracies),
        "worst": worst,
        "seeds": accuracies,
        "first_error": found[accuracies.index(worst)]["first_error"],
    }


def _accuracy(measured: dict[str, Any]) -> float:
    # Of a long problem, and where a check decides, no trajectory was compared.
    shares = measured["answer_accuracy"], measured.get("trajectory_accuracy")
    return min(share for share in shares if share is not None)


def write_summary(summary: dict[str, Any], folder: Path) -> str:
    """Writes `summary.json`, `table.md` and `accuracy.png`, and returns the table."""
    write_json(folder / "summary.json", summary)
    text = _table(summary)
    write_atomically(folder / "table.md", text)
    _draw(summary, folder / "accuracy.png")
    return text


def _table(summary: dict[str, Any]) -> str:
    rows = summary["rows"]
    plain = {name: length for row in rows.values() for name, length in row["lengths"].items()}
    every = list(dict.fromkeys(name for row in rows.values() for name in row["accuracy"]))
    sets = sorted(plain, key=plain.__getitem__) + [name for name in every if name not in plain]
    rates = ["learning rate"] * any("learning_rate" in row for row in rows.values())
    head = ["", "parameters", *rates, "minutes", "trained up to", *sets, "the paper"]
    lines = []
    for label, row in rows.items():
        cells = []
        for name in sets:
            found = row["accuracy"].get(name)
            cells.append("" if found is None else f"{found['median']:.2f} / {found['worst']:.2f}")
        rate = [str(row.get("learning_rate", "")) for _ in rates]
        facts = [f"{row['parameters']:,}", *rate, str(row["median_minutes"] or ""), str(row["trained_up_to"] or "")]
        lines.append([label, *facts, *cells, row["paper"] or ""])
    body = f"{markdown_table(head, lines)}\n{proofs_table(rows)}"
    seeds = sorted({len(row["seeds"]) for row in rows.values()})
    problems = sorted({row["problems"] for row in rows.values()})
    commits = ", ".join(f"{commit[:10]}{commit[40:]}" for commit in summary["commits"])  # the end says "-dirty"
    single = ", ".join(summary["single"])
    note = f"Of {single} one problem a seed, whose answer is compared.\n\n" if single else ""
    what = "Problems that pass the task's check" if summary["checked"] else "Exact answers and trajectories"
    return (
        f"# {summary['title']}\n\n{summary['source']}. {what}, free-running: median "
        f"/ worst of {' or '.join(map(str, seeds))} seeds, {' or '.join(map(str, problems))} problems a set; "
        f"{'; '.join(summary['hardware'])}; commit {commits}.\n\n{note}{body}{_first_errors(rows)}"
    )


def _first_errors(rows: dict[str, Any]) -> str:
    """For each row that is not all exact, the first wrong token of its worst seed on its easiest set with one."""
    lines = []
    for label, row in rows.items():
        for name in sorted(row["lengths"], key=row["lengths"].__getitem__):
            error = row["accuracy"][name]["first_error"]
            if error is not None:
                context = " ".join(error["context"]).replace("\n", "\\n")
                wrong = f"`{error['found']}` for `{error['expected']}`"
                lines.append(f"- {label}, {name}: token {error['position']}, {wrong} behind `{context}`")
                break
    return "".join(f"{line}\n" for line in ("", "First wrong tokens:", "", *lines)) if lines else ""


_LINES = ("-", "--", ":")


def _draw(summary: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure  # no global state, no display

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    lengths: set[int] = set()
    styles: dict[str, str] = {}
    colors: dict[str, str] = {}
    for name, row in summary["rows"].items():
        group, _, kind = name.rpartition("/")
        style = styles.setdefault(group, _LINES[len(styles) % len(_LINES)])
        color = colors.setdefault(kind, f"C{len(colors)}")
        measured, found = list(row["lengths"].values()), [row["accuracy"][s] for s in row["lengths"]]
        lengths |= set(measured)
        medians, worst = [a["median"] for a in found], [a["worst"] for a in found]
        axes.plot(measured, medians, f"o{style}", color=color, markersize=4, label=name)
        axes.fill_between(measured, worst, medians, color=color, alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    decades = max(lengths) >= 1_000 * min(lengths)  # a tick at every length would not fit
    ticks = [10**n for n in range(len(str(max(lengths))))] if decades else sorted(lengths)
    axes.set_xticks(ticks, [f"{length:,}" for length in ticks])
    axes.minorticks_off()
    trained = {row["trained_up_to"] for row in summary["rows"].values()}
    if len(trained) == 1 and None not in trained:
        low, high = axes.get_xlim()
        axes.axvspan(low, *trained, color="0.9", zorder=0, label="lengths in training")
        axes.set_xlim(low, high)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("length of the problem")
    axes.set_ylabel(f"{'passes' if summary['checked'] else 'exact'}: median, shaded to worst seed")
    axes.set_title(summary["title"])
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
