"""Trajectories to `input_ids` and `labels`: a cell is one token, a span of text as many as it takes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from hf_toolssm.errors import CellNotOneTokenError, CorruptRowError, EmptyProblemError
from hf_toolssm.protocol.calls import begin_token, end_token
from hf_toolssm.protocol.plain_text import encode_plain
from hf_toolssm.protocol.trajectory import ANSWER, SHORT, WRITER_OF, Content, Step, StepKind, Trajectory, Writer

IGNORED = -100
"""The label of a token that carries no loss, as in transformers."""

MOST_KNOWN = 65_536
"""Short steps whose tokens a renderer keeps."""

_Part = tuple[Step, Sequence[int], Sequence[int], bytes]
"""A step with its tokens, their labels and their writers."""


class Renderer:
    """Writes trajectories as tokens.

    A cell is exactly one token, because a tool's memory has one cell for it. A span is tokenized by itself, and
    nothing in it becomes a token that was added to the tokenizer, whoever wrote it. What a session has sampled or
    observed stays the tokens that it was.

    Args:
        tokenizer: any tokenizer that has the tools' tokens and an end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.end: int = tokenizer.eos_token_id
        self._token_of: dict[str, int] = {}
        # Short steps of cells, which are one object where they are equal, by identity: hashing one costs more than all
        # else here.
        self._known: dict[int, _Part] = {}

    def token(self, cell: str) -> int:
        """The token id of a cell.

        Raises:
            CellNotOneTokenError: the tokenizer splits the cell, or does not know it.
        """
        if cell not in self._token_of:
            ids = self._tokenizer.encode(cell, add_special_tokens=False)
            if len(ids) != 1 or ids[0] == self._tokenizer.unk_token_id or self._added(ids[0]) not in (None, cell):
                raise CellNotOneTokenError(
                    f"the tokenizer writes the cell {cell!r} as tokens {ids}, but a memory cell is one known token: "
                    "add it to the tokenizer, or choose cells that it has"
                )
            self._token_of[cell] = ids[0]
        return self._token_of[cell]

    def problem(self, cells: Iterable[str]) -> list[int]:
        """The prompt of a problem. A user wrote it, so no call, marker or end is in it.

        Raises:
            EmptyProblemError: there is no cell.
            CellNotOneTokenError: see `token`; or a cell is a token that was added to the tokenizer, and no single
                character.
        """
        ids = [self._symbol(cell) for cell in cells]
        if not ids:
            raise EmptyProblemError("the problem is empty: state a problem of at least one cell")
        return ids

    def _symbol(self, cell: str) -> int:
        token = self.token(cell)
        if len(cell) > 1 and self._added(token) is not None:
            raise CellNotOneTokenError(
                f"the cell {cell!r} is a token that was added to the tokenizer, and neither what a user writes nor a "
                "thought, an output or an argument ever is one of those: write it with the symbols of its task"
            )
        return token

    def _added(self, token: int) -> str | None:
        """The text of a token that was added to the tokenizer."""
        found = self._tokenizer.added_tokens_decoder.get(token)
        return None if found is None else found.content

    def prompts(self, problems: Iterable[Iterable[str]]) -> BatchEncoding:
        """Problems as a batch for `generate`: `input_ids` and `attention_mask` (b, l), padded on the left.

        A tokenizer of single characters gives the same when it is called on the texts. A large one would merge digits
        into cells that the model has never seen: prompt a fine-tuned model this way.

        Raises:
            EmptyProblemError, CellNotOneTokenError: see `problem`.
        """
        return self.pad([self.problem(cells) for cells in problems])

    def pad(self, prompts: Sequence[Sequence[int]]) -> BatchEncoding:
        """The same of prompts that are tokens already."""
        return self._tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")

    def render(self, trajectory: Trajectory) -> dict[str, list[int]]:
        """The whole trajectory, with the tokenizer's end token behind every turn that was not cut.

        Returns:
            `input_ids` and `labels` of equal length; labels are -100 on what the model does not write.

        Raises:
            CellNotOneTokenError, CorruptRowError, UnspellableTextError: see `step`.
        """
        parts = self._parts(trajectory)
        return {
            "input_ids": [*chain.from_iterable(map(itemgetter(1), parts))],
            "labels": [*chain.from_iterable(map(itemgetter(2), parts))],
        }

    def written(self, trajectory: Trajectory) -> tuple[list[int], bytearray]:
        """The tokens of `render`, and the `Writer` of each; `parse` is the inverse."""
        parts = self._parts(trajectory)
        return [*chain.from_iterable(map(itemgetter(1), parts))], bytearray().join(map(itemgetter(3), parts))

    def _parts(self, trajectory: Trajectory) -> list[_Part]:
        """What every step is written as, and the end of every turn that was not cut."""
        steps, kind = trajectory.steps, StepKind.INPUT
        known = map(self._known.get, map(id, steps))
        parts: list[Any] = [part or self._part(each) for each, part in zip(steps, known)]
        ends = [at for at, each in enumerate(steps) if each.kind is kind][1:] + [len(steps)]
        end = (None, [self.end], [self.end], bytes([Writer.MODEL]))
        for turn, at in reversed([*enumerate(ends)]):
            if turn not in trajectory.cut:
                parts.insert(at, end)
        return parts

    def _part(self, step: Step) -> _Part:
        tokens, writer = self.step(step), WRITER_OF.get(step.kind, Writer.MODEL)
        labels = tokens if writer is Writer.MODEL else [IGNORED] * len(tokens)
        part = step, tokens, labels, bytes([writer]) * len(tokens)
        is_short = len(tokens) <= SHORT + 2 and not isinstance(step.content, str) and step.ids is None
        if is_short and len(self._known) < MOST_KNOWN:
            self._known[id(step)] = part
        return part

    def step(self, step: Step) -> Sequence[int]:
        """The tokens of a step.

        Raises:
            CellNotOneTokenError: see `token` and `problem`.
            CorruptRowError: it says its tokens, and they are not its text.
            UnspellableTextError: the tokenizer cannot write a span.
        """
        content = step.content
        if step.ids is not None:
            self._check_ids(step)
            return step.ids
        if isinstance(content, str):
            ids = encode_plain(self._tokenizer, content)
        elif step.kind is StepKind.INPUT:
            ids = self.problem(content or ())
        elif step.kind is StepKind.OBSERVATION:
            ids = [self.token(cell) for cell in content or ()]
        else:
            ids = [self.token(cell) if cell == ANSWER else self._symbol(cell) for cell in content or ()]
        if step.kind is not StepKind.CALL:
            return ids
        ends = () if content is None else (self.token(end_token(step.name)),)
        return [self.token(begin_token(step.name)), *ids, *ends]

    def _check_ids(self, step: Step) -> None:
        ids = list(step.ids or ())
        fits = self._says(ids, step.content)
        if step.kind is StepKind.CALL:  # one that broke off has no end, or what broke it off in its place
            known = self._tokenizer.convert_tokens_to_ids([begin_token(step.name), end_token(step.name)])
            begins = ids[0] in known if ids else False
            fits = begins and any(self._says(part, step.content) for part in (ids[1:], ids[1:-1]))
        if not fits:
            raise CorruptRowError(
                f"the ids of the {step.kind} {step.text[:40]!r} are not its text, or of another tokenizer: render it "
                "with the one that wrote it, or without ids"
            )

    def _says(self, ids: list[int], content: Content) -> bool:
        if min(ids, default=0) < 0:
            return False
        if isinstance(content, str):
            return self._tokenizer.decode(ids) == content
        return [self._tokenizer.decode([token]) for token in ids] == list(content or ())

    def row(self, row: Mapping[str, Any]) -> dict[str, list[int]]:
        """A dataset row as `input_ids` and `labels`; a corrupt row stops with its id."""
        return self.render(Trajectory.from_row(row))
