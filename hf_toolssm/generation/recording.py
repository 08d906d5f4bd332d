"""What running rows took, kept: in memory, or in a file that grows while they run."""

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import RecordingError
from hf_toolssm.generation.events import Event
from hf_toolssm.generation.token_protocol import TokenProtocol
from hf_toolssm.protocol.parse import parse
from hf_toolssm.protocol.trajectory import Trajectory

_NAN = float("nan")


class Recording:
    """Every token of some rows, who wrote it and, where events say them, its log-probabilities.

    Args:
        rows: how many.

    Attributes:
        ids: per row its tokens.
        writers: per row the `Writer` of each.
        log_probs, sampled_log_probs: per row those of its tokens, see `Event`; empty where no event said any.
    """

    def __init__(self, rows: int) -> None:
        self.ids = [array("q") for _ in range(rows)]
        self.writers = [bytearray() for _ in range(rows)]
        self.log_probs = [array("d") for _ in range(rows)]
        self.sampled_log_probs = [array("d") for _ in range(rows)]

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            ids = self.ids[event.row]
            for name in ("log_probs", "sampled_log_probs"):
                column, said = getattr(self, name)[event.row], getattr(event, name)
                if said is not None or column:
                    column.extend([_NAN] * (len(ids) - len(column)))
                    column.extend([_NAN] * len(event.tokens) if said is None else said)
            ids.extend(event.tokens)
            self.writers[event.row].extend(event.writers)

    def trajectories(self, tokenizer: PreTrainedTokenizerBase, protocol: TokenProtocol) -> list[Trajectory]:
        """Every row as a trajectory; what broke off is there as far as it went."""
        tools = [facts.tool for facts in protocol.tools]
        return [parse(ids, by, tokenizer, tools, protocol.ends) for ids, by in zip(self.ids, self.writers)]

    def select(self, rows: Iterable[int]) -> "Recording":
        """Copies of those rows, in that order."""
        copy = Recording(0)
        for row in rows:
            for column in _COLUMNS:
                getattr(copy, column).append(getattr(self, column)[row][:])
        return copy

    def arrays(self, row: int) -> dict[str, np.ndarray]:
        """What is kept of a row, for a file."""
        return {column: np.array(getattr(self, column)[row]) for column in _COLUMNS}

    @classmethod
    def from_arrays(cls, rows: Sequence[Mapping[str, np.ndarray]]) -> "Recording":
        """The rows that `arrays` gave."""
        recording = cls(len(rows))
        for row, arrays in enumerate(rows):
            for column in _COLUMNS:
                getattr(recording, column)[row].extend(arrays[column].tolist())
        return recording

    def cut(self, row: int, length: int) -> None:
        """Forgets what a row took behind so many tokens."""
        for column in _COLUMNS:
            del getattr(self, column)[row][length:]


_COLUMNS = ("ids", "writers", "log_probs", "sampled_log_probs")


class RecordingFile:
    """A sink that writes a line of JSON for every event; memory does not grow.

    One session writes it. A session that was saved, or rolled back, and goes on with the same file writes on from
    where it stands: what is read is what it did last.

    Args:
        path: of the file.
        goes_on: whether it may be there already.

    Raises:
        RecordingError: the file cannot be written, or is there already.
    """

    def __init__(self, path: str | Path, goes_on: bool) -> None:
        self._path = Path(path)
        try:
            self._path.touch(exist_ok=goes_on)
        except OSError as error:
            raise RecordingError(
                f"the recording {path} cannot be begun ({error}): give a path in a folder that exists, of a file that "
                "does not"
            ) from error

    def take(self, events: Sequence[Event]) -> None:
        lines = []
        for event in events:
            line: dict[str, Any] = {
                "row": event.row,
                "position": event.position,
                "tokens": list(event.tokens),
                "writers": list(event.writers),
            }
            for name in ("log_probs", "sampled_log_probs"):
                said = getattr(event, name)
                if said is not None:
                    line[name] = [None if value != value else value for value in said]
            lines.append(json.dumps(line) + "\n")
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)


def read_recording(path: str | Path) -> Recording:
    """What a `RecordingFile` has written.

    Raises:
        RecordingError: the file cannot be read, or is none.
    """
    recording = Recording(0)
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, text in enumerate(lines, 1):
                if not text.endswith("\n"):
                    break  # the process was killed in the middle of its last line
                event = _read_event(json.loads(text))
                for column in _COLUMNS:
                    rows, empty = getattr(recording, column), getattr(Recording(1), column)[0]
                    rows += [empty[:] for _ in range(event.row + 1 - len(rows))]
                if event.position > len(recording.ids[event.row]):
                    raise ValueError(f"line {number} goes on from a token that is not there")
                recording.cut(event.row, event.position)
                recording.take([event])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordingError(f"{path} is no recording of a session ({error}): give the path of one") from error
    return recording


def _read_event(line: dict[str, Any]) -> Event:
    scores = {
        name: [_NAN if value is None else value for value in line[name]]
        for name in ("log_probs", "sampled_log_probs")
        if name in line
    }
    return Event(line["row"], line["position"], line["tokens"], bytes(line["writers"]), **scores)
