"""The special-token protocol: the tokens of calls, one token per marker, and one for the answer marker.

The end of a trajectory is the tokenizer's own end-of-sequence token.
"""

from collections.abc import Sequence

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import MissingToolTokensError
from hf_toolssm.protocol.calls import call_tokens
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools import Tool, facts_of


def tool_tokens(tools: Sequence[Tool]) -> list[str]:
    """The texts of all tokens that these tools need, the answer marker first, without repetition."""
    facts = [facts_of(tool) for tool in tools]
    return list(dict.fromkeys([ANSWER, *(text for each in facts for text in (*call_tokens(each), *each.markers))]))


def add_tool_tokens(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool]) -> int:
    """Adds the tokens that these tools need to any tokenizer, in place; those it has already stay as they are.

    From then on, also saved and loaded, it pads on the left, as a recurrent state needs it, and with the end token if
    it had no padding of its own.

    Returns:
        How many tokens were new. Resize the model with `models.tool_embeddings.add_tool_tokens_to_model` afterwards.

    Raises:
        MissingToolTokensError: the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise MissingToolTokensError(
            "the tokenizer has no end-of-sequence token, which ends a trajectory: set tokenizer.eos_token first"
        )
    pad_left(tokenizer)
    return add_new(tokenizer, tool_tokens(tools))


def pad_left(tokenizer: PreTrainedTokenizerBase) -> None:
    """Has a tokenizer pad on the left, and with the end token if it had no padding of its own."""
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # saved is what it was made with
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def add_new(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True) -> int:
    """Adds those tokens that a tokenizer lacks; returns how many."""
    known = tokenizer.get_vocab()  # a calculator's digits stay the ordinary tokens that they are
    new = [AddedToken(text, special=special, normalized=False) for text in texts if text not in known]
    return tokenizer.add_tokens(new, special_tokens=special)


def tool_token_ids(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool]) -> dict[str, int]:
    """The id of every token that these tools need.

    Raises:
        MissingToolTokensError: the tokenizer lacks one of them.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [text for text in tool_tokens(tools) if text not in vocabulary]
    if missing:
        raise MissingToolTokensError(
            f"the tokenizer has no token {missing[0]!r} ({len(missing)} tool tokens are missing): "
            "call hf_toolssm.add_tool_tokens(tokenizer, tools) and resize the model"
        )
    return {text: vocabulary[text] for text in tool_tokens(tools)}
