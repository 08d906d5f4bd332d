"""The theorems' runs and the locality report say what is so, on small settings."""

import json
import re

import pytest
from conftest import random_model, run_script

from dataset_builders.build import main as build
from dataset_builders.catalog import load_task
from hf_toolssm.errors import DatasetMismatchError
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.tools import make_tool


def test_string_matching_is_exact_where_all_pairs_are_covered_and_keeps_its_bound(tmp_path):
    words = ["--task", "binary_increment", "--length", "30", "--sizes", "1", "4", "32", "--repeats", "4"]
    words += ["--estimate", "1000", "--num_problems", "8", "--output", tmp_path]
    run_script("recipes/theory/string_matching.py", *words)
    folder = tmp_path / "string_matching_binary_increment"
    result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    few, _, many = result["rows"]
    assert few["coverage"]["worst"] < 1
    assert many["coverage"]["worst"] == many["accuracy"]["worst"] == many["covers_all"] == 1.0
    assert [row["bound"] for row in result["rows"]] == sorted(row["bound"] for row in result["rows"])
    assert result["enough_by_the_bound"] <= 32
    assert (folder / "coverage.png").stat().st_size > 0


def test_string_matching_needs_a_machine(capsys):
    with pytest.raises(SystemExit):
        run_script("recipes/theory/string_matching.py", "--task", "addition")
    assert "addition is no Turing machine" in capsys.readouterr().err


def test_a_state_of_few_bits_gives_at_most_that_many_answers(tmp_path):
    """Of any model: these have not even been trained."""
    addition = load_task("addition")
    for variant in ("no_cot", "reversed_answer", "plain_cot", "calculator"):
        specs, folder = addition.tools(variant), tmp_path / "regimes" / variant
        tokenizer = build_task_tokenizer(addition.cells(variant), [make_tool(spec) for spec in specs])
        random_model(tokenizer, specs).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "results.json").write_text(json.dumps({"seed": 0, "variant": variant}), encoding="utf-8")
    words = ["--runs", tmp_path / "regimes", "--lengths", "2", "3", "--bits", "2", "--num_problems", "40"]
    run_script("recipes/theory/fixed_state.py", *words, "--output", tmp_path / "theory")
    found = json.loads((tmp_path / "theory" / "results.json").read_text(encoding="utf-8"))["rows"]
    assert len(found) == 4 * 2 * 2
    assert all(row["exact"] <= row["distinct"] <= row["bound"] for row in found)
    assert max(row["distinct"] for row in found) > 4
    assert {row["bound"] for row in found if row["bits"] == 2} == {4}
    assert {row["problems"] for row in found} == {40}


def test_the_locality_report_shows_k_and_the_contexts_that_need_more():
    words = ["--task", "addition", "--variants", "local", "two_pointers", "--rows", "10", "--k", "7"]
    lines = run_script("recipes/theory/locality.py", *words).splitlines()
    assert lines[0].startswith("local, length 5: k = 7")
    assert lines[1].strip() == "0 contexts of 7 tokens do not say what follows"
    assert any("<|read_2|> =  ->  <|left_2|>" in line and "<|right_2|>" in line for line in lines)


def test_the_locality_of_a_built_dataset(tmp_path):
    rows = tmp_path / "rows"
    build(["palindrome", "--output", str(rows), "--train-max-length", "8", "--num-examples", "50"])
    said = run_script("recipes/theory/locality.py", "--dataset", rows)
    assert "max_length_8, train: k = 5; 50 trajectories" in said
    words = ["--train-max-length", "2", "--num-examples", "20"]
    build(["label_aggregation", "--output", str(tmp_path / "texts"), *words])
    said = run_script("recipes/theory/locality.py", "--dataset", tmp_path / "texts", "--rows", "20")
    assert re.search(r"k = \d+; 20 trajectories of at most [\d,]+ tokens", said), "rows of spans are characters"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetMismatchError, match="holds no dataset"):
        run_script("recipes/theory/locality.py", "--dataset", tmp_path / "empty")
