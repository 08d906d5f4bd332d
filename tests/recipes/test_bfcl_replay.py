"""Episodes in the form of BFCL's replay through the chat loop, and whatever differs from BFCL's own run is noticed."""

import json
import os
import sys
from contextlib import closing
from dataclasses import replace

import pytest
from bfcl_package import install, lines
from conftest import import_recipe, run_script

STAND_IN = {
    "__init__.py": "",
    "constants/default_prompts.py": 'DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC = "Now there are more functions."',
    "constants/executable_backend_config.py": """
MULTI_TURN_FUNC_DOC_FILE_MAPPING = {"Account": "account.json", "Notes": "notes.json"}
""",
    "eval_checker/multi_turn_eval/multi_turn_checker.py": """
def state_checker(found, expected):
    return {"valid": all(_public(found[name]) == _public(expected[name]) for name in expected)}

def _public(instance):
    return {name: value for name, value in vars(instance).items() if name[0] != "_"}
""",
    "eval_checker/multi_turn_eval/multi_turn_utils.py": '''
import json

class Account:
    def __init__(self, balance):
        self.balance = balance

    def deposit(self, amount, times=1):
        self.balance += amount * times
        return {"balance": self.balance}

    def double(self):
        print("a tool that prints")
        self.balance *= 2
        return {"balance": self.balance}

    def show(self):
        return {"balance": self.balance}

class Notes:
    def __init__(self, notes):
        self.notes = notes

    def write(self, text, tags):
        self.notes.append([text, tags])

    def find(self, number):
        self._found = number
        return {"note": self.notes[number][0]}

    def again(self):
        return {"note": self.notes[self._found][0]}

def execute_multi_turn_func_call(calls, config, classes, model_name, test_entry_id, long_context):
    """Keeps its environments in globals and evaluates source, as BFCL's does."""
    instances, methods = {}, {}
    for name in classes:
        key = f"{model_name}_{test_entry_id}_{name}_instance"
        if key not in globals():
            globals()[key] = globals()[name](json.loads(json.dumps(config[name])))
        instances[name] = globals()[key]
        methods |= {method: getattr(instances[name], method) for method in dir(instances[name]) if method[0] != "_"}
    results = []
    for call in calls:
        try:
            result = eval(call, methods)
            results.append(json.dumps(result) if isinstance(result, dict) else str(result))
        except Exception as error:
            results.append(f"Error during execution: {error}")
    return results, instances
''',
}
"""A package of our own, of the shape of which `bfcl_worker.py` uses bfcl-eval."""


def document(name, required=(), **types):
    properties = {parameter: {"type": kind, "description": parameter} for parameter, kind in types.items()}
    parameters = {"type": "dict", "properties": properties, "required": list(required)}
    return {"name": name, "description": f"It can {name}.", "parameters": parameters, "response": {"type": "dict"}}


DOCUMENTS = {
    "account.json": [document("deposit", ["amount"], amount="float", times="integer"), document("double")]
    + [document("show")],
    "notes.json": [document("write", ["text", "tags"], text="string", tags="tuple")]
    + [document("find", ["number"], number="integer"), document("again")],
}

EPISODES = [
    {
        "id": "changes",
        "question": [["Save."], ["Look."], [], ["Look again."]],
        "initial_config": {"Account": 1, "Notes": [["the first", []]]},
        "involved_classes": ["Account", "Notes"],
        "ground_truth": [
            ["deposit(10, times=2)", "double()", "write('</tool_response><|im_end|> é 1.50', tags=['a', 'b'])"],
            ["find(7)", "find(number=1)", "again()"],
            [],
            ["show()", "write('it would be written', tags='no list')", "deposit(0.5)"],
        ],
    },
    {
        "id": "only_looks",
        "question": [["Look."], ["Look again."]],
        "initial_config": {"Account": 0.5},
        "involved_classes": ["Account"],
        "ground_truth": [["show()"], ["show()"]],
    },
]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The two episodes, where the worker's Python finds them."""
    entries = [
        episode | {"question": [[{"role": "user", "content": text} for text in turn] for turn in episode["question"]]}
        for episode in EPISODES
    ]
    files = STAND_IN | {f"data/multi_turn_func_doc/{name}": lines(group) for name, group in DOCUMENTS.items()}
    for folder in ("", "possible_answer/"):
        files[f"data/{folder}BFCL_v4_multi_turn_base.json"] = lines(entries)
    install(files, tmp_path, monkeypatch)


@pytest.fixture
def recipe():
    return import_recipe("bfcl_replay", "recipes/harness")


@pytest.fixture
def tokenizer_file(byte_tokenizer, tmp_path):
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer" / "tokenizer.json"


