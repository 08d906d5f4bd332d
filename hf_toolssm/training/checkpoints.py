"""Which checkpoint a run can be resumed from."""

import json
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_toolssm.errors import NoCheckpointError


def last_whole_checkpoint(folder: Path) -> Path:
    """The latest checkpoint of a run that was written to its end; one that an interruption cut off is passed over.

    Raises:
        NoCheckpointError: there is none.
    """
    found = whole_checkpoint(folder)
    if found is None:
        raise NoCheckpointError(
            f"{folder} holds no whole checkpoint to resume from: start the run without resume_from_checkpoint"
        )
    return found


def whole_checkpoint(folder: Path) -> Path | None:
    """The same; None where there is none."""
    whole = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_whole(path)]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # transformers writes it last
    except (OSError, json.JSONDecodeError):
        return False
    return True
