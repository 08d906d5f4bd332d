"""BFCL's tools, run by BFCL's own code in an environment of its own. `bfcl_replay.py` starts this file.

It is asked in lines of JSON on stdin, `[name, arguments]` of a method of `Backend`, and writes what that returns as a
line of JSON to stdout. It imports nothing of ours.
"""

import json
import sys
from pathlib import Path
from typing import Any

import bfcl_eval
from bfcl_eval.constants.default_prompts import DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC
from bfcl_eval.constants.executable_backend_config import MULTI_TURN_FUNC_DOC_FILE_MAPPING
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import state_checker

DATA = Path(bfcl_eval.__file__).parent / "data"


class Backend:
    """The episodes of one category, and the environment of the one that was begun last."""

    def load(self, category: str) -> list[dict[str, Any]]:
        """The category's episodes: id, environment classes, and of every turn what the user says and the calls of the
        ground truth as Python source. Where BFCL hands out functions that it had held back, the user says so."""
        self._category = category
        self._entries = {entry["id"]: entry for entry in _lines(DATA / f"BFCL_v4_multi_turn_{category}.json")}
        truths = _lines(DATA / "possible_answer" / f"BFCL_v4_multi_turn_{category}.json")
        self._truths = {truth["id"]: truth["ground_truth"] for truth in truths}
        return [
            {
                "id": name,
                "classes": entry["involved_classes"],
                "turns": list(zip(map(_said, entry["question"]), self._truths[name], strict=True)),
            }
            for name, entry in self._entries.items()
        ]

    def documents(self, class_name: str) -> list[dict[str, Any]]:
        """What BFCL tells a model of each function of a class."""
        return _lines(DATA / "multi_turn_func_doc" / MULTI_TURN_FUNC_DOC_FILE_MAPPING[class_name])

    def expect(self, episode: str, refused: list[int]) -> list[str]:
        """The observations of the ground truth's calls but for these, counted over all turns, as BFCL's own executor
        makes them; and for `as_expected` its end state."""
        for name in [name for name in vars(multi_turn_utils) if name.endswith("_instance")]:
            delattr(multi_turn_utils, name)  # where the executor keeps every environment that it ever built
        self._episode, self._begun = episode, 0
        calls = [call for turn in self._truths[episode] for call in turn]
        observations, self._expected = self._execute(
            "expected", [call for at, call in enumerate(calls) if at not in refused]
        )
        return observations

    def begin(self) -> None:
        """A new environment for the episode of the last `expect`, from its initial configuration."""
        self._begun += 1
        self._instances = self._execute(f"begun{self._begun}", [])[1]

    def call(self, class_name: str, method: str, arguments: dict[str, Any]) -> str:
        """Calls a method, and returns its observation as BFCL's executor writes it."""
        try:
            result = getattr(self._instances[class_name], method)(**arguments)
        except Exception as error:
            return f"Error during execution: {error}"
        try:
            return json.dumps(result) if isinstance(result, dict) else str(result)
        except TypeError:  # a number of mpmath's
            return str(result)

    def as_expected(self) -> bool:
        """Whether the environment is now in the ground truth's end state, as BFCL's checker compares them."""
        return state_checker(self._instances, self._expected)["valid"]

    def _execute(self, run: str, calls: list[str]) -> tuple[list[str], dict[str, Any]]:
        entry = self._entries[self._episode]
        return multi_turn_utils.execute_multi_turn_func_call(
            calls,
            entry["initial_config"],
            entry["involved_classes"],
            model_name=run,
            test_entry_id=self._episode,
            long_context=self._category == "long_context",
        )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _said(messages: list[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages) or DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what a tool prints is no answer
    backend = Backend()
    for request in sys.stdin:
        name, arguments = json.loads(request)
        print(json.dumps(getattr(backend, name)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
