"""Tokens back to a trajectory: the inverse of `Renderer`, for texts as the tokenizer keeps them."""

from collections.abc import Collection, Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import CorruptRowError, MalformedCallError
from hf_toolssm.protocol.calls import Call, CallReader, CommandTokens
from hf_toolssm.protocol.special_tokens import tool_token_ids
from hf_toolssm.protocol.trajectory import ANSWER, Content, Step, StepKind, Trajectory, Writer
from hf_toolssm.tools.tool import Tool, facts_of, unit_of


def parse(
    ids: Iterable[int],
    writers: Iterable[int],
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Tool],
    ends: Collection[int] | None = None,
) -> Trajectory:
    """The trajectory that tokens are; every step keeps its own.

    Inputs, thoughts and outputs are read as text where all tools read text, and as cells otherwise. What broke off,
    because the row was cut or the model wrote no call, is there as far as it went: `Trajectory.check` may refuse what
    a session has recorded.

    Args:
        ids: the tokens, in a list, an array or a tensor.
        writers: the `Writer` of each.
        tokenizer: that they are of.
        tools: that ran.
        ends: tokens that end a turn; by default the tokenizer's end of sequence.

    Raises:
        CorruptRowError: there is not one writer for every token, or a token is none of the tokenizer's.
        MissingToolTokensError: the tokenizer has no tokens for these tools.
    """
    tokens, by = (list(each.tolist() if hasattr(each, "tolist") else each) for each in (ids, writers))
    if len(tokens) != len(by) or not {*by} <= {*Writer} or min(tokens, default=0) < 0:
        raise CorruptRowError(
            f"{len(tokens)} tokens and {len(by)} writers cannot be read: give ids, and of each of them its Writer"
        )
    reading = _Reading(tokenizer, tools, {tokenizer.eos_token_id} if ends is None else ends)
    for token, writer in zip(tokens, by):
        reading.take(token, writer)
    return reading.trajectory()


class _Reading:
    """Steps in the making: `kind` and `tokens` are of the one that is not finished."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool], ends: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._facts = [facts_of(tool) for tool in tools]
        self._unit = unit_of(self._facts)
        meaning = tool_token_ids(tokenizer, tools)
        self._answer, self._ends = meaning[ANSWER], ends
        self._reader = CallReader(CommandTokens(self._facts, meaning.__getitem__))
        self._texts: dict[int, str] = {}
        self._steps: list[Step] = []
        self._kind: StepKind | None = None
        self._tokens: list[int] = []
        self._answering = False
        self._observed_unit = self._unit
        self._turn = -1
        self._cut: list[int] = []

    def take(self, token: int, writer: int) -> None:
        if writer == Writer.USER:
            if self._kind is not StepKind.INPUT:
                self._answering = False
                self._turn += 1
                self._cut.append(self._turn)  # unless an end comes
            self._add(StepKind.INPUT, token)
        elif writer == Writer.TOOL:
            self._add(StepKind.OBSERVATION, token)
        elif token in self._ends:
            self._break_off()
            self._cut = [turn for turn in self._cut if turn != self._turn]
        elif self._reader.open is not None or token in self._reader.tokens.live:
            self._read_call(token)
        elif token == self._answer and not self._answering:
            if self._unit == "text":
                self._finish()
                self._steps.append(Step(StepKind.THOUGHT, (ANSWER,), ids=(token,)))
            else:
                self._add(StepKind.THOUGHT, token)
            self._answering = True
        else:
            self._add(StepKind.OUTPUT if self._answering else StepKind.THOUGHT, token)

    def trajectory(self) -> Trajectory:
        self._break_off()
        return Trajectory(tuple(self._steps), tuple(self._cut))

    def _add(self, kind: StepKind, token: int) -> None:
        if kind is not self._kind:
            self._break_off()
            self._kind = kind
        self._tokens.append(token)

    def _read_call(self, token: int) -> None:
        if self._reader.open is None:
            self._finish()
        self._tokens.append(token)
        try:
            read = self._reader.read(token)
        except MalformedCallError:
            self._break_off()
            return
        if isinstance(read, Call):
            has_argument = self._facts[self._reader.tokens.tool_of[read.name]].calls[read.name]
            self._finish_call(read.name, read.argument if has_argument else None)

    def _finish_call(self, name: str, argument: Sequence[int] | None) -> None:
        facts = self._facts[self._reader.tokens.tool_of[name]]
        content = None if argument is None else self._content(argument, facts.unit)
        self._steps.append(Step(StepKind.CALL, content, name, tuple(self._tokens)))
        self._tokens, self._observed_unit = [], facts.unit
        self._reader.close()

    def _finish(self) -> None:
        if self._kind is not None:
            unit = self._observed_unit if self._kind is StepKind.OBSERVATION else self._unit
            self._steps.append(Step(self._kind, self._content(self._tokens, unit), ids=tuple(self._tokens)))
        self._kind, self._tokens = None, []

    def _break_off(self) -> None:
        if self._reader.open is None:
            self._finish()
        else:
            self._finish_call(self._reader.open, self._reader.argument)

    def _content(self, tokens: Sequence[int], unit: str) -> Content:
        if unit == "text":
            return self._tokenizer.decode(list(tokens))
        return tuple(map(self._cell, tokens))

    def _cell(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]
