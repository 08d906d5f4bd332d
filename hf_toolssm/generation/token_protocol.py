"""What token ids mean for the rows of a session, and which prompts they can start from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import (
    EmptyProblemError,
    InvalidProblemError,
    MissingToolTokensError,
    TokenizerNeededError,
    UnknownToolError,
    UnsafeToolError,
)
from hf_toolssm.generation.tool_calls import ToolCaller
from hf_toolssm.protocol.calls import CommandTokens, call_tokens
from hf_toolssm.protocol.plain_text import check_spells
from hf_toolssm.protocol.special_tokens import tool_token_ids, tool_tokens
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools import Tool, facts_of, make_tool


class TokenProtocol:
    """The meaning of token ids for the rows of one session.

    Args:
        tools: the tools in use; no two share a call.
        ids: the token id of every call, marker and of the answer marker.
        end_ids: the tokens that end a trajectory.
        caller: carries out calls.

    Raises:
        MissingToolTokensError: a token of the tools has no id.
        UnknownToolError: two tools share a call, or one of them is no tool.
    """

    def __init__(
        self, tools: Sequence[Tool], ids: Mapping[str, int], end_ids: Sequence[int], caller: ToolCaller
    ) -> None:
        missing = [text for text in tool_tokens(tools) if text not in ids]
        if missing:
            raise MissingToolTokensError(
                f"the model has no id for {missing[0]!r}: call models.tool_embeddings.add_tool_tokens_to_model, and "
                "train it to use the tool"
            )
        self.tools = [facts_of(tool) for tool in tools]
        self.ids = ids
        self.caller = caller
        self.calls = CommandTokens(self.tools, ids.__getitem__)
        self.writes = [index for index, facts in enumerate(self.tools) if facts.is_told]
        self.answer = ids[ANSWER]
        self.ends = frozenset(end_ids)
        others = [self.answer, *self.ends, *(ids[text] for facts in self.tools for text in facts.markers)]
        live = self.calls.live
        if len(live) < sum(len(call_tokens(facts)) for facts in self.tools) or live & {*others}:
            raise UnknownToolError("a tool's call is written by a token that means something else: rename the call")

    def check_problems(self, prompts: Sequence[Sequence[int]]) -> None:
        """Finds what the model alone may write.

        Raises:
            InvalidProblemError: a prompt holds a token of a call, or the answer marker.
        """
        live = {*self.calls.live, self.answer}
        names = {token: text for text, token in self.ids.items() if token in live}
        for row, prompt in enumerate(prompts):
            found = next((names[token] for token in prompt if token in names), None)
            if found is not None:
                raise InvalidProblemError(
                    f"the prompt of row {row} holds {found}, which only the model writes: state the problem alone, "
                    "and go on with a trajectory by its session"
                )

    @property
    def allows_drafts(self) -> bool:
        """Whether every tool answers at once and touches nothing but its session, so that a clone may go ahead."""
        return all(
            facts.time_limit is None and facts.fork == "copy" and not facts.has_side_effects for facts in self.tools
        )


def make_tools(specs: Sequence[Mapping[str, Any] | Tool]) -> list[Tool]:
    """Tools as they were given, and those that specs describe.

    Raises:
        UnknownToolError: they are no list, or one of them is neither a spec nor a tool.
    """
    if isinstance(specs, str | Mapping) or not isinstance(specs, Sequence):
        raise UnknownToolError(f'tools is a list, as in [{{"name": "pointer_memory"}}], and not {specs!r}')
    # A text is neither a spec nor a tool, as `make_tool` says.
    return [make_tool(spec) if isinstance(spec, Mapping | str) else spec for spec in specs]


def make_protocol(
    model: Any,
    tools: Sequence[Mapping[str, Any] | Tool] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    end_ids: Sequence[int] | None,
) -> TokenProtocol:
    """The tools of a session and their tokens; see `Session.start` for the arguments and errors."""
    config = model.config
    specs = (getattr(config, "tools", None) or []) if tools is None else tools
    made = make_tools(specs)
    acting = [spec for spec, tool in zip(specs, made) if tools is None and facts_of(tool).has_side_effects]
    if acting:
        raise UnsafeToolError(
            f"the config names {acting[0]!r}, which has side effects, and a config alone never switches that on: pass "
            "tools= yourself if you trust the model with it"
        )
    if any(facts_of(tool).unit == "text" for tool in made):
        if tokenizer is None:
            raise TokenizerNeededError("a tool reads text and no tokenizer is known: pass tokenizer=")
        check_spells(tokenizer)
    ids = getattr(config, "tool_token_ids", None)
    if ids is None and tokenizer is not None:
        ids = tool_token_ids(tokenizer, made)
    if end_ids is None:
        end = model.generation_config.eos_token_id
        end_ids = [] if end is None else np.atleast_1d(end).tolist()  # one, or several
    vocabulary = len(model.get_input_embeddings().weight)  # an adapter's embedding has no num_embeddings
    beyond = [text for text, token in (ids or {}).items() if not 0 <= token < vocabulary]
    if beyond:
        raise MissingToolTokensError(
            f"the id of {beyond[0]!r} is none of the model's {vocabulary} tokens: resize its embeddings"
        )
    return TokenProtocol(made, ids or {}, end_ids, ToolCaller(vocabulary, tokenizer))


def check_prompts(model: Any, prompts: Sequence[Sequence[int]], may_be_empty: bool = False) -> list[list[int]]:
    """Prompts as lists; those that cannot be a problem are refused, before anything is computed.

    Args:
        model: whose tokens they are.
        prompts: of every row.
        may_be_empty: whether a row may have none.

    Raises:
        EmptyProblemError, InvalidProblemError: see `Session.start`.
    """
    several: Any = prompts if isinstance(prompts, Iterable) else [prompts]
    lists: list[Any] = [prompt.tolist() if hasattr(prompt, "tolist") else prompt for prompt in several]
    if not all(
        isinstance(prompt, Sequence) and all(isinstance(i, int | np.integer) for i in prompt) for prompt in lists
    ):
        raise InvalidProblemError("a prompt is a list of token ids: give, for every row, those of its problem")
    if not lists or not (all(lists) or may_be_empty):
        raise EmptyProblemError("a prompt has no token: state a problem of at least one cell")
    vocabulary = len(model.get_input_embeddings().weight)  # an adapter's embedding has no num_embeddings
    for row, prompt in enumerate(lists):
        if min(prompt, default=0) < 0 or max(prompt, default=0) >= vocabulary:
            raise InvalidProblemError(
                f"the prompt of row {row} holds an id that is none of the model's {vocabulary} tokens: "
                "use its own tokenizer"
            )
    unknown = getattr(model.config, "unknown_token_id", None)
    if unknown is not None:
        for row, prompt in enumerate(lists):
            if unknown in prompt:
                raise InvalidProblemError(
                    f"the prompt of row {row} holds a symbol that the tokenizer does not know: write the problem with "
                    "the symbols that the model was trained on"
                )
    return [[int(token) for token in prompt] for prompt in lists]
