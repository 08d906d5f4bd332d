"""Conversations about documented functions: half of the functions are in no row, and no question of BFCL's is read."""

import json
import random
import sys

import pytest
from bfcl_package import install, lines
from conftest import import_recipe, run_script
from datasets import load_dataset
from jsonschema import validate
from test_bfcl import STAND_IN
from test_sft_messages import dataset, trained  # noqa: F401 - fixtures

FOLDER = "recipes/function_calling"
VERBS = ("Calculates", "Fetch", "Searches", "Retrieves", "Pass", "Tries", "Books", "Removes")
NOUNS = ("sum", "weather", "museum", "orbit", "recipe")
WORDS = [
    "red",
    "old",
    "near",
    "far",
    "good",
    "bad",
    "early",
    "late",
    "long",
    "short",
    "north",
    "south",
    "round",
    "flat",
    "new",
    "warm",
    "cold",
    "free",
    "full",
    "empty",
]
SCHEMAS = [
    {"type": "string", "description": "a name, such as 'Ada Lovelace'"},
    {"type": "string", "enum": ["small", "large"]},
    {"type": "integer"},
    {"type": "float"},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "integer"}},
    {"type": "tuple", "items": {"type": "float"}},
    {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}},
]


def document(verb, noun, at):
    own = {f"part_{number}": SCHEMAS[(at + number) % len(SCHEMAS)] for number in range(3)}
    more = {"deep": {"type": "dict", "properties": {"a": {"type": "string"}}}}  # optional, and never spoken of
    parameters = {"type": "dict", "properties": own | more, "required": ["part_0"]}
    seen = " ".join(random.Random(f"{verb} {noun}").sample(WORDS, 6))
    text = f"{verb} the {noun} {seen}. It is quick."
    return {"name": f"{verb.lower()}.{noun}", "description": text, "parameters": parameters}


DOCUMENTS = [document(verb, noun, at) for at, verb in enumerate(VERBS) for noun in NOUNS]
LONG = {**DOCUMENTS[0], "name": "long", "description": "Does it. " * 200}
DEEP = {**DOCUMENTS[1], "name": "deep"}
DEEP["parameters"] = {**DEEP["parameters"], "required": ["deep"]}
AGAIN = {**DOCUMENTS[2], "name": "again"}
WRONG = {**DOCUMENTS[3], "name": "wrong", "description": "Counts what is wrong."}
WRONG["parameters"] = {"type": "dict", "properties": {"n": {"type": "integer", "enum": ["1"]}}, "required": ["n"]}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """The rows, and which functions are of which half."""
    entries = [
        {"id": str(at), "question": [[{"role": "user", "content": "THE QUESTION"}]], "function": [each]}
        for at, each in enumerate([*DOCUMENTS, LONG, DEEP, AGAIN, WRONG])
    ]
    java = [{"id": "0", "question": [[]], "function": [{**DOCUMENTS[0], "name": "in.java"}]}]
    files = {
        "data/BFCL_v4_multiple.json": lines(entries[:20]),
        "data/BFCL_v4_live_relevance.json": lines(entries[20:]),
    }
    files["data/BFCL_v4_simple_java.json"] = lines(java)
    install(STAND_IN | files, tmp_path / "package", monkeypatch)
    words = ["--bfcl_python", sys.executable, "--output", tmp_path / "rows", "--num-examples", "60"]
    printed = run_script(f"{FOLDER}/documented.py", *words)
    parts = json.loads((tmp_path / "rows" / "documents.json").read_text(encoding="utf-8"))
    return load_dataset(str(tmp_path / "rows"), data_files="train.parquet", split="train"), parts, printed


def test_functions_that_are_held_out_are_in_no_row(rows):
    found, parts, printed = rows
    training, held_out = ({each["name"] for each in parts[part]} for part in ("training", "held out"))
    assert min(len(training), len(held_out)) > 10
    assert not training & held_out
    assert not {"long", "deep", "wrong", "in.java"} & (training | held_out)
    told = {part: {each["description"] for each in parts[part]} for part in parts}
    assert not told["training"] & told["held out"]
    assert all(len(told[part]) == len(parts[part]) for part in parts)  # else a request would not tell which is meant
    offered = [{tool["function"]["name"] for tool in row["tools"]} for row in found]
    assert all(len(names) == 4 for names in offered)
    assert set.union(*offered) <= training
    assert printed.startswith("60 conversations in ")
    assert f"about {len(training)} functions; {len(held_out)} others are held out" in printed
    assert "THE QUESTION" not in json.dumps(found["messages"][:])


def test_a_rows_calls_are_what_its_schemas_allow_and_its_user_says_every_argument(rows):
    found, _, _ = rows
    calls = 0
    for row in found:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        for user, said in zip(row["messages"], row["messages"][1:]):
            for call in (said.get("tool_calls") or []) if said["role"] == "assistant" else []:
                name, arguments = call["function"]["name"], call["function"]["arguments"]
                validate(arguments, schemas[name])
                calls += 1
                for parameter, value in arguments.items():
                    assert parameter.replace("_", " ") in user["content"]
                    for each in value if isinstance(value, list) else [value]:
                        text = str(each).lower() if isinstance(each, bool) else str(each)
                        assert text in user["content"]
    assert calls > 60


@pytest.mark.parametrize(
    ("description", "asked"),
    [
        ("Retrieves the rates. More.", "retrieve the rates"),
        ("Searches e.g.the web; quickly", "search e.g.the web"),
        ("Pass it", "pass it"),
        ("Tries again (twice)", "try again"),
        ("This function adds a list (ACL) to the U.S. map. It is slow.", "add a list to the U.S. map"),
        ("", ""),
    ],
)
def test_a_descriptions_first_sentence_becomes_a_request(description, asked):
    documented = import_recipe("documented", FOLDER)
    assert documented.sentence({"description": description}) == asked


def test_a_request_of_the_test_has_a_wording_that_no_row_has(rows):
    found, parts, _ = rows
    documented = import_recipe("documented", FOLDER)
    asked = [m["content"] for row in found for m in row["messages"] if m["role"] == "user"]
    assert not any(", where part" in text for text in asked)
    problems = documented.test_problems(parts["held out"], 30)
    assert problems[:20] == documented.test_problems(parts["held out"], 20)
    for index in range(30):
        problem = problems[index]
        assert problem.right in problem.offered
        assert problem.request.count("where part") == len(problem.arguments) > 0
        words = documented.sentence(problem.right.document).split()
        assert sum(word in problem.request for word in words) >= documented.FEWEST_WORDS
    function = documented.DocumentedFunction(DOCUMENTS[4])
    rng = random.Random(0)
    assert {len(function.draw(rng)) for _ in range(50)} == {1, 2, 3}


def test_both_halves_are_measured(rows, trained, tmp_path):  # noqa: F811
    words = ["--model", trained, "--num-problems", "2", "--documents", tmp_path / "rows", "--output", tmp_path / "out"]
    printed = run_script(f"{FOLDER}/measure_calls.py", *words)
    told = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["evaluation_documented"]
    groups = [(each["group"], each["num_problems"]) for each in told["groups"]]
    assert groups == [("documented, training", 2), ("documented, held out", 2)]
    assert "--documents" in told["command"]
    assert "| documented, held out | 2 |" in printed
    assert "| documented, held out | 2 |" in (trained / "README.md").read_text(encoding="utf-8")
