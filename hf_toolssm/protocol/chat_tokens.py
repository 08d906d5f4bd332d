"""Our chat template for tokenizers without one: its tokens, and what reads it."""

from transformers import PreTrainedTokenizerBase

from hf_toolssm.protocol.response_templates import read_template, response_template_for
from hf_toolssm.protocol.special_tokens import add_new, pad_left

_TURN_TOKENS = ("<|im_start|>", "<|im_end|>")

_MARKED = ("tools", "think", "tool_call", "tool_response")
_CHAT_MARKERS = [marker for name in _MARKED for marker in (f"<{name}>", f"</{name}>")]


def add_chat_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Gives any tokenizer our chat template, its response template and their tokens, in place.

    For checkpoints without a template of their own (Mamba, Mamba-2, Codestral). It pads as after `add_tool_tokens`,
    and its end-of-sequence token is from then on the end of a turn.

    Returns:
        How many tokens were new. Resize the model with `models.tool_embeddings.fit_to_tokenizer` afterwards.
    """
    new = add_new(tokenizer, _TURN_TOKENS)
    # Not special: whoever decodes without special tokens, as many servers do, still finds the calls.
    new += add_new(tokenizer, _CHAT_MARKERS, special=False)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = _TURN_TOKENS[1]
    pad_left(tokenizer)  # with the old end token: a loss that leaves out padding must not leave out ends of turns
    tokenizer.eos_token = _TURN_TOKENS[1]
    tokenizer.chat_template = read_template("toolssm")
    tokenizer.response_template = response_template_for(tokenizer.chat_template)
    return new
