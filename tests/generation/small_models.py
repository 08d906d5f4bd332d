"""One tiny model of every architecture that the loop must run, with random weights that give logits of order 10."""

import torch
from conftest import random_model
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from hf_toolssm import RmtConfig, RmtForCausalLM, RnnConfig, RnnForCausalLM
from hf_toolssm.generation import Session
from hf_toolssm.generation.model_runner import Pieces
from hf_toolssm.tools.pointer_memory import NEW_POINTER, PointerMemory, left, read, right

ATTENTION = {"intermediate_size": 64, "num_attention_heads": 4}
GROUPED = {**ATTENTION, "num_key_value_heads": 2}

STOCK = {
    "mamba": (MambaForCausalLM, MambaConfig, {"state_size": 8}, Pieces.SINGLY),
    "mamba2": (
        Mamba2ForCausalLM,
        Mamba2Config,
        {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
        Pieces.ALONE,
    ),
    "falcon_mamba": (FalconMambaForCausalLM, FalconMambaConfig, {"state_size": 8}, Pieces.SINGLY),
    "jamba": (
        JambaForCausalLM,
        JambaConfig,
        {
            **GROUPED,
            **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
            **{"num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
        },
        Pieces.SINGLY,
    ),
    "falcon_h1": (
        FalconH1ForCausalLM,
        FalconH1Config,
        {
            **GROUPED,
            **{"head_dim": 8, "mamba_d_state": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
            **{"mamba_n_groups": 1, "mamba_chunk_size": 8},
        },
        Pieces.ALONE,
    ),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, ATTENTION, Pieces.ALONE),
    "mistral": (MistralForCausalLM, MistralConfig, {**GROUPED, "head_dim": 8, "sliding_window": 7}, Pieces.ALONE),
}
RECURRENT = ("lstm", "gru", "rmt")
ARCHITECTURES = ["tool_mamba", *RECURRENT, *STOCK]


def small_model(name, tokenizer, specs, seed=0):
    """A model of that architecture for the addition tokenizer."""
    if name == "tool_mamba":
        return random_model(tokenizer, specs, seed)
    torch.manual_seed(seed)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
    shape |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    if name == "rmt":
        rmt = {"num_attention_heads": 4, "intermediate_size": 64, "segment_length": 5, "num_memory_tokens": 2}
        model = RmtForCausalLM(RmtConfig(**shape, **rmt)).eval()
    elif name in RECURRENT:
        model = RnnForCausalLM(RnnConfig(cell=name, **shape)).eval()
    else:
        model_class, config_class, options, _ = STOCK[name]
        model = model_class(config_class(**shape, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        head = model.get_output_embeddings().weight
        head *= 10 / model(torch.arange(3, 23)[None]).logits.abs().max()
    return model


def lively(model, tokenizer):
    """The same model, which hardly ever ends a row or calls a pointer other than the first: it wanders on and on."""
    rare = ["<|end|>", NEW_POINTER, *(make(pointer) for pointer in (2, 3) for make in (read, left, right))]
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids(rare)] = 0
    return model


def start_lively(model, tokenizer, problems, **options):
    """A session in which every row has its first pointer."""
    session = Session.start(model, tokenizer(list(problems))["input_ids"], tokenizer=tokenizer, **options)
    for row in session.rows:
        row.sessions[0].execute(NEW_POINTER)
    return session


class NotCompiled(PointerMemory):
    """The same tool, of which the compiled kernels know nothing."""


class Heard:
    """A listener that keeps every token."""

    def __init__(self, rows):
        self.tokens = [[] for _ in range(rows)]

    def fed(self, rows, tokens, observed):
        for row, token in zip(rows, tokens):
            self.tokens[row].append(token)

    def fed_run(self, row, tokens, observed):
        self.tokens[row].extend(tokens)


def written(session, count):
    """The next tokens of every row."""
    heard = Heard(len(session.rows))
    session.run(count, listener=heard)
    return heard.tokens
