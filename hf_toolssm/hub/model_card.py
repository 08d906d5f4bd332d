"""A model's card, made of what its folder says was measured: no figure stands on it that is not in `results.json`."""

import json
from pathlib import Path

import jinja2

from hf_toolssm.files import write_whole


def write_model_card(folder: Path, template: Path) -> Path:
    """Writes `README.md` into a trained model's folder.

    Args:
        folder: holds `results.json` as `evaluation.report.write_report` writes it, and `config.json`.
        template: the Jinja template, `model_cards/template.md`.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: the folder has no `results.json`: measure the model first.
    """
    results = json.loads((folder / "results.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(template.read_text()).render(results=results, config=config)
    path = folder / "README.md"
    write_whole(path, text)
    return path
