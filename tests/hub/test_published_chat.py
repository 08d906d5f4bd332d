"""A model that chats is published with its templates and card, and chats from the Hub in a fresh process."""

import subprocess
import sys

from conftest import ROOT, run_script

ROWS = ["recipes/function_calling/conversations.py", "--num-examples", "16"]
TRAINING = ["recipes/sft.py", "--max_steps", "1", "--num_proc", "1", "--per_device_train_batch_size", "4"]
TRAINING += ["--hidden_size", "16", "--vocabulary_size", "300", "--report_to", "none", "--disable_tqdm", "true"]


def test_a_model_that_chats_is_pushed_by_its_training_and_its_card_runs_in_a_fresh_process(hub, tmp_path):
    run_script(*ROWS, "--output", tmp_path / "rows")
    words = [*TRAINING, "--dataset", tmp_path / "rows", "--output_dir", tmp_path / "chat"]
    run_script(*words, "--push_to_hub", "true", "--hub_model_id", hub.repo_id("chat"))
    files = hub.commits("chat")[0].tree
    assert {"chat_template.jinja", "tokenizer_config.json", "model.safetensors", "results.json"} <= {*files}
    assert "training_args.bin" not in files
    code = files["README.md"].content.decode().split("```python\n")[1].split("```")[0]
    assert f'path = "{hub.repo_id("chat")}"' in code
    code = code.replace(").content)", ", max_new_tokens=3).tokens)")
    done = subprocess.run(
        [sys.executable, "-c", code], env=hub.environment, capture_output=True, encoding="utf-8", cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3  # those of the question too
