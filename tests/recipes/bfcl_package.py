"""A package of our own in the place of bfcl-eval, for the worker's Python."""

import json
import os


def lines(values):
    return "\n".join(map(json.dumps, values))


def install(files, folder, monkeypatch):
    """Writes the package's files, texts by their path in it, where Python finds them."""
    for name, text in files.items():
        path = folder / "bfcl_eval" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
