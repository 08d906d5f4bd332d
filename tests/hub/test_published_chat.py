"""Models of conversations and of plain texts are published with card and tokenizer, and work from the Hub."""

import json
import random
import subprocess
import sys

from conftest import ROOT, run_script
from datasets import Dataset

ROWS = ["recipes/function_calling/conversations.py", "--num-examples", "16"]
TRAINING = ["recipes/sft.py", "--max_steps", "1", "--num_proc", "1", "--per_device_train_batch_size", "4"]
QUIET = ["--report_to", "none", "--disable_tqdm", "true"]
SMALL = ["--hidden_size", "16", "--vocabulary_size", "300"]


def printed_by(card, hub, old, new):
    """What the code on a card prints in a fresh process, with its last line changed."""
    code = card.split("```python\n")[1].split("```")[0]
    assert old in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace(old, new)],
        env=hub.environment,
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_that_chats_is_pushed_by_its_training_and_its_card_runs_in_a_fresh_process(hub, tmp_path):
    run_script(*ROWS, "--output", tmp_path / "rows")
    words = [*TRAINING, *SMALL, *QUIET, "--dataset", tmp_path / "rows", "--output_dir", tmp_path / "chat"]
    run_script(*words, "--push_to_hub", "true", "--hub_model_id", hub.repo_id("chat"))
    files = hub.commits("chat")[0].tree
    assert {"chat_template.jinja", "tokenizer_config.json", "model.safetensors", "results.json"} <= {*files}
    assert "training_args.bin" not in files
    card = files["README.md"].content.decode()
    assert f'path = "{hub.repo_id("chat")}"' in card
    assert int(printed_by(card, hub, ").content)", ", max_new_tokens=3).tokens)")) > 3  # those of the question too


def test_a_pretrained_model_is_pushed_by_its_training_and_fine_tuned_from_the_hub(hub, tmp_path):
    rng = random.Random(0)
    for split, count in (("train", 40), ("validation", 2)):
        texts = [{"text": " ".join(rng.choices(("a", "letter", "is", "sent"), k=200))} for _ in range(count)]
        (tmp_path / "corpus").mkdir(exist_ok=True)
        Dataset.from_list(texts).to_parquet(tmp_path / "corpus" / f"{split}.parquet")
    words = ["recipes/pretraining/pretrain.py", "--corpus", tmp_path / "corpus", "--output_dir", tmp_path / "small"]
    words += ["--num_hidden_layers", "1", "--block", "64", "--num_proc", "1", "--max_steps", "2", *SMALL, *QUIET]
    words += ["--state_passing_share", "0", "--push_to_hub", "true", "--hub_model_id", hub.repo_id("small")]
    run_script(*words)
    card = hub.commits("small")[0].tree["README.md"].content.decode()
    bits = json.loads((tmp_path / "small" / "results.json").read_text(encoding="utf-8"))["bits_per_byte"]
    assert f"| this model | {bits['model']} |" in card
    assert "tool-use" not in card
    assert "- type: bits_per_byte" in card
    assert len(printed_by(card, hub, "max_new_tokens=40", "max_new_tokens=3")) > len("def main(")
    run_script(*ROWS, "--output", tmp_path / "rows")
    words = [*TRAINING, *QUIET, "--model", hub.repo_id("small"), "--chat_template", "toolssm"]
    run_script(*words, "--dataset", tmp_path / "rows", "--output_dir", tmp_path / "tuned")
    told = json.loads((tmp_path / "tuned" / "results.json").read_text(encoding="utf-8"))
    assert (told["base_model"], told["base_model_revision"]) == (hub.repo_id("small"), hub.commits("small")[0].oid)
