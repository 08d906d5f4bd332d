"""Results as people and programs read them: a table, `results.json`, `length_generalization.png`."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from hf_toolssm.evaluation.exactness import LengthResult
from hf_toolssm.files import write_atomically

REPORT_FILES = ("results.json", "training.json", "length_generalization.png")
"""What a finished training says of itself, beside the card."""

_PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate", "numba")


def hardware() -> dict[str, Any]:
    """The machine that a figure was measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def resident_mib() -> float:
    """Memory that this process holds."""
    return psutil.Process().memory_info().rss / 2**20


def peak_memory_mib() -> int:
    """The most memory that this process has held, in MiB."""
    if sys.platform == "win32":
        return round(psutil.Process().memory_info().peak_wset / 2**20)
    import resource  # Unix only

    unit = 1 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file that is there whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def training_facts(model: str) -> dict[str, Any]:
    """What `recipes/sft.py` wrote beside a model in a folder; nothing for any other."""
    path = Path(model) / "training.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def weights_digest(model: PreTrainedModel) -> str:
    """The SHA-256 of all weights, by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def table(results: Sequence[LengthResult]) -> str:
    """The results as aligned text, one problem set a line."""
    rows = [("problem set", "length", "problems", "answer", "trajectory", "tokens/s", "mode", "first error")]
    for r in results:
        speed = f"{r.tokens / max(r.seconds, 1e-9):,.0f}"
        compared = "" if r.trajectory_accuracy is None else f"{r.trajectory_accuracy:.3f}"
        answers = f" ({r.right_answers:,}/{r.num_answers:,})" if r.num_answers != r.num_problems else ""
        accuracy = (f"{r.answer_accuracy:.3f}{answers}", compared)
        rows.append((r.problem_set, str(r.length), str(r.num_problems), *accuracy, speed, r.mode, _error_text(r)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def _error_text(result: LengthResult) -> str:
    error = result.first_error
    if result.late_calls:
        return f"{result.late_calls:,} calls took too long: measure again where nothing else runs"
    if error is None:
        return "-"
    return f"token {error.position}: {error.found} for {error.expected} after {' '.join(error.context)}"


def plot_by_length(results: Sequence[LengthResult], trained_length: int | None, unit: str, path: Path) -> None:
    """Draws accuracy over length, with the training maximum marked.

    Args:
        results: the plain test sets, one per length.
        trained_length: the longest training problem; None if unknown.
        unit: of the lengths, for the axis.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure  # no global state, no display

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(results, key=lambda r: r.length)
    lengths = [r.length for r in ordered]
    compared = [(r.length, r.trajectory_accuracy) for r in ordered if r.trajectory_accuracy is not None]
    axes.plot(
        lengths, [r.answer_accuracy for r in ordered], "o-", color="#1f77b4", label="answer" if compared else "passes"
    )
    if compared:
        axes.plot(*zip(*compared), "x--", color="#d62728", label="whole trajectory")
    if trained_length is not None:
        axes.axvspan(1, trained_length, color="0.85", label=f"trained on at most {trained_length}")
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(f"length of the problem in {unit}")
    axes.set_ylabel(f"{'exact' if compared else 'solved'}, of {ordered[0].num_problems} problems")
    axes.set_title(f"{ordered[0].mode} accuracy by length")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=150)


def write_report(
    folder: Path, by_length: Sequence[LengthResult], adversarial: Sequence[LengthResult], about: Mapping[str, Any]
) -> None:
    """Writes `results.json` and, for plain test sets, `length_generalization.png`.

    Args:
        folder: created if need be.
        by_length: the plain test sets.
        adversarial: the adversarial ones.
        about: where the model comes from (task, seed, ...); `unit` and `train_max_length` label the picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **about,
        "hardware": hardware(),
        "by_length": [result.to_dict() for result in by_length],
        "adversarial": [result.to_dict() for result in adversarial],
    }
    write_json(folder / "results.json", content)
    if by_length:
        picture = folder / "length_generalization.png"
        plot_by_length(by_length, about.get("train_max_length"), about.get("unit", "tokens"), picture)
