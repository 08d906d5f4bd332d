"""A model gets the tokens of our chat template: what it knew stays, and a turn's end ends what it writes."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, Mamba2Config, MambaConfig, PreTrainedTokenizerFast
from transformers.models.auto import AutoModelForCausalLM

from hf_toolssm.models.tool_embeddings import fit_to_tokenizer
from hf_toolssm.protocol.chat_tokens import add_chat_tokens

MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
CONFIGS = [
    MambaConfig(vocab_size=257, **MAMBA),
    MambaConfig(vocab_size=264, tie_word_embeddings=False, **MAMBA),  # padded, as checkpoints often are
    Mamba2Config(vocab_size=257, num_heads=4, head_dim=16, n_groups=1, chunk_size=8, **MAMBA),
    GPTNeoXConfig(vocab_size=257, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["mamba", "padded", "mamba2", "attention"])
def test_new_rows_differ_old_logits_stay_and_a_turn_ends(config):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={text: token for token, text in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = tokenizer("Find the file.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(ids).logits[..., :257]
        assert add_chat_tokens(tokenizer) == 10
        fit_to_tokenizer(model, tokenizer, trained_vocabulary=257)
        assert torch.equal(model(ids).logits[..., :257], before)
    new = model.get_input_embeddings().weight[257 : len(tokenizer)]
    assert len(new.unique(dim=0)) == 10
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == end
    assert tokenizer.pad_token_id == 256
