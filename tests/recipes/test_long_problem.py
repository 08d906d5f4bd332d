"""One long problem is interrupted, even by `kill -9`, and goes on to the result of an undisturbed run."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, random_model, run_script
from transformers import AutoTokenizer

from dataset_builders.catalog import load_task
from hf_toolssm.evaluation import evaluate_free_running
from hf_toolssm.models.architectures import load_model

TOKENS = 20_000


@pytest.fixture
def folder(tokenizer, specs, tmp_path):
    """A model that never ends by itself, and reads and walks with its first pointer only."""
    model = random_model(tokenizer, specs, tie_word_embeddings=False)
    never = ["<|end|>", *(f"<|{verb}_{pointer}|>" for verb in ("read", "left", "right") for pointer in (2, 3))]
    with torch.no_grad():
        model.lm_head.weight[tokenizer.convert_tokens_to_ids([*never, "<|new_pointer|>", "<|read_1|>"])] = 0
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(["<|left_1|>", "<|right_1|>"])] = 0
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def command(folder, output, *options):
    words = ["recipes/long_problem.py", "--model", f"{folder}/model", "--length", "20", "--output", str(output)]
    return [*words, "--max_new_tokens", str(TOKENS), *options]


def result(output):
    content = json.loads((output / "certificate.json").read_text(encoding="utf-8"))
    names = ("tokens", "answer_sha256", "tool_calls", "exact", "complete", "right_answers", "first_wrong_symbol")
    return {name: content[name] for name in names}


def kill_after_a_save(output, words):
    """Runs a command until it has saved its session, and kills it."""
    process = subprocess.Popen([sys.executable, *words, "--save_seconds", "0"], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (output / "session.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "certificate.json").exists()


def test_a_killed_run_goes_on_to_the_same_result(folder):
    killed, undisturbed = folder / "killed", folder / "undisturbed"
    kill_after_a_save(killed, command(folder, killed))
    for output in (killed, undisturbed):
        run_script(*command(folder, output))
    assert result(killed) == result(undisturbed)
    assert result(killed)["tokens"] == TOKENS
    assert not result(killed)["exact"]
    with pytest.raises(SystemExit, match="another problem"):
        run_script(*command(folder, killed, "--seed", "1"))


@pytest.mark.slow
def test_a_problem_of_many_turns_is_said_turn_by_turn_and_goes_on_where_it_was_killed(tmp_path):
    """Beside the evaluation, which says the same turns in one go and keeps nothing."""
    model, task = tmp_path / "model", ["--task", "last_write", "--variant", "state"]
    shape = ["--hidden_size", "32", "--num_hidden_layers", "1", "--max_steps", "60", "--num_examples", "300"]
    config = ["--config", "recipes/configs/associative_recall_cpu.yaml", "--train_max_length", "3"]
    run_script("recipes/sft.py", *config, *task, *shape, "--eval_lengths", "2", "--output_dir", str(model))
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    problem = "300 pairs, 300 queries, tested; seed 5"

    def words(output):
        return [
            "recipes/long_problem.py",
            "--model",
            str(model),
            "--problem",
            problem,
            "--output",
            str(output),
            "--max_new_tokens",
            "200000",
        ]

    kill_after_a_save(killed, words(killed))
    for output in (killed, undisturbed):
        run_script(*words(output))
    assert result(killed) == result(undisturbed)
    claim = json.loads((killed / "certificate.json").read_text(encoding="utf-8"))
    assert claim["resumed"] == 1
    assert (claim["turns"], claim["answers"]) == (600, 300)
    assert not claim["exact"]

    tokenizer, reference = AutoTokenizer.from_pretrained(model), load_task("last_write").solve(problem, "state")
    measured = evaluate_free_running(load_model(str(model)), tokenizer, "length_300", 300, [reference])
    assert measured.right_answers == claim["right_answers"]
    run_script("recipes/certificate.py", str(killed / "certificate.json"), "--model", str(model))


def test_a_problem_that_a_check_decides_is_not_run_here(folder, capsys):
    with pytest.raises(SystemExit):
        run_script(*command(folder, folder / "out"), "--task", "code_fixing", "--variant", "interactive")
    assert "use recipes/evaluate.py" in capsys.readouterr().err
