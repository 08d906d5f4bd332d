"""A LoRA trains the projections and the tool tokens, nothing else, and merges exactly."""

import pytest
import torch
from small_run import losses, make_trainer

from hf_toolssm import ToolMambaConfig, ToolMambaForCausalLM
from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.models.modeling_tool_mamba import ADAPTER_TARGETS
from hf_toolssm.training.lora import add_lora


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


def test_every_target_exists(model):
    names = {name.rsplit(".")[-1] for name, _ in model.named_modules()}
    assert set(ADAPTER_TARGETS) <= names


def test_a_lora_without_tool_tokens_or_rank_is_refused(model):
    with pytest.raises(UnsafeTrainingError, match="add_tool_tokens_to_model"):
        add_lora(ToolMambaForCausalLM(ToolMambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1)), 4)
    with pytest.raises(UnsafeTrainingError, match="at least 1"):
        add_lora(model, 0)
