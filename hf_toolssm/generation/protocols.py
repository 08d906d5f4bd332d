"""How the calls of a session's rows are written."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import ChatTemplateError
from hf_toolssm.generation.chat_row import ChatProtocol
from hf_toolssm.generation.command_row import make_command_protocol
from hf_toolssm.generation.token_protocol import TokenProtocol, ends_of_session, tools_of_session, vocabulary_of
from hf_toolssm.generation.tool_calls import ToolCaller
from hf_toolssm.protocol.calls import call_tokens
from hf_toolssm.protocol.chat_template import ChatTemplate
from hf_toolssm.protocol.given_tools import GivenTool
from hf_toolssm.protocol.plain_text import check_spells
from hf_toolssm.tools import ToolFacts
from hf_toolssm.tools.function import Declared


def make_protocol(
    model: Any,
    tools: Sequence[GivenTool] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    end_ids: Sequence[int] | None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> TokenProtocol:
    """The tools of a session and their tokens; see `Session.start` for the arguments and errors.

    Calls are written by tokens of their own where the model's config or the tokenizer has them, and where a tool reads
    cells; otherwise as the tokenizer's chat template says.
    """
    made = tools_of_session(model, tools, tokenizer)
    if tokenizer is None or _are_commands(model, made, tokenizer):
        if any(isinstance(facts.tool, Declared) for facts in made):
            raise ChatTemplateError("declared tools are of a chat, and this model's calls have tokens of their own")
        if chat_template_kwargs:
            raise ChatTemplateError("this model's calls have tokens of their own: leave out chat_template_kwargs")
        return make_command_protocol(model, made, tokenizer, end_ids)
    template = ChatTemplate(tokenizer, made, **chat_template_kwargs or {})
    ends = ends_of_session(model, end_ids)
    vocabulary = vocabulary_of(model)
    if len(tokenizer) > vocabulary:
        raise ChatTemplateError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {vocabulary}: resize its embeddings"
        )
    return ChatProtocol(made, template, ends, ToolCaller(vocabulary, tokenizer))


def make_chat_protocol(
    model: Any, tokenizer: PreTrainedTokenizerBase, tools: Sequence[GivenTool], options: Mapping[str, Any]
) -> ChatProtocol:
    """The tools of a chat, and the template with its options; see `Chat.start` for the errors."""
    protocol = make_protocol(model, tools, tokenizer, None, options)
    if not isinstance(protocol, ChatProtocol):
        raise ChatTemplateError(
            "the tokenizer has no chat template, or the calls of this model have tokens of their own: give the "
            "tokenizer a template (hf_toolssm.add_chat_tokens), or use Session and generate"
        )
    check_spells(tokenizer)
    return protocol


def _are_commands(model: Any, tools: Sequence[ToolFacts], tokenizer: PreTrainedTokenizerBase) -> bool:
    if getattr(model.config, "tool_token_ids", None) is not None or not tokenizer.chat_template:
        return True
    tokens = [token for facts in tools for token in call_tokens(facts)]
    reads_cells = any(facts.unit == "cells" for facts in tools)
    return reads_cells or (bool(tokens) and {*tokens} <= tokenizer.added_tokens_encoder.keys())
