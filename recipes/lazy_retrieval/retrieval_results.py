"""What was measured of controllers and lazy retrieval, as tables and as a picture; see measure_retrieval.py."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hf_toolssm.evaluation.report import markdown_table, write_json
from hf_toolssm.files import write_atomically

RATES = [at / 20 for at in range(21)]
"""Of calls, at which curves are drawn."""

Run = Mapping[str, Any]


def write_results(output: Path, runs: Sequence[Run], alpha: float, delta: float) -> None:
    """Writes `results.json`, `results.md` and `calls.png` of all runs, one a seed and weight."""
    write_json(output / "results.json", {"alpha": alpha, "delta": delta, "runs": runs})
    loads = {run["seed"]: f"{run['answerable']['loads']}, within {run['hardest load']}" for run in runs}
    parts = [
        "Median of the seeds, in brackets the least and the most. Loads, by seed and for all weights the same: "
        + "; ".join(f"{seed}: {of}" for seed, of in loads.items())
        + ".",
        "By lambda, the state alone and the store on those loads, how well a controller that is fitted afterwards "
        "tells what the state knows, pooled over all loads and within one, and the share of keys that a linear layer "
        "reads from the hidden states behind a question:",
        _by_weight(runs),
        "State alone and store, by the number of pairs, the share of right answers:",
        _by_load(runs),
        "How well a rule tells what the state knows. Of these the controllers, those fitted, and load and distance "
        "have seen labels:",
        _rules(runs),
        "Answers where 35% of the questions, those of the lowest scores, are asked of the store:",
        _answerable(runs),
        f"A promise of at most {alpha:g} of the answers wrong, to be broken with a probability of at most {delta:g}, "
        "on halves of one pool of sessions, and how much is wrong on loads that it does not cover:",
        _promises(runs),
        "Ordinary sessions, free-running, in which what was answered changes what comes next, so that no promise "
        "covers them; right answers, questions asked of the store, seconds:",
        _conversations(runs),
    ]
    text = "\n\n".join(parts) + "\n"
    write_atomically(output / "results.md", text)
    _draw(output / "calls.png", runs)
    print(text)


def _over_seeds(runs: Sequence[Run], what: Callable[[Run], float | None]) -> str:
    """The median, and the least and the most where there are several; "-" where a seed has none."""
    found = [what(run) for run in runs]
    if None in found:
        return "-"
    return f"{median(found):.3f}" + f" ({min(found):.3f} to {max(found):.3f})" * (len(found) > 1)


def _weights(runs: Sequence[Run]) -> dict[float, list[Run]]:
    return {weight: [run for run in runs if run["lambda"] == weight] for weight in sorted({r["lambda"] for r in runs})}


def _by_weight(runs: Sequence[Run]) -> str:
    """The sweep: what the dual objective changes."""
    rows = []
    for weight, of in _weights(runs).items():
        pooled, within, joint = (
            _over_seeds(of, lambda run, n=name, key=key: run["rules"].get(n, {}).get(key))
            for name, key in (
                ("controller", "auroc"),
                ("controller", "auroc_within"),
                ("controller, trained with the model", "auroc"),
            )
        )
        state = _over_seeds(of, lambda run: run["answerable"]["state"])
        store = _over_seeds(of, lambda run: run["answerable"]["store"])
        keys = _over_seeds(of, lambda run: run["keys read"])
        rows.append([f"{weight:g}", str(len(of)), state, store, pooled, within, joint, keys])
    columns = ["lambda", "seeds", "state", "store", "AUROC", "within", "AUROC of the one trained with it", "keys"]
    return markdown_table(columns, rows)


def _by_load(runs: Sequence[Run]) -> str:
    loads = sorted(map(int, runs[0]["state and store"]))
    rows = []
    for weight, of in _weights(runs).items():
        for way in ("state", "store"):
            cells = [_over_seeds(of, lambda r, n=str(load), w=way: r["state and store"][n][w]) for load in loads]
            rows.append([f"{weight:g}", way, *cells])
    return markdown_table(["lambda", "way", *map(str, loads)], rows)


def _rules(runs: Sequence[Run]) -> str:
    rows = []
    for weight, of in _weights(runs).items():
        for name in of[0]["rules"]:
            both = [_over_seeds(of, lambda r, n=name, k=key: r["rules"][n][k]) for key in ("auroc", "auroc_within")]
            rows.append([f"{weight:g}", name, *both])
    return markdown_table(["lambda", "rule", "AUROC", "AUROC within"], rows)


def _answerable(runs: Sequence[Run]) -> str:
    rows = []
    for weight, of in _weights(runs).items():
        for name in of[0]["answerable"]["rules"]:
            accuracy = _over_seeds(of, lambda r, n=name: r["answerable"]["rules"][n]["accuracy"])
            share = _over_seeds(
                of, lambda r, n=name: r["answerable"]["rules"][n]["accuracy"] / max(1e-9, r["answerable"]["store"])
            )
            rows.append([f"{weight:g}", name, accuracy, share])
    return markdown_table(["lambda", "rule", "accuracy", "of always asking"], rows)


def _promises(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        pairs, beyond = run["promises"], run["wrong beyond"]
        kept = [f"{pairs['broken']} of {pairs['pairs']}", str(pairs["without a promise"])]
        means = ["-" if each is None else f"{each:.3f}" for each in (pairs["accuracy"], pairs["calls"], beyond)]
        rows.append([f"{run['lambda']:g}", str(run["seed"]), *kept, *means])
    return markdown_table(["lambda", "seed", "broken", "none made", "right", "calls", "wrong beyond"], rows)


def _conversations(runs: Sequence[Run]) -> str:
    ways = list(dict.fromkeys(way for run in runs for way in run["conversations"]))
    rows = []
    for run in runs:
        found = [run["conversations"].get(way) for way in ways]
        cells = ["-" if f is None else f"{f['accuracy']:.3f} / {f['calls']:.2f} / {f['seconds']:.0f}" for f in found]
        rows.append([f"{run['lambda']:g}", str(run["seed"]), *cells])
    return markdown_table(["lambda", "seed", *ways], rows)


def _draw(path: Path, runs: Sequence[Run]) -> None:
    """Accuracy against the share of questions that are asked of the store, by rule; of the first weight and seed."""
    from matplotlib.figure import Figure  # no global state, no display

    found = runs[0]["answerable"]
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in found["curves"].items():
        axes.plot(RATES, curve, label=name, linewidth=2.5 if name == "controller" else 1.2)
    axes.set_xlabel("share of questions asked of the store")
    axes.set_ylabel("answers that are right")
    axes.set_title(f"{min(found['loads'])} to {max(found['loads'])} pairs, lambda {runs[0]['lambda']:g}")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
