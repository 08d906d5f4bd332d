"""recipes/sft.py fine-tunes a checkpoint of mamba_ssm, which comes without a tokenizer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from dataset_builders.catalog import load_task
from dataset_builders.mixture import Share
from hf_toolssm import ToolMambaConfig, ToolMambaForCausalLM
from hf_toolssm.errors import TokenizerNeededError, UnsafeTrainingError
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer

ROOT = Path(__file__).parents[2]
LAYERS = 1
ADDITION = [Share(load_task("addition"), "local", 5, 1.0)]


@pytest.fixture
def native(tmp_path, addition):
    """A checkpoint in mamba_ssm's format for 24 tokens, without a tokenizer; and a tokenizer's folder."""
    model = ToolMambaForCausalLM(ToolMambaConfig(vocab_size=24, hidden_size=16, num_hidden_layers=LAYERS))
    folder, tokenizer = tmp_path / "native", tmp_path / "tokenizer"
    folder.mkdir()
    weights = {name.replace("embeddings.", "embedding."): value for name, value in model.state_dict().items()}
    torch.save(weights, folder / "pytorch_model.bin")
    config = {"d_model": 16, "n_layer": LAYERS, "vocab_size": 23, "ssm_cfg": {}, "pad_vocab_size_multiple": 8}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    build_task_tokenizer(addition.cells("local"), []).save_pretrained(tokenizer)
    return str(folder), str(tokenizer)


def test_without_a_tokenizer_it_says_at_once_how_to_name_one(sft, native, monkeypatch, tmp_path):
    model, _ = native
    arguments = ["sft.py", "--model", model, "--output_dir", str(tmp_path / "output")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(TokenizerNeededError, match="--tokenizer FOLDER_OR_ID"):
        sft.main()
    assert not (tmp_path / "output").exists()  # no dataset was built


def test_a_tokenizer_is_a_checkpoints_own(sft, native, addition):
    model, tokenizer = native
    with pytest.raises(UnsafeTrainingError, match="leave out --tokenizer, or add --model"):
        sft.tokenizer_of(sft.RecipeArguments(tokenizer=tokenizer))
    recipe = sft.RecipeArguments(model=model, tokenizer=tokenizer)
    larger = sft.tokenizer_of(recipe)
    larger.add_tokens([f"more {index}" for index in range(20)])
    with pytest.raises(
        UnsafeTrainingError, match=f"the tokenizer has {len(larger)} tokens and the checkpoint only 24"
    ):
        sft.model_and_tokenizer(recipe, ADDITION, larger)


def test_the_model_is_the_checkpoint_with_tool_tokens(sft, native, addition):
    model, tokenizer = native
    recipe = sft.RecipeArguments(model=model, tokenizer=tokenizer)
    loaded, known = sft.model_and_tokenizer(recipe, ADDITION, sft.tokenizer_of(recipe))
    trained = len(AutoTokenizer.from_pretrained(tokenizer))
    stored = torch.load(Path(model) / "pytorch_model.bin")["backbone.embedding.weight"]
    assert torch.equal(loaded.get_input_embeddings().weight[:trained], stored[:trained])
    assert loaded.config.tool_token_ids["<|read_1|>"] == known.convert_tokens_to_ids("<|read_1|>") >= trained


@pytest.mark.slow
def test_it_trains_and_is_saved_as_any_other(native, tmp_path):
    model, tokenizer = native
    command = [sys.executable, "recipes/sft.py", "--config", "recipes/configs/addition_cpu.yaml", "--model", model]
    command += ["--tokenizer", tokenizer, "--output_dir", str(tmp_path / "output")]
    command += ["--max_steps", "2", "--num_examples", "64", "--eval_num_problems", "2", "--eval_lengths", "2"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    trained = ToolMambaForCausalLM.from_pretrained(tmp_path / "output")
    problem = AutoTokenizer.from_pretrained(tmp_path / "output")(["7+5="], return_tensors="pt")
    assert trained.generate(**problem, max_new_tokens=5).shape[1] > problem["input_ids"].shape[1]
