"""What running rows took, kept: in memory, or in a file that grows while they run."""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import RecordingError
from hf_toolssm.generation.events import Event
from hf_toolssm.generation.token_protocol import TokenProtocol
from hf_toolssm.protocol.trajectory import Trajectory, Writer

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
        self.ids: list[array[int]] = []
        self.writers: list[bytearray] = []
        self.log_probs: list[array[float]] = []
        self.sampled_log_probs: list[array[float]] = []
        for _ in range(rows):
            self.add_row()

    def add_row(self) -> None:
        """One more, which has taken nothing yet."""
        self.ids.append(array("q"))
        self.writers.append(bytearray())
        self.log_probs.append(array("d"))
        self.sampled_log_probs.append(array("d"))

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            ids = self.ids[event.row]
            for name in _SCORES:
                column, said = getattr(self, name)[event.row], getattr(event, name)
                if said is not None or column:
                    column.extend([_NAN] * (len(ids) - len(column)))
                    column.extend([_NAN] * len(event.tokens) if said is None else said)
            ids.extend(event.tokens)
            self.writers[event.row].extend(event.writers)

    def trajectories(self, tokenizer: PreTrainedTokenizerBase, protocol: TokenProtocol) -> list[Trajectory]:
        """Every row as a trajectory; what broke off is there as far as it went."""
        return [protocol.trajectory(ids, by, tokenizer) for ids, by in zip(self.ids, self.writers)]

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


_SCORES = ("log_probs", "sampled_log_probs")
_COLUMNS = ("ids", "writers", *_SCORES)


class RecordingFile:
    """A sink that writes a line of JSON for every event; memory does not grow.

    One session writes it: a copy of a session that records to a file records nothing. What a full disk does not take
    is kept, and written with what is told next.

    Args:
        path: of the file.
        size: bytes of it that stand; what is behind them is overwritten.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._unwritten: list[str] = []

    @classmethod
    def begin(cls, path: str | Path) -> "RecordingFile":
        """A new file.

        Raises:
            RecordingError: it is there already, or its folder is not.
        """
        absolute = Path(path).absolute()
        if absolute.exists() or not absolute.parent.is_dir():
            raise RecordingError(
                f"the recording {path} cannot be begun: give the path of a new file, in a folder that exists"
            )
        return cls(absolute, 0)

    @classmethod
    def going_on(
        cls, path: str | Path, lengths: Sequence[int], kept: "Recording | RecordingFile | None"
    ) -> "RecordingFile":
        """The file of a session that was saved and goes on: what it did behind that is forgotten.

        Args:
            path: of the file; a new one begins with what was kept.
            lengths: of every row, how many tokens it has taken.
            kept: what the session kept in memory; None where it kept nothing.

        Raises:
            RecordingError: the file lacks what the session took, or cannot be read or written.
        """
        path = Path(path).absolute()
        if not path.exists() and isinstance(kept, Recording):
            file = cls.begin(path)
            for row, ids in enumerate(kept.ids):
                told = (kept.log_probs[row] or None, kept.sampled_log_probs[row] or None)
                file.take([Event(row, 0, ids, bytes(kept.writers[row]), *told)])
            return file
        found = [0] * len(lengths)
        whole = 0  # a line that a killed process did not end is left out
        for event, end in _read_events(path):
            if event.row < len(found):
                found[event.row] = event.position + len(event.tokens)
            whole = end
        if any(has < length for has, length in zip(found, lengths)):
            raise RecordingError(
                f"{path} has {found} tokens and the session {list(lengths)}: give the file of its own"
            )
        file = cls(path, whole)
        for row, length in enumerate(lengths):
            file.cut(row, length)
        return file

    def cut(self, row: int, length: int) -> None:
        """Says that what a row took behind so many tokens is forgotten."""
        self.take([Event(row, length, [], b"")])

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            line: dict[str, Any] = {"row": event.row, "position": event.position}
            line |= {"tokens": list(event.tokens), "writers": list(event.writers)}
            for name in _SCORES:
                said = getattr(event, name)
                if said is not None:
                    line[name] = [None if value != value else value for value in said]
            self._unwritten.append(json.dumps(line) + "\n")
        written = "".join(self._unwritten).encode()
        try:
            with self._path.open("ab") as file:
                if file.tell() < self._size:
                    raise OSError("it is no longer what it was")
                file.truncate(self._size)
                file.write(written)
        except OSError as error:
            raise RecordingError(
                f"{self._path} ends here, because it cannot be written ({error}): make room, and what it lacks is "
                "written when the session goes on"
            ) from error
        self._size += len(written)
        self._unwritten.clear()


def begin_recording(record: bool | str | Path, rows: int) -> Recording | RecordingFile | None:
    """What a new session of so many rows records to: memory, a new file, or nothing.

    Raises:
        RecordingError: it is none of these, or the file is there already.
    """
    if not isinstance(record, bool | str | Path) or record == "":
        raise RecordingError(f"record is True, False or the path of a file, and not {record!r}")
    if isinstance(record, bool):
        return Recording(rows) if record else None
    return RecordingFile.begin(record)


def read_recording(path: str | Path) -> Recording:
    """What a `RecordingFile` has written.

    Raises:
        RecordingError: the file cannot be read, or is none.
    """
    recording = Recording(0)
    for event, _ in _read_events(Path(path)):
        if event.row == len(recording.ids):
            recording.add_row()
        recording.cut(event.row, event.position)
        recording.take([event])
    return recording


def _read_events(path: Path) -> Iterator[tuple[Event, int]]:
    """The events of a file, and where in it each line ends; one that a killed process did not end is left out."""
    lengths: dict[int, int] = {}
    end = 0
    try:
        with path.open("rb") as lines:
            for text in lines:
                if not text.endswith(b"\n"):
                    break
                line = json.loads(text)
                said = {name: line[name] for name in _SCORES if name in line}
                told = {name: [_NAN if v is None else float(v) for v in values] for name, values in said.items()}
                event = Event(line["row"], line["position"], line["tokens"], bytes(line["writers"]), **told)
                sizes = {len(event.tokens), len(event.writers), *map(len, told.values())}
                is_right = len(sizes) == 1 and {*event.writers} <= {*Writer} and 0 <= event.row <= len(lengths)
                is_right = is_right and all(0 <= token < 2**31 for token in event.tokens)
                if not is_right or not 0 <= event.position <= lengths.get(event.row, 0):
                    raise ValueError(f"at byte {end} stands what no session writes")
                lengths[event.row] = event.position + len(event.tokens)
                end += len(text)
                yield event, end
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordingError(f"{path} is no recording of a session ({error}): give the path of one") from error
