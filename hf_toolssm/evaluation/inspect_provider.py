"""Models of this package, and any other that `Chat` runs, for Inspect AI.

    pip install -c constraints.txt -e ".[inspect]"
    inspect eval task.py --model toolssm/outputs/function-calling

Inspect sends the whole conversation for every turn and carries out the calls itself. What the model has read stays in
its state (`generation.conversations`), so every token is read once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
from accelerate import PartialState
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    modelapi,
)
from inspect_ai.tool import Tool, ToolCall, ToolChoice, ToolDef, ToolInfo, ToolParams
from transformers import AutoTokenizer

from hf_toolssm.errors import MessageError, UnsupportedGenerationError
from hf_toolssm.generation.conversations import Conversations, Turn
from hf_toolssm.models.architectures import load_model

_SCHEMA = "toolssm_schema"
"""The option of a tool that `tool_of` has made."""

_OBEYED = {"max_tokens", "temperature", "seed"}

_OF_INSPECT = {
    *("max_retries", "timeout", "max_connections", "adaptive_connections"),
    *("system_message", "max_tool_output", "cache", "fail_on_refusal", "internal_tools", "reasoning_history"),
}
"""Settings that Inspect itself carries out."""


@modelapi(name="toolssm")
class ToolSSMAPI(ModelAPI):
    """A model and its tokenizer, from a folder or the Hub; the name behind `toolssm/` says which.

    Args:
        model_name: the folder, or the repository.
        config: Inspect's settings; those that say how tokens are chosen are obeyed or refused.
        device: `-M device=cuda`; by default what accelerate finds.
        keep: `-M keep=64`, how many replies' states are kept; see `Conversations`.
        template: `-M template="{enable_thinking: false}"`, options of the chat template.

    Raises:
        UnsupportedGenerationError: an address or a key is given, of which a local model has none.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's signature
        device: str | None = None,
        keep: int = 64,
        template: dict[str, Any] | None = None,
    ) -> None:
        if base_url is not None or api_key is not None:
            raise UnsupportedGenerationError("the model runs here: leave out its address and its key")
        super().__init__(model_name, base_url, api_key, [], config)
        model, tokenizer = load_model(model_name).eval(), AutoTokenizer.from_pretrained(model_name)
        model.to(device or PartialState().device)
        self._conversations = Conversations(model, tokenizer, keep=keep, **template or {})

    def max_connections(self) -> int:
        """One: turns are written one after the other."""
        return 1

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The model's next turn.

        Raises:
            UnsupportedGenerationError: a setting is one that the model does not know, or a call is demanded.
            MessageError: a message is more than text.
        """
        settings = config.model_dump(exclude_none=True)
        unknown = sorted(settings.keys() - _OBEYED - _OF_INSPECT)
        if unknown:
            raise UnsupportedGenerationError(
                f"{unknown[0]} is no setting of these models: leave it out, and set {', '.join(sorted(_OBEYED))}"
            )
        if tool_choice not in ("auto", "none"):
            raise UnsupportedGenerationError(f"tool_choice is 'auto' or 'none', and not {tool_choice!r}")
        offered = [_schema(tool) for tool in tools] if tool_choice == "auto" else []
        turn = await anyio.to_thread.run_sync(
            lambda: self._conversations.reply(
                [message_of(message) for message in input],
                offered,
                max_new_tokens=config.max_tokens,
                temperature=config.temperature or 0.0,
                seed=config.seed,
            )
        )
        return self._output(turn, sum(isinstance(message, ChatMessageAssistant) for message in input))

    def _output(self, turn: Turn, number: int) -> ModelOutput:
        """A turn as Inspect has it; the ids of calls are made of the turn's number."""
        calls = [
            ToolCall(
                id=f"turn{number}_{at}", function=call["function"]["name"], arguments=call["function"]["arguments"]
            )
            for at, call in enumerate(turn.message.get("tool_calls", ()))
        ]
        thought = turn.message.get("reasoning_content")
        said: list[Content] = [ContentText(text=turn.message["content"])]
        content = [ContentReasoning(reasoning=thought), *said] if thought else turn.message["content"]
        message = ChatMessageAssistant(
            content=content, tool_calls=calls or None, model=self.model_name, source="generate"
        )
        reason: StopReason = "max_tokens" if not turn.finished else "tool_calls" if calls else "stop"
        usage = ModelUsage(
            input_tokens=turn.read,
            input_tokens_cache_read=turn.kept,
            output_tokens=turn.written,
            total_tokens=turn.kept + turn.read + turn.written,
        )
        choice = ChatCompletionChoice(message=message, stop_reason=reason)
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage)


def tool_of(schema: Mapping[str, Any], call: Callable[..., str]) -> Tool:
    """A tool for Inspect of which our models read this schema to the letter.

    Inspect alone would add a description to every parameter, and write all in an order of its own, so that a model
    would be asked otherwise than in its training.

    Args:
        schema: name, description and parameters.
        call: gets the arguments by name.
    """

    async def execute(**kwargs: Any) -> str:
        return call(**kwargs)

    parameters = ToolParams.model_validate(schema["parameters"])
    for name, parameter in parameters.properties.items():
        parameter.description = parameter.description or name  # without one Inspect refuses it
    told = {"name": schema["name"], "description": schema["description"] or schema["name"]}
    return ToolDef(execute, parameters=parameters, options={_SCHEMA: schema}, **told).as_tool()


def _schema(tool: ToolInfo) -> Mapping[str, Any]:
    """What the model reads of a tool: its option for that, or what Inspect says of every tool."""
    if tool.options and _SCHEMA in tool.options:
        return tool.options[_SCHEMA]
    parameters = tool.parameters.model_dump(exclude_none=True)
    if not parameters["additionalProperties"]:
        del parameters["additionalProperties"]  # which Inspect adds to every tool
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def message_of(message: ChatMessage) -> dict[str, Any]:
    """A message of Inspect's as `protocol.chat_messages` has it."""
    said: dict[str, Any] = {"role": message.role, "content": _text(message.content)}
    if isinstance(message, ChatMessageAssistant):
        thoughts = [] if isinstance(message.content, str) else message.content
        thought = "".join(each.reasoning for each in thoughts if isinstance(each, ContentReasoning))
        said |= {"reasoning_content": thought} if thought else {}
        calls = [{"name": call.function, "arguments": call.arguments} for call in message.tool_calls or ()]
        said |= {"tool_calls": [{"type": "function", "function": call} for call in calls]} if calls else {}
    if isinstance(message, ChatMessageTool):
        said |= {"content": message.error.message} if message.error else {}
        said |= {"name": message.function} if message.function else {}
    return said


def _text(content: str | Sequence[Content]) -> str:
    if isinstance(content, str):
        return content
    unknown = [each for each in content if not isinstance(each, ContentText | ContentReasoning)]
    if unknown:
        raise MessageError(f"these models read text, and a message holds {type(unknown[0]).__name__}: leave it out")
    return "".join(each.text for each in content if isinstance(each, ContentText))
