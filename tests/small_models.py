"""One tiny model of every architecture that the loop must run, with random weights that give logits of order 10."""

import torch
import transformers
from conftest import random_model
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LogitsProcessor,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from hf_toolssm import RmtConfig, RmtForCausalLM, RnnConfig, RnnForCausalLM
from hf_toolssm.generation.model_runner import Prefill
from hf_toolssm.generation.session import Session
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.tools.pointer_memory import NEW_POINTER, PointerMemory, left, read, right

ATTENTION = {"intermediate_size": 64, "num_attention_heads": 4}
GROUPED = {**ATTENTION, "num_key_value_heads": 2}
MAMBA_2 = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}

STOCK = {
    "mamba": (MambaForCausalLM, MambaConfig, {"state_size": 8}, Prefill.TOKEN_BY_TOKEN),
    "mamba2": (
        Mamba2ForCausalLM,
        Mamba2Config,
        {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
        Prefill.PER_ROW,
    ),
    "falcon_mamba": (FalconMambaForCausalLM, FalconMambaConfig, {"state_size": 8}, Prefill.TOKEN_BY_TOKEN),
    "jamba": (
        JambaForCausalLM,
        JambaConfig,
        {
            **GROUPED,
            **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
            **{"num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
        },
        Prefill.TOKEN_BY_TOKEN,
    ),
    "falcon_h1": (
        FalconH1ForCausalLM,
        FalconH1Config,
        {**GROUPED, **MAMBA_2, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4},
        Prefill.PER_ROW,
    ),
    "bamba": (BambaForCausalLM, BambaConfig, {**GROUPED, **MAMBA_2, "attn_layer_indices": [1]}, Prefill.PER_ROW),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, ATTENTION, Prefill.PER_ROW),
    "mistral": (MistralForCausalLM, MistralConfig, {**GROUPED, "head_dim": 8, "sliding_window": 7}, Prefill.PER_ROW),
}
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8}
LATENT |= {**ATTENTION, "num_key_value_heads": 4, "mlp_layer_types": ["dense", "sparse"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
ATTENTION_LAST = {"layer_types": ["linear_attention", "full_attention"]}
ZAMBA = {"layers_block_type": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4, "attention_head_dim": 16}


NO_BOUND = {"time_step_min": 1e-9}
"""A step of these two leaves out the lower bound of the step size that their forward has (transformers 5.23)."""

HYBRIDS = {
    "granite_moe_hybrid": (
        "GraniteMoeHybrid",
        {
            **GROUPED,
            **MAMBA_2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["mamba", "attention"],
        },
    ),
    "granite_hybrid_with_rope": (
        "GraniteMoeHybrid",
        {**GROUPED, **MAMBA_2, "num_local_experts": 0, "position_embedding_type": "rope"}
        | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 64},
    ),
    "nemotron_h": (
        "NemotronH",
        {**GROUPED, "hybrid_override_pattern": "M*-M", "num_hidden_layers": 4, "head_dim": 8, "ssm_state_size": 8}
        | {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "chunk_size": 8, **NO_BOUND},
    ),
    "zamba": ("Zamba", {**GROUPED, **ZAMBA, "mamba_d_state": 8, "mamba_dt_rank": 4}),
    "zamba2": (
        "Zamba2",
        {**GROUPED, **ZAMBA, "mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 8, "mamba_headdim": 8}
        | {"chunk_size": 8, "num_mem_blocks": 1, "use_mem_rope": True, **NO_BOUND},
    ),
    "lfm2": ("Lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": ("Lfm2Moe", {**GROUPED, **EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "lfm3": (
        "Lfm3",
        {**GROUPED, "layer_types": ["conv", "sliding_attention", "full_attention"], "num_hidden_layers": 3}
        | {"head_dim": 8, "sliding_window": 7},
    ),
    "qwen3_next": (
        "Qwen3Next",
        {**GROUPED, **DELTA, **EXPERTS, **ATTENTION_LAST, "head_dim": 8, "shared_expert_intermediate_size": 32},
    ),
    "qwen3_5": ("Qwen3_5", {**GROUPED, **DELTA, **ATTENTION_LAST, "head_dim": 8}),
    "qwen3_5_moe": (
        "Qwen3_5Moe",
        {**GROUPED, **DELTA, **EXPERTS, **ATTENTION_LAST, "head_dim": 8, "shared_expert_intermediate_size": 32},
    ),
    "olmo_hybrid": ("OlmoHybrid", {**GROUPED, **DELTA, **ATTENTION_LAST}),
    "kimi_linear": (
        "KimiLinear",
        {**LATENT, **EXPERTS, **ATTENTION_LAST, "num_local_experts": 4, "linear_head_dim": 8, "linear_num_heads": 4},
    ),
    "bailing_hybrid": (
        "BailingHybrid",
        {**LATENT, **EXPERTS, **ATTENTION_LAST, "num_local_experts": 4, "head_dim": 8, "n_group": 1, "topk_group": 1},
    ),
    "zaya": ("Zaya", {**GROUPED, **EXPERTS, "num_experts_per_tok": 1, "head_dim": 8}),
}
"""What transformers has beside, by the beginning of its classes' names: too many for every run of the tests."""

REFUSED = {
    "minimax": ("MiniMax", {**GROUPED, **ATTENTION_LAST, "head_dim": 8, "num_local_experts": 2}),
    "recurrent_gemma": ("RecurrentGemma", {**GROUPED, "block_types": ["recurrent", "attention"], "lru_width": 32}),
    "rwkv": ("Rwkv", {"attention_hidden_size": 32}),
}

RECURRENT = ("lstm", "gru", "rmt")
ARCHITECTURES = ["tool_mamba", *RECURRENT, *STOCK]


def small_model(name, tokenizer, specs, seed=0, **more):
    """A model of that architecture for the addition tokenizer; `more` is of the config of a stock one."""
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
        if name in STOCK:
            model_class, config_class, options, _ = STOCK[name]
        else:
            prefix, options = {**HYBRIDS, **REFUSED}[name]
            model_class = getattr(transformers, f"{prefix}ForCausalLM")
            config_class = model_class.config_class
        model = model_class(config_class(**{**shape, **options, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        head = model.get_output_embeddings().weight
        head *= 10 / model(torch.arange(3, 23)[None]).logits.abs().max()
    return model


def lively(model, tokenizer):
    """The same model, which hardly ever ends a row or calls a pointer other than the first: it wanders on and on."""
    calls = [NEW_POINTER, *(make(pointer) for pointer in (2, 3) for make in (read, left, right))]
    rare = ["<|end|>", *map(begin_token, calls)]
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids(rare)] = 0
    return model


def start_lively(model, tokenizer, problems, **options):
    """A session in which every row has its first pointer."""
    session = Session.start(model, tokenizer(list(problems))["input_ids"], tokenizer=tokenizer, **options)
    for row in session.rows:
        row.tools[0].call(NEW_POINTER, ())
    return session


class NotCompiled(PointerMemory):
    """The same tool, of which the compiled kernels know nothing."""


class Script(LogitsProcessor):
    """Makes any model write given tokens: after a row's prompt, its script, one token after the other.

    Observations are in the script too, wrong on purpose: the loop must never use what the model "says" there.
    """

    def __init__(self, prompts, scripts):
        self.by_prompt = dict(zip(map(tuple, prompts), scripts))

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            ids = [token for at, token in enumerate(ids) if token != 0 or any(ids[:at])]  # 0 is padding
            prompt, script = next((p, s) for p, s in self.by_prompt.items() if tuple(ids[: len(p)]) == p)
            at = len(ids) - len(prompt)
            forced[row, script[at] if at < len(script) else 1] = 0
        return forced


class Heard:
    """A sink that keeps every token."""

    def __init__(self, rows):
        self.tokens = [[] for _ in range(rows)]

    def take(self, events):
        for event in events:
            self.tokens[event.row].extend(event.tokens)


def written(session, count):
    """The next tokens of every row."""
    heard = Heard(len(session.rows))
    session.run(count, sink=heard)
    return heard.tokens
