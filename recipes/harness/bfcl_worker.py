"""BFCL's tools and scores, by BFCL's own code in an environment of its own. `bfcl_backend.py` starts this file.

It is asked in lines of JSON on stdin, `[name, arguments]` of a method of `Backend`, and writes what that returns as a
line of JSON to stdout. It imports nothing of ours.
"""

import json
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bfcl_eval
from bfcl_eval.constants.default_prompts import DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC
from bfcl_eval.constants.executable_backend_config import MULTI_TURN_FUNC_DOC_FILE_MAPPING
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import state_checker

DATA = Path(bfcl_eval.__file__).parent / "data"

MODEL = "toolssm"

_OFFERS_PYTHON = re.compile(
    r"BFCL_v4_(live_)?(simple|simple_python|multiple|parallel|parallel_multiple|irrelevance|relevance)"
)


class Backend:
    """The episodes of one category, and the environment of the one that was begun last."""

    def entries(self, category: str) -> list[dict[str, Any]]:
        """The entries of a category of one turn: id, messages, and the functions that are offered."""
        return [
            {"id": entry["id"], "messages": entry["question"][0], "functions": entry["function"]}
            for entry in _lines(DATA / f"BFCL_v4_{category}.json")
        ]

    def functions(self) -> list[dict[str, Any]]:
        """What the categories of one turn in Python offer, each name once."""
        files = [path for path in sorted(DATA.glob("BFCL_v4_*.json")) if _OFFERS_PYTHON.fullmatch(path.stem)]
        offered = [each for path in files for entry in _lines(path) for each in entry["function"]]
        return [*{each["name"]: each for each in offered}.values()]

    def truths(self, category: str) -> dict[str, Any]:
        """By id, the calls that are right, with the values that every argument may have; where no call is, nothing."""
        path = DATA / "possible_answer" / f"BFCL_v4_{category}.json"
        return {truth["id"]: truth["ground_truth"] for truth in _lines(path)} if path.exists() else {}

    def score(self, category: str, path: str) -> dict[str, str]:
        """What BFCL's checker says of every entry of a file of results: "" of one that is right, or what is wrong."""
        return self.judge(category, _lines(Path(path)))

    def judge(self, category: str, results: list[dict[str, Any]]) -> dict[str, str]:
        """The same of results, each with its id, as they stand in such a file."""
        checker, language = _checker()
        truths, offered = self._asked(category)
        found = {}
        for entry in results:
            name, result = entry["id"], entry["result"]
            calls = [] if isinstance(result, str) else [{n: json.loads(a) for n, a in each.items()} for each in result]
            if not truths:
                is_right = bool(calls) == ("irrelevance" not in category)
                found[name] = "" if is_right else "a call" if calls else "no call"
            elif not calls:
                found[name] = "no call"
            else:
                said = checker(offered[name], calls, truths[name], language, category, MODEL)
                found[name] = "" if said["valid"] else said["error_type"]
        return found

    @cache  # noqa: B019 - there is one backend, which a harness asks for every entry
    def _asked(self, category: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """By id, what is right in a category and what is offered."""
        return self.truths(category), {entry["id"]: entry["functions"] for entry in self.entries(category)}

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


@cache
def _checker() -> tuple[Any, Any]:
    """BFCL's comparison of calls with what is right, and the language of the categories that it is asked for here.

    Its module asks a table of models whether a model's functions are renamed. Making that table would import the
    clients of all of them; ours are not renamed.
    """
    table = ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {MODEL: SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    sys.modules[table.__name__] = table
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    return ast_checker, Language.PYTHON


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
