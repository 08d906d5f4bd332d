"""Median and worst of several seeds, as a table, as JSON and as a picture."""

from pathlib import Path
from statistics import median
from typing import Any

from experiment import Experiment
from hf_toolssm.evaluation.report import markdown_table, write_json
from hf_toolssm.files import write_whole


def summarize(experiment: Experiment, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What `results.json` of every run says, by row and problem set.

    An accuracy is the share of problems of which answer and trajectory are exact, free-running.
    """
    rows = {}
    for row, runs in results.items():
        by_set: dict[str, list[tuple[float, dict[str, Any] | None]]] = {}
        for result in runs:
            for measured in (*result["by_length"], *result["adversarial"]):
                exact = min(measured["answer_accuracy"], measured["trajectory_accuracy"])
                by_set.setdefault(_set_name(result, measured), []).append((exact, measured["first_error"]))
        rows[row] = {
            "parameters": runs[0]["num_parameters"],
            "seeds": [result["seed"] for result in runs],
            "problems": runs[0]["by_length"][0]["num_problems"],
            "trained_up_to": runs[0]["train_max_length"],
            "median_minutes": _median_minutes(runs),
            "lengths": {_set_name(runs[0], measured): measured["length"] for measured in runs[0]["by_length"]},
            "accuracy": {name: _over_seeds(found) for name, found in by_set.items()},
            "paper": experiment.paper.get(row),
        }
    every = [result for runs in results.values() for result in runs]
    hardware = [result["hardware"] for result in every]
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "hardware": sorted({f"{h['gpu'] or h['cpu']}, {h['cores']} cores, {h['memory_gib']} GiB" for h in hardware}),
        "commits": sorted({result["commit"] or "unknown" for result in every}),
        "rows": rows,
    }


def _set_name(result: dict[str, Any], measured: dict[str, Any]) -> str:
    """A problem set's name without the variant, whose problems are those of every other."""
    return measured["problem_set"].removeprefix(f"{result['variant']}_")


def _median_minutes(runs: list[dict[str, Any]]) -> float | None:
    """Of the runs that were not interrupted; the others know only the minutes since."""
    whole = [result["train_minutes"] for result in runs if not result["resumed"]]
    return round(median(whole), 1) if whole else None


def _over_seeds(found: list[tuple[float, dict[str, Any] | None]]) -> dict[str, Any]:
    """Of every seed's accuracy and first wrong token: median and worst, and the wrong token of the worst."""
    accuracies = [accuracy for accuracy, _ in found]
    worst, error = min(found, key=lambda pair: pair[0])
    return {"median": median(accuracies), "worst": worst, "seeds": accuracies, "first_error": error}


def write_summary(summary: dict[str, Any], folder: Path) -> str:
    """Writes `summary.json`, `table.md` and `accuracy.png`, and returns the table."""
    write_json(folder / "summary.json", summary)
    text = _table(summary)
    write_whole(folder / "table.md", text)
    _draw(summary, folder / "accuracy.png")
    return text


def _table(summary: dict[str, Any]) -> str:
    rows = summary["rows"]
    plain = {name: length for row in rows.values() for name, length in row["lengths"].items()}
    every = list(dict.fromkeys(name for row in rows.values() for name in row["accuracy"]))
    sets = sorted(plain, key=plain.__getitem__) + [name for name in every if name not in plain]
    head = ["", "parameters", "minutes", "trained up to", *sets, "the paper"]
    lines = []
    for label, row in rows.items():
        cells = []
        for name in sets:
            found = row["accuracy"].get(name)
            cells.append("" if found is None else f"{found['median']:.2f} / {found['worst']:.2f}")
        facts = [f"{row['parameters']:,}", str(row["median_minutes"] or ""), str(row["trained_up_to"] or "")]
        lines.append([label, *facts, *cells, row["paper"] or ""])
    body = markdown_table(head, lines)
    seeds = sorted({len(row["seeds"]) for row in rows.values()})
    problems = sorted({row["problems"] for row in rows.values()})
    commits = ", ".join(f"{commit[:10]}{commit[40:]}" for commit in summary["commits"])  # the end says "-dirty"
    return (
        f"# {summary['title']}\n\n{summary['source']}. Exact answers and trajectories, free-running: median "
        f"/ worst of {' or '.join(map(str, seeds))} seeds, {' or '.join(map(str, problems))} problems a set; "
        f"{'; '.join(summary['hardware'])}; commit {commits}.\n\n{body}\n{_first_errors(rows)}"
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


def _draw(summary: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure  # no global state, no display

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lengths: set[int] = set()
    for name, row in summary["rows"].items():
        measured, found = list(row["lengths"].values()), [row["accuracy"][s] for s in row["lengths"]]
        lengths |= set(measured)
        (line,) = axes.plot(measured, [a["median"] for a in found], "o-", label=name)
        axes.plot(measured, [a["worst"] for a in found], "v:", color=line.get_color(), alpha=0.6)
    axes.set_xscale("log")
    axes.set_xticks(sorted(lengths), [f"{length:,}" for length in sorted(lengths)])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("length of the problem")
    axes.set_ylabel("exact: median (line), worst seed (dots)")
    axes.set_title(summary["title"])
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
