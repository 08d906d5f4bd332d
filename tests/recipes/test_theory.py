"""The theorems' runs and the locality report say what is so, on small settings."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(script, *words):
    command = [sys.executable, f"recipes/theory/{script}.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")


def test_string_matching_is_exact_where_all_pairs_are_covered_and_keeps_its_bound(tmp_path):
    words = ["--task", "binary_increment", "--length", "30", "--sizes", "1", "4", "32", "--repeats", "4"]
    done = run("string_matching", *words, "--num_problems", "8", "--output", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "string_matching_binary_increment"
    result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    few, _, many = result["rows"]
    assert few["coverage"]["worst"] < 1
    assert many["coverage"]["worst"] == many["accuracy"]["worst"] == many["covers_all"] == 1.0
    assert [row["bound"] for row in result["rows"]] == sorted(row["bound"] for row in result["rows"])
    assert result["enough_by_the_bound"] <= 32
    assert (folder / "coverage.png").stat().st_size > 0


def test_string_matching_needs_a_machine(tmp_path):
    assert "addition is no Turing machine" in run("string_matching", "--task", "addition").stderr


def test_a_state_of_few_bits_gives_at_most_that_many_answers(tmp_path):
    small = ["hidden_size=16", "max_steps=2", "num_examples=50", "save_steps=2", "eval_lengths=[2]"]
    command = [sys.executable, "recipes/reproduce/run.py", "regimes", "--seeds", "0", "--output", str(tmp_path)]
    rows = ["no chain of thought", "no chain of thought, reversed answer", "chain of thought without a tool"]
    command += ["--rows", *rows, "single-turn calculator", "--override", *small, "num_proc=1", "eval_num_problems=2"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    words = ["--runs", tmp_path / "regimes", "--lengths", "2", "3", "--bits", "2", "--num_problems", "40"]
    done = run("fixed_state", *words, "--output", tmp_path / "theory")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "theory" / "results.json").read_text(encoding="utf-8"))["rows"]
    assert len(found) == 4 * 2 * 2
    assert all(row["exact"] <= row["distinct"] <= row["bound"] for row in found)
    assert {row["bound"] for row in found if row["bits"] == 2} == {4}
    assert {row["problems"] for row in found} == {40}


def test_the_locality_report_shows_k_and_the_contexts_that_need_more(tmp_path):
    done = run("locality", "--task", "addition", "--variants", "local", "two_pointers", "--rows", "10", "--k", "7")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("local, length 5: k = 7")
    assert lines[1].strip() == "0 contexts of 7 tokens do not say what follows"
    assert any("<|read_2|> =  ->  <|left_2|>" in line and "<|right_2|>" in line for line in lines)


def test_the_locality_of_a_built_dataset(tmp_path):
    command = [sys.executable, "-m", "dataset_builders.build", "palindrome", "--output", str(tmp_path / "rows")]
    subprocess.run([*command, "--train-max-length", "8", "--num-examples", "50"], cwd=ROOT, check=True)
    done = run("locality", "--dataset", tmp_path / "rows")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "max_length_8, train: k = 5; 50 trajectories" in done.stdout
    (tmp_path / "empty").mkdir()
    assert "holds no dataset" in run("locality", "--dataset", tmp_path / "empty").stderr
