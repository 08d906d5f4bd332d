"""What token ids mean for the rows of a session, and which prompts they can start from."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import EmptyProblemError, InvalidProblemError, TokenizerNeededError, UnsafeToolError
from hf_toolssm.generation.tool_calls import ToolCaller
from hf_toolssm.protocol.given_tools import GivenTool, make_tools
from hf_toolssm.protocol.plain_text import check_spells
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools import ToolFacts, facts_of


class TokenProtocol:
    """What all rows of a session share; `command_row` and `chat_row` say how the model's calls are written.

    Args:
        tools: the tools in use; no two share a call.
        end_ids: the tokens that end a row, or a turn.
        caller: carries out calls.
    """

    def __init__(self, tools: Sequence[ToolFacts], end_ids: Iterable[int], caller: ToolCaller) -> None:
        self.tools = tools
        self.caller = caller
        self.ends = frozenset(end_ids)

    def check_problems(self, prompts: Sequence[Sequence[int]]) -> None:
        """Finds what the model alone may write.

        Raises:
            InvalidProblemError: a prompt holds it.
        """

    def check_asked(self, prompts: Sequence[Sequence[int]]) -> None:
        """Finds prompts behind which the model would not begin its turn.

        Raises:
            InvalidProblemError: there is one.
        """

    def marker(self, text: str) -> int:
        """The token of a marker of a tool's."""
        raise NotImplementedError

    def start_row(self, prompt: Sequence[int]) -> Any:
        """A row whose tools work on a prompt."""
        raise NotImplementedError

    def restore_row(self, tools: list[Any], saved: dict[str, Any]) -> Any:
        """The row that `Row.saved` described."""
        raise NotImplementedError

    def meaning(self) -> dict[str, Any]:
        """What every token does that does something, and the tools in order, because their states are: JSON."""
        tools = [[*facts.calls, facts.unit, facts.fork, facts.remembers] for facts in self.tools]
        return {"tools": tools, "ends": sorted(map(str, self.ends))}

    def trajectory(self, ids: Sequence[int], writers: Sequence[int], tokenizer: Any) -> Trajectory:
        """What a row's tokens say, given the `Writer` of each; what broke off is there as far as it went."""
        raise NotImplementedError

    @property
    def allows_drafts(self) -> bool:
        """Whether every tool answers at once and touches nothing but its session, so that a clone may go ahead."""
        return all(
            facts.time_limit is None and facts.fork == "copy" and not facts.has_side_effects for facts in self.tools
        )


def tools_of_session(
    model: Any, tools: Sequence[GivenTool] | None, tokenizer: PreTrainedTokenizerBase | None
) -> list[ToolFacts]:
    """The tools that were given or that the model's config names; see `Session.start` for the errors."""
    specs = (getattr(model.config, "tools", None) or []) if tools is None else tools
    made = [facts_of(tool) for tool in make_tools(specs)]
    acting = [spec for spec, facts in zip(specs, made) if tools is None and facts.has_side_effects]
    if acting:
        raise UnsafeToolError(
            f"the config names {acting[0]!r}, which has side effects, and a config alone never switches that on: pass "
            "tools= yourself if you trust the model with it"
        )
    if any(facts.unit == "text" for facts in made):
        if tokenizer is None:
            raise TokenizerNeededError("a tool reads text and no tokenizer is known: pass tokenizer=")
        check_spells(tokenizer)
    return made


def ends_of_session(model: Any, end_ids: Sequence[int] | None) -> list[int]:
    """The tokens that end a row: those given, or the model's own, one or several."""
    end = model.generation_config.eos_token_id if end_ids is None else end_ids
    return [] if end is None else np.atleast_1d(end).tolist()


def vocabulary_of(model: Any) -> int:
    """How many tokens a model has."""
    return len(model.get_input_embeddings().weight)  # an adapter's embedding has no num_embeddings


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
    vocabulary = vocabulary_of(model)
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
