"""A LoRA trains linear layers and the tool tokens, nothing else, and merges exactly, in any architecture."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_distance
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import HYBRIDS, STOCK, small_model
from small_run import losses, make_trainer
from transformers import PhiConfig, PhiForCausalLM

from hf_toolssm import ToolMambaConfig, ToolMambaForCausalLM
from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model
from hf_toolssm.training.adapter_targets import adapter_targets, check_adapters
from hf_toolssm.training.lora import add_lora, complete_lora


def test_a_lora_trains_merges_exactly_and_leaves_the_rest(tmp_path):
    trainer = make_trainer(tmp_path, 16, 25, lora_rank=4, learning_rate=3e-2)
    model = trainer.model.get_base_model()
    tool_ids = sorted(model.config.tool_token_ids.values())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    assert losses(trainer)[-1] < 0.8 * losses(trainer)[0]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            assert parameter.abs().max() > 0, name  # every target has learned
        elif not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name

    ids = torch.randint(3, 20, (2, 30))
    trainer.model.eval()
    with torch.no_grad():
        adapted = trainer.model(ids).logits
        merged = trainer.model.merge_and_unload()
        assert type(merged) is ToolMambaForCausalLM
        assert (merged(ids).logits - adapted).abs().max() < 1e-4
    weight = merged.get_input_embeddings().weight
    assert merged.get_output_embeddings().weight.data_ptr() == weight.data_ptr()
    name = next(n for n in before if "embeddings" in n and before[n].shape == weight.shape)
    changed = (weight != before[name]).any(1).nonzero()[:, 0].tolist()
    assert set(changed) <= set(tool_ids)
    assert len(changed) > len(tool_ids) // 2


def test_the_projections_of_a_tool_mamba_are_targets(model):
    layers = model.config.num_hidden_layers
    found = sorted(name.rpartition(".")[2] for name in adapter_targets(model))
    assert found == sorted(["in_proj", "x_proj", "dt_proj", "out_proj"] * layers)


def test_a_lora_without_tool_tokens_or_rank_is_refused(model):
    with pytest.raises(UnsafeTrainingError, match="add_tool_tokens_to_model"):
        add_lora(ToolMambaForCausalLM(ToolMambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1)), 4)
    with pytest.raises(UnsafeTrainingError, match="at least 1"):
        add_lora(model, 0)


LINEAR = ["mamba", "mamba2", "falcon_h1", "gpt_neox"]
NEVER_TIED = ("nemotron_h", "kimi_linear", "bailing_hybrid")
MORE = [
    pytest.param(name, tied, marks=pytest.mark.slow)
    for name in (*STOCK, *HYBRIDS)
    for tied in (True, False)
    if name not in LINEAR and not (tied and name in NEVER_TIED)
]


@pytest.mark.parametrize(("name", "tied"), [(name, tied) for name in LINEAR for tied in (True, False)] + MORE)
def test_every_adapter_of_any_architecture_trains_merges_and_is_loaded_again(name, tied, tokenizer, specs, tmp_path):
    model = small_model(name, tokenizer, specs, tie_word_embeddings=tied)
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=0)
    base = copy.deepcopy(model)
    adapted = add_lora(model, 2)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.1 * torch.randn_like(parameter)
    ids = torch.randint(3, len(tokenizer), (2, 24))
    adapted.train()
    F.cross_entropy(adapted(ids, use_cache=False).logits.flatten(0, 1), ids.flatten()).backward()
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.abs().max() > 0] == []
    adapted.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        assert relative_distance(base(ids).logits, expected) > 1e-3
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        assert relative_distance(loaded(ids).logits, expected) < 1e-4
        merged = adapted.merge_and_unload()
        assert type(merged) is type(base)
        assert relative_distance(merged(ids).logits, expected) < 1e-4


@pytest.mark.slow
def test_a_head_that_only_the_config_calls_tied_is_refused(tokenizer, specs):
    model = small_model("nemotron_h", tokenizer, specs, tie_word_embeddings=True)
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=0)
    with pytest.raises(UnsafeTrainingError, match="says tie_word_embeddings=True"):
        add_lora(model, 2)


def test_rows_are_named_as_peft_names_them_and_a_head_with_a_bias_is_refused_only_where_they_train(tokenizer, specs):
    model = small_model("tool_mamba", tokenizer, specs)
    ids = sorted(model.config.tool_token_ids.values())
    completed = complete_lora(model, LoraConfig(trainable_token_indices={"embeddings": ids}))
    assert completed.trainable_token_indices == {"backbone.embeddings": ids}
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    phi = PhiForCausalLM(PhiConfig(**shape, intermediate_size=32))
    assert "lm_head" not in complete_lora(phi, LoraConfig(), ()).target_modules
    with pytest.raises(UnsafeTrainingError, match="has a bias"):
        complete_lora(phi, LoraConfig(), [3])


def test_what_a_kernel_of_this_device_passes_by_is_no_target(tokenizer, specs, monkeypatch):
    """On a GPU a fused kernel reads the output projection's weight, as this forward does."""
    model = small_model("bamba", tokenizer, specs)
    mixer = next(module for name, module in model.named_modules() if name.endswith("layers.0.mamba"))
    assert any(name.endswith("layers.0.mamba.out_proj") for name in adapter_targets(model))

    def fused(self, hidden_states, *args, **kwargs):
        projected = self.in_proj(hidden_states)[..., : self.out_proj.in_features]
        return F.linear(projected, self.out_proj.weight)

    monkeypatch.setattr(type(mixer), "forward", fused)
    targets = adapter_targets(model)
    assert any(name.endswith("layers.0.mamba.in_proj") for name in targets)
    assert not any(name.endswith("layers.0.mamba.out_proj") for name in targets)


def test_a_model_without_a_linear_layer_is_refused(tokenizer, specs):
    model = small_model("lstm", tokenizer, specs)
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=0)
    with pytest.raises(UnsafeTrainingError, match="calls no linear layer"):
        add_lora(model, 2)


def test_an_adapter_that_a_kernel_passes_by_is_refused(tokenizer, specs):
    """The step projection of a stock Mamba is read, and never called."""
    model = small_model("mamba", tokenizer, specs)
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["dt_proj"]))
    with pytest.raises(UnsafeTrainingError, match="dt_proj would not train"):
        check_adapters(adapted)
