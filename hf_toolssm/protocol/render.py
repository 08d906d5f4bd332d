"""Trajectories to `input_ids` and `labels`, one cell at a time."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from hf_toolssm.errors import CellNotOneTokenError, EmptyProblemError
from hf_toolssm.protocol.trajectory import StepKind, Trajectory

IGNORED = -100
"""The label of a token that carries no loss, as in transformers."""

_CARRIES_LOSS = {StepKind.THOUGHT, StepKind.OUTPUT, StepKind.COMMAND}


class Renderer:
    """Writes cells as tokens. A cell is exactly one token, because a tool's memory has one cell for it.

    Args:
        tokenizer: any tokenizer that has the tools' tokens and an end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._token_of: dict[str, int] = {}

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
        """The prompt of a problem. A user wrote it, so no command, marker or end is in it.

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
                f"the cell {cell!r} of a problem is a token that was added to the tokenizer, and what a user writes "
                "never becomes one of those: write the problem with the symbols of its task"
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
        ids = [self.problem(cells) for cells in problems]
        return self._tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")

    def render(self, trajectory: Trajectory) -> dict[str, list[int]]:
        """The whole trajectory with its end token.

        Returns:
            `input_ids` and `labels` of equal length; labels are -100 on the problem and on every observation.
        """
        input_ids = self.problem(trajectory.problem)
        labels = [IGNORED] * len(input_ids)
        for step in trajectory.steps:
            token = self.token(step.text)
            input_ids.append(token)
            labels.append(token if step.kind in _CARRIES_LOSS else IGNORED)
        end: int = self._tokenizer.eos_token_id
        return {"input_ids": [*input_ids, end], "labels": [*labels, end]}

    def row(self, row: Mapping[str, Any]) -> dict[str, list[int]]:
        """A dataset row as `input_ids` and `labels`; a corrupt row stops with its id."""
        return self.render(Trajectory.from_row(row))