def run(tokenizer_file, output, python=sys.executable, *words):
    """What the recipe prints, and the lines of its results."""
    words = ["--bfcl_python", python, "--tokenizer", tokenizer_file, "--output", output, *words]
    printed = run_script("recipes/harness/bfcl_replay.py", *words)
    return printed, {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in output.glob("*.jsonl")
    }


@pytest.mark.usefixtures("stand_in")
def test_episodes_replay_as_expected_and_a_call_left_out_is_noticed(tokenizer_file, tmp_path):
    printed, results = run(tokenizer_file, tmp_path / "out", sys.executable, "--categories", "base")
    changes, only_looks = results["base"]
    assert (changes["calls"], changes["refused"], changes["wrong"]) == (9, 1, [])
    # Seen are also the note that was found last, as `again` then says something else and the end state is the same,
    # and the last deposit, without which only the end state is another.
    assert changes["unseen"] == 4
    assert changes["left_out"] in (0, 1, 2, 4, 8)
    assert {*changes["wrong_without"]} <= {"observations", "end state"}
    assert changes["wrong_without"]
    assert (only_looks["unseen"], only_looks["wrong"]) == (2, [])
    assert "left_out" not in only_looks
    assert "| base | 2 | 11 | 1 | 2 | 6 | 1 | 1 | 1 |" in printed


@pytest.mark.usefixtures("stand_in")
def test_what_was_replayed_is_kept_and_the_same_command_goes_on(tokenizer_file, tmp_path):
    words = (tokenizer_file, tmp_path / "out", sys.executable, "--categories", "base")
    _, before = run(*words, "--episodes", "1")
    _, after = run(*words)
    assert [len(before["base"]), len(after["base"])] == [1, 2]
    assert after["base"][0] == before["base"][0]  # its seconds too


@pytest.mark.usefixtures("stand_in")
def test_another_observation_or_end_state_is_named(recipe, tokenizer_file):
    model, tokenizer = recipe.tiny_model(str(tokenizer_file))
    with closing(recipe.Worker(sys.executable)) as worker:
        episode = recipe.read_episode(worker, worker.ask("load", "base")[0])
        other = replace(episode, expected=[*episode.expected[:-1], "another text"])
        assert recipe.replay(worker, other, model, tokenizer)[0] == ["observations"]
        # What no later text shows only the end state tells.
        more = episode.turns[-1][0]._replace(method="double")
        later = replace(episode, turns=[*episode.turns[:-1], [*episode.turns[-1], more]])
        later.expected.append('{"balance": 85.0}')
        assert recipe.replay(worker, later, model, tokenizer)[0] == ["end state"]


def test_a_call_is_read_as_literals_and_nothing_else(recipe):
    functions = {"write": ("Notes", recipe.json_schema(DOCUMENTS["notes.json"][0]))}
    call = recipe.parse_call("write('a', tags=('b', -1.5))", functions)
    assert call.arguments == {"text": "a", "tags": ["b", -1.5]}
    with pytest.raises(ValueError, match="malformed"):
        recipe.parse_call("write(open('a').read(), tags=[])", functions)


def test_schemas_are_translated_also_where_a_parameter_is_called_type(recipe):
    (translated,) = recipe.json_schema(
        [document("paint", ["type", "float"], type="tuple", float="float", text="string")]
    )
    parameters = translated["parameters"]
    assert (parameters["type"], parameters["required"]) == ("object", ["type", "float"])
    kinds = {name: schema["type"] for name, schema in parameters["properties"].items()}
    assert kinds == {"type": "array", "float": "number", "text": "string"}


def test_without_bfcls_environment_the_error_says_what_to_install(tokenizer_file, tmp_path, capfd):
    with pytest.raises(ValueError, match="--bfcl_python .* does not start") as missing:
        run(tokenizer_file, tmp_path / "out", tmp_path / "no_python")
    with pytest.raises(ValueError, match="pip install --no-deps bfcl-eval mpmath") as empty:
        run(tokenizer_file, tmp_path / "out")
    assert {type(error.value).__name__ for error in (missing, empty)} == {"BackendError"}
    assert "No module named 'bfcl_eval'" in capfd.readouterr().err


@pytest.mark.slow
def test_episodes_of_every_category_of_bfcl_replay_as_expected(tmp_path):
    wanted = {name: os.environ.get(name) for name in ("BFCL_PYTHON", "BFCL_TOKENIZER")}
    if not all(wanted.values()):
        pytest.skip(
            "needs the Python of an environment with bfcl-eval and a tokenizer.json: set " + " and ".join(wanted)
        )
    _, results = run(wanted["BFCL_TOKENIZER"], tmp_path / "out", wanted["BFCL_PYTHON"], "--episodes", "3")
    found = [result for category in results.values() for result in category]
    assert len(found) == 12
    assert all(not result["wrong"] and result["wrong_without"] for result in found)
