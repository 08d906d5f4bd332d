"""A model's card, made of what its folder says was measured: no figure stands on it that is not in `results.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from hf_toolssm.errors import UnfinishedModelError
from hf_toolssm.files import write_atomically

CERTIFICATE = "certificate.json"
"""In a model's folder, the proof that `recipes/certify.py` wrote."""


def write_model_card(folder: Path, template: Path) -> Path:
    """Writes what `model_card` gives into the folder itself, as `README.md`, and returns its path."""
    path = folder / "README.md"
    write_atomically(path, model_card(folder, template))
    return path


def model_card(folder: Path, template: Path, repo_id: str | None = None) -> str:
    """The text of a trained model's card.

    Args:
        folder: holds `results.json` as `evaluation.report.write_report` writes it, `config.json`, and, where the model
            is proved, the `certificate.json` of `recipes/certify.py`.
        template: the Jinja template, `model_cards/template.md`.
        repo_id: where the model is loaded from in the card's example; by default the folder itself.

    Raises:
        UnfinishedModelError: the folder has no `results.json`, or a fact is missing there.
    """
    if not (folder / "results.json").exists():
        raise UnfinishedModelError(f"{folder} has no results.json: measure the model first, as recipes/sft.py does")
    results, config = read_json(folder / "results.json"), read_json(folder / "config.json")
    certificate = folder / CERTIFICATE
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    try:
        results["task"] = Path(results["task"]).stem  # a Turing machine of the user's own is named by its file
        return environment.from_string(template.read_text(encoding="utf-8")).render(
            results=results,
            config=config,
            layers=config.get("num_hidden_layers") or len(config["layers_block_type"]),  # Nemotron-H says each
            certificate=read_json(certificate) if certificate.exists() else {"proved": False},
            path=repo_id or ".",
            example=json.dumps(results["example_problem"]),
            metadata=_metadata(results, config, repo_id).to_yaml(),
        )
    except (KeyError, TypeError, jinja2.UndefinedError) as error:
        raise UnfinishedModelError(
            f"results.json or config.json of {folder} lacks what the card says ({type(error).__name__}: {error}): "
            "train and measure with recipes/sft.py"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model's folder.

    Raises:
        UnfinishedModelError: it is not whole.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UnfinishedModelError(
            f"{path} is no whole JSON file ({error}): delete it, and save or measure the model again"
        ) from error


def _metadata(results: Mapping[str, Any], config: Mapping[str, Any], repo_id: str | None) -> ModelCardData:
    """What the Hub reads, the measured figures among it; only names with a revision are those of repositories."""
    length = ["length-generalization"] if results["by_length"] else []
    bits = results.get("bits_per_byte")  # of a model that was trained on plain texts
    tools = [] if bits else ["tool-use"]
    name = repo_id.rpartition("/")[2] if repo_id else f"{config['model_type']}-{results['task']}"
    figures = [
        EvalResult(
            task_type="text-generation",
            task_name=f"{results['task']}, free-running with tools executed",
            dataset_type=results["task"],
            dataset_name=f"{results['task']}, {measured['num_problems']} problems",
            dataset_config=measured["problem_set"],
            dataset_split="test",
            metric_type="exact_match",
            metric_name=f"exact {what} at {measured['length']} {results['unit']}",
            metric_value=measured[figure],
        )
        for measured in results["by_length"] + results["adversarial"]
        for what, figure in (("answers", "answer_accuracy"), ("trajectories", "trajectory_accuracy"))
        if measured[figure] is not None
    ]
    if bits:
        figures.append(
            EvalResult(
                task_type="text-generation",
                dataset_type="text",
                dataset_name=f"{results['held_out_texts']:,} texts that are held out",
                metric_type="bits_per_byte",
                metric_name="bits per byte",
                metric_value=bits["model"],
            )
        )
    return ModelCardData(
        library_name="transformers",
        license="apache-2.0",
        pipeline_tag="text-generation",
        tags=[config["model_type"], *tools, *length, "hf_toolssm"],
        datasets=[results["dataset"]] if results.get("dataset_revision") else None,
        base_model=results["base_model"] if results.get("base_model_revision") else None,
        model_name=name,
        eval_results=figures,
    )
