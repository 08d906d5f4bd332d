"""BFCL's own code, asked from ours. It runs in an environment of its own: it pins versions that ours cannot have.

python -m venv bfcl && bfcl/bin/pip install --no-deps bfcl-eval mpmath
"""

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from hf_toolssm.errors import ToolSSMError


class BackendError(ToolSSMError):
    """BFCL's environment is missing, or what runs in it has ended."""


class Worker:
    """BFCL's tools in a process of their own; `bfcl_worker.Backend` says what it can be asked.

    Raises:
        BackendError: there is no such Python, it has no bfcl-eval, or a question ended it.
    """

    def __init__(self, python: str) -> None:
        self._python = python
        self._asking = threading.Lock()  # calls of several environments run side by side
        try:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).with_name("bfcl_worker.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            raise BackendError(f"--bfcl_python {python} does not start: {error}") from error

    def ask(self, name: str, *arguments: Any) -> Any:
        with self._asking:
            try:
                print(json.dumps([name, arguments]), file=self._process.stdin, flush=True)
                answer = self._process.stdout.readline()
            except BrokenPipeError:
                answer = ""
        if not answer:
            raise BackendError(
                f"BFCL's process has ended, for the reason above: if a module is missing, run `{self._python} -m pip "
                "install --no-deps bfcl-eval mpmath`"
            )
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def json_schema(part: Any) -> Any:
    """BFCL's schemas as JSON Schemas: some of its types have Python's names."""
    if isinstance(part, list):
        return [json_schema(each) for each in part]
    if not isinstance(part, dict):
        return part
    kind = part.get("type")  # no text where a parameter is called "type"
    translated = {key: json_schema(value) for key, value in part.items()}
    if kind == "any":
        del translated["type"]
    return translated | {"type": TYPES.get(kind, kind)} if isinstance(kind, str) and kind != "any" else translated
