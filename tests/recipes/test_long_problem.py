"""One long problem is interrupted, even by `kill -9`, and goes on to the result of an undisturbed run."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, random_model, run_script

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
    return {name: content[name] for name in ("tokens", "answer_sha256", "tool_calls", "exact", "first_wrong_symbol")}


def test_a_killed_run_goes_on_to_the_same_result(folder):
    killed, undisturbed = folder / "killed", folder / "undisturbed"
    words = [sys.executable, *command(folder, killed, "--save_seconds", "0")]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / "session.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "certificate.json").exists()
    for output in (killed, undisturbed):
        run_script(*command(folder, output))
    assert result(killed) == result(undisturbed)
    assert result(killed)["tokens"] == TOKENS
    assert not result(killed)["exact"]
    with pytest.raises(SystemExit, match="another problem"):
        run_script(*command(folder, killed, "--seed", "1"))
