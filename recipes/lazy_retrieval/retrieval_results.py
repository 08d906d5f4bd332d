"""What was measured of controllers and lazy retrieval, as tables and as a picture; see measure_retrieval.py."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hf_toolssm.evaluation.report import markdown_table, write_json

RATES = [at / 20 for at in range(21)]
"""Of calls, at which curves are drawn."""

Run = Mapping[str, Any]


def write_results(output: Path, runs: Sequence[Run]) -> None:
    """Writes `results.json`, `results.md` and `calls.png` of all runs, one a seed and weight."""
    write_json(output / "results.json", {"runs": runs})
    parts = [
        "Median of the seeds, in brackets the worst.",
        _by_weight(runs),
        "State alone and store, by the number of pairs, the share of right answers:",
        _by_load(runs),
        "How well a rule tells what the state knows, pooled over all loads, and within the load where the state alone "
        "is right nearest to half of the time:",
        _rules(runs),
        "Answers out of the store for 35% of the questions, where the state could answer about 70%:",
        _answerable(runs),
        "Lazily, with a calibrated threshold:",
        _promises(runs),
    ]
    text = "\n\n".join(parts) + "\n"
    (output / "results.md").write_text(text, encoding="utf-8")
    _draw(output / "calls.png", runs)
    print(text)


def _over_seeds(runs: Sequence[Run], what: Callable[[Run], float | None], least_is_worst: bool = True) -> str:
    """The median and the worst."""
    found = [value for value in map(what, runs) if value is not None]
    if not found:
        return "-"
    worst = min(found) if least_is_worst else max(found)
    return f"{median(found):.3f} ({worst:.3f})"


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
        rows.append([f"{weight:g}", str(len(of)), state, store, pooled, within, joint])
    columns = ["lambda", "seeds", "state", "store", "AUROC", "AUROC within", "AUROC of the one trained with it"]
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
    for weight, of in _weights(runs).items():
        for run in of:
            pairs, said = run["promises"], run.get("conversations", {})
            spoken = [f"{said[way]['accuracy']:.3f} / {said[way]['calls']:.2f}" if said else "-" for way in _WAYS]
            beyond = run.get("beyond the promise", {}).get("wrong")
            kept = [f"{pairs['broken']} of {pairs['pairs']}", str(pairs["without a promise"])]
            rows.append([f"{weight:g}", str(run["seed"]), *kept, *spoken, "-" if beyond is None else f"{beyond:.3f}"])
    columns = ["lambda", "seed", "promise broken", "none made", *(f"{way}: right / calls" for way in _WAYS)]
    return markdown_table([*columns, "wrong beyond its loads"], rows)


_WAYS = ("always", "lazily", "never")


def _draw(path: Path, runs: Sequence[Run]) -> None:
    """Accuracy against the share of questions that are asked of the store, by rule; of the first weight and seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = runs[0]["answerable"]
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for name, curve in found["curves"].items():
        axes.plot(RATES, curve, label=name, linewidth=2.5 if name == "controller" else 1.2)
    axes.set_xlabel("share of questions asked of the store")
    axes.set_ylabel("answers that are right")
    axes.set_title(f"{min(found['loads'])} to {max(found['loads'])} pairs, lambda {runs[0]['lambda']:g}")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
