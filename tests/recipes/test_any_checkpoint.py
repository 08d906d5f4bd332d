"""A checkpoint of any architecture learns to call tools, in full or by a LoRA, and is the same in a fresh process."""

import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, run_script
from small_models import small_model
from transformers import AutoTokenizer, BertConfig

from dataset_builders import build
from hf_toolssm import Renderer, generate_with_tools
from hf_toolssm.errors import UnsupportedArchitectureError
from hf_toolssm.models.architectures import load_model

NAMES = ("mamba", "falcon_mamba", "falcon_h1", "bamba", "granite_moe_hybrid", "granite_hybrid_with_rope")
NAMES += ("nemotron_h", "zamba2", "lfm2", "qwen3_5")
EACH = ["mamba2", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES)]
PROBLEMS = ["12+3=", "7+5=", "90+90="]

FRESH = """
import json, sys
from test_any_checkpoint import generated

print(json.dumps([generated(folder) for folder in sys.argv[1:]]))
"""


def generated(folder):
    """What a saved model writes and calls, told nothing but its folder."""
    model, tokenizer = load_model(folder), AutoTokenizer.from_pretrained(folder)
    prompts = Renderer(tokenizer).prompts(PROBLEMS)
    result = generate_with_tools(model, **prompts, max_new_tokens=40, return_dict_in_generate=True)
    return [result.sequences.tolist(), result.tool_calls]


def in_a_fresh_process(*folders):
    code = f"import sys; sys.path[:0] = {[str(ROOT / 'tests' / 'recipes'), str(ROOT / 'tests')]!r}\n" + FRESH
    command = [sys.executable, "-c", code, *map(str, folders)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, encoding="utf-8", cwd=ROOT).stdout)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    words = ["--train-max-length", "2", "--num-examples", "64", "--num-validation", "8", "--num-proc", "1"]
    build.main(["addition", "--output", str(folder), *words])
    return folder


def fine_tune(base, rank, rows, output):
    """Runs the recipe and returns what it printed."""
    words = ["--model", base, "--dataset", rows, "--train_max_length", 2, "--output_dir", output, "--lora_rank", rank]
    words += ["--max_steps", 60, "--per_device_train_batch_size", 8, "--save_strategy", "no"]
    words += ["--learning_rate", 3e-2 if rank else 1e-2]
    words += ["--eval_lengths", 2, "--eval_num_problems", 2, "--use_cpu", "true", "--report_to", "none"]
    return run_script("recipes/sft.py", *words, "--num_proc", 1, "--disable_tqdm", "true", "--logging_steps", 60)


@pytest.mark.parametrize("name", EACH)
def test_it_trains_merges_saves_and_calls_tools(name, rows, byte_tokenizer, tmp_path):
    base, folders = tmp_path / "base", {rank: tmp_path / f"rank_{rank}" for rank in (0, 8)}
    small_model(name, byte_tokenizer, []).save_pretrained(base)
    byte_tokenizer.save_pretrained(base)
    before = load_model(base).state_dict()
    shares = {}
    for rank, folder in folders.items():
        said = fine_tune(base, rank, rows, folder)
        trained, total, share, layers, of = re.search(
            r"([\d,]+) of ([\d,]+) parameters \(([\d.]+)%\) train, in (\d+) of (\d+) layers", said
        ).groups()
        shares[rank] = float(share)
        assert layers == of
        model, results = load_model(folder), json.loads((folder / "results.json").read_text(encoding="utf-8"))
        assert results["base_model"] == str(base)
        assert "peft" not in type(model).__module__
        after = model.state_dict()
        assert after.keys() == before.keys()
        learned = {key for key in after if changes(after[key], before[key]) and ".weight" in key}
        assert len(learned) >= int(layers)
    assert shares[0] == 100
    assert 1 < shares[8] < 50
    here = [generated(folder) for folder in folders.values()]
    assert in_a_fresh_process(*folders.values()) == here
    assert all(sum(calls) > 10 for _, calls in here)


def test_a_checkpoint_that_cannot_work_through_tools_is_refused_before_rows_are_built(byte_tokenizer, tmp_path):
    byte_tokenizer.save_pretrained(tmp_path / "base")
    small_model("rwkv", byte_tokenizer, []).save_pretrained(tmp_path / "base")
    words = ["--model", tmp_path / "base", "--output_dir", tmp_path / "tuned", "--use_cpu", "true"]
    with pytest.raises(UnsupportedArchitectureError, match="RwkvForCausalLM takes neither"):
        run_script("recipes/sft.py", *words)
    BertConfig().save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"model_type": "vit"}), encoding="utf-8")
    with pytest.raises(UnsupportedArchitectureError, match="no causal language model"):
        run_script("recipes/sft.py", *words)
    assert not (tmp_path / "tuned").exists()


def changes(after, before):
    rows = min(len(after), len(before)) if after.ndim else 1
    return not torch.equal(after[:rows] if after.ndim else after, before[:rows] if before.ndim else before)
