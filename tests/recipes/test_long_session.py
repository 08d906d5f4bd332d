"""One session, turn by turn, says by tenths what was right, how fast it was, and what memory it took."""

import json

import pytest
from conftest import ROOT, import_recipe, random_model, run_script

from dataset_builders.catalog import load_task
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    folder, task = tmp_path_factory.mktemp("untrained"), load_task("last_write")
    tokenizer = build_task_tokenizer(task.cells("store"), task.make_tools("store"))
    random_model(tokenizer, task.tools("store")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def session(model, output, *words):
    """What is written, and the recipe's exit status."""
    code = 0
    try:
        run_script("recipes/long_session.py", "--model", model, "--output", output, *words)
    except SystemExit as ended:
        code = ended.code
    return json.loads((output / "session.json").read_text(encoding="utf-8")), code


def test_tenths_add_up_and_a_model_that_errs_is_said_to(untrained, tmp_path):
    found, code = session(untrained, tmp_path / "out", "--task", "last_write", "--tokens", "20000")
    assert (len(found["parts"]), found["whole"]) == (10, True)
    assert found["tokens"] == sum(part["tokens"] for part in found["parts"]) >= 20_000
    assert all(part["tokens"] >= 2_000 for part in found["parts"])
    assert (found["right"], code) == (0, 1)
    assert found["asked"] > 0


def test_a_session_ends_where_its_time_or_memory_ends(untrained, tmp_path):
    for number, words in enumerate((["--seconds", "0"], ["--memory_mib", "1"])):
        found, _ = session(untrained, tmp_path / str(number), "--task", "last_write", *words)
        assert (len(found["parts"]), found["parts"][0]["turns"], found["whole"]) == (1, 1, False)


def test_what_is_fed_again_changes_no_answer(untrained, tmp_path):
    words = ["--task", "last_write", "--tokens", "3000"]
    once, again = (session(untrained, tmp_path / said, *words, "--feeds_again", said)[0] for said in ("false", "true"))
    kept = ("turns", "tokens", "asked", "right")
    assert [[part[k] for k in kept] for part in once["parts"]] == [[part[k] for k in kept] for part in again["parts"]]


def test_a_user_that_dies_is_said_to_and_ends_no_session_early(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")  # where its process finds the recipe
    recipe = import_recipe("long_session")
    with pytest.raises(SystemExit, match="user's process has died, exit status 1"):
        list(recipe.said_elsewhere("no_such_task", "anywhere", "store", "2 pairs, 1 queries; seed 0"))
    said = list(recipe.said_elsewhere("last_write", "anywhere", "store", "2 pairs, 1 queries; seed 0"))
    assert said == list(load_task("last_write").dialogue("2 pairs, 1 queries; seed 0", "store"))


@pytest.mark.slow
def test_a_model_of_at_most_three_pairs_is_right_in_a_session_of_many_more(tmp_path):
    config = ["--config", "recipes/configs/last_write_cpu.yaml", "--train_max_length", "3", "--num_examples", "2000"]
    few = ["--max_steps", "600", "--eval_lengths", "3", "--num_proc", "1", "--output_dir", tmp_path / "model"]
    run_script("recipes/sft.py", *config, *few)
    found, code = session(tmp_path / "model", tmp_path / "out", "--tokens", "200000")
    assert code == 0
    assert found["asked"] > 200
    assert found["beyond_store_mib"] < 16
