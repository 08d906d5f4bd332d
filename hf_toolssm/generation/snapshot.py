"""A session on disk: one safetensors file with the model's state, the tools' state and what the rows were doing.

Tensors hold what is large (states, logits, tool memories, pending observations, answers); the file's metadata holds
the rest as JSON. A killed process leaves the file before or the file after.
"""

import hashlib
import json
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate.utils import align_module_device
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_toolssm.cache.cache_tensors import replace_tensors
from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.cache.recurrent_state import RecurrentState
from hf_toolssm.errors import SnapshotError, StateMismatchError, UnforkableToolError
from hf_toolssm.files import atomic_write
from hf_toolssm.generation.decoder import StepWeights
from hf_toolssm.generation.decoding import HeldChoices
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.generation.recording import Recording, RecordingFile
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.token_protocol import TokenProtocol

FORMAT = "hf_toolssm session 5"


class Value:
    """What is copied as a whole by `clone`, and pickled never: two copies of the same rows would move each other's."""

    def clone(self) -> Self:
        """An independent one in the same state."""
        raise NotImplementedError

    def __copy__(self) -> Self:
        return self.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.clone()

    def __reduce__(self) -> Any:
        what = type(self).__name__.lower()
        raise SnapshotError(f"a {what} is not pickled, as its model is no part of it: use {what}.save(path)")


@dataclass
class Snapshot:
    """A session as a value, which its model is no part of. `Session` says what the attributes are; a file that it
    records to is not saved with it."""

    rows: list[Row]
    state: ModelState
    temperature: float
    randoms: list[random.Random]
    step_weights: StepWeights
    tokens: int
    held_choices: HeldChoices
    recording: Recording | RecordingFile | None
    beside: Mapping[str, Any] = field(default_factory=dict)


_SMALL = ("temperature", "step_weights", "tokens")
"""What stands in the metadata as it is."""


def write_snapshot(snapshot: Snapshot, model: Any, protocol: TokenProtocol, path: str | Path) -> None:
    """Writes a session; see the module's text.

    Args:
        snapshot: none of its rows waits for a call.
        model: of the session.
        protocol: of the session.
        path: of the file.

    Raises:
        SnapshotError: the file cannot be written, or a tool's state is none.
        UnforkableToolError: a tool is not to be saved, or several rows share what it remembers.
    """
    tensors = {f"state.{name}": tensor for name, tensor in snapshot.state.to_tensors().items()}
    tensors |= {f"beside.{name}": value for name, value in snapshot.beside.items() if isinstance(value, Tensor)}
    rows = []
    _check_shared(snapshot.rows)
    for index, row in enumerate(snapshot.rows):
        arrays, described = _describe(row)
        version, internal, _ = snapshot.randoms[index].getstate()
        arrays["random"] = np.array([version, *internal], np.int64)
        if isinstance(snapshot.recording, Recording):
            arrays |= {f"recorded.{name}": column for name, column in snapshot.recording.arrays(index).items()}
        tensors |= {f"row.{index}.{name}": torch.from_numpy(array) for name, array in arrays.items()}
        rows.append(described)
    facts = {
        "format": FORMAT,
        "model": fingerprint(model),
        "protocol": protocol.meaning(),
        "held_choices": [list(snapshot.held_choices.items()), list(snapshot.held_choices.stopped)],
        "is_recorded": isinstance(snapshot.recording, Recording),
        "beside": {name: value for name, value in snapshot.beside.items() if not isinstance(value, Tensor)},
        "rows": rows,
        **{name: getattr(snapshot, name) for name in _SMALL},
    }
    try:
        with atomic_write(Path(path)) as temporary:
            save_file(tensors, temporary, {"session": json.dumps(facts)})
    except (OSError, SafetensorError, TypeError) as error:
        raise SnapshotError(
            f"the session cannot be saved to {path} ({error}): give a path in a folder that exists, and let a tool's "
            "state() hold numpy arrays and JSON values"
        ) from error


def _check_shared(rows: list[Row]) -> None:
    seen: set[int] = set()
    for row in rows:
        for facts, at_work in zip(row.protocol.tools, row.tools):
            if facts.remembers and id(at_work) in seen and facts.state(at_work):
                raise UnforkableToolError(
                    f"rows share the tool {next(iter(facts.calls))!r}, which a file would take apart: save the rows "
                    "one by one, or let the tool keep nothing in state()"
                )
            seen.add(id(at_work))


def read_snapshot(path: str | Path, runner: ModelRunner, protocol: TokenProtocol) -> Snapshot:
    """Reads a session back.

    Args:
        path: of the file.
        runner: of the model that it was saved with.
        protocol: of the tools, tokens and ends that it was started with.

    Raises:
        SnapshotError: the file is none that `write_snapshot` wrote.
        StateMismatchError: it is of another model, or of other tools.
    """
    facts, tensors = _read(Path(path))
    if facts["model"] != fingerprint(runner.model):
        raise StateMismatchError(
            f"the session in {path} was saved with other weights, another dtype or another architecture: load it with "
            "the model that it was saved with"
        )
    if facts["protocol"] != json.loads(json.dumps(protocol.meaning())):
        raise StateMismatchError(
            f"the session in {path} was saved with other tools, tokens or end_ids: pass those that it was started with"
        )
    try:
        of_rows = [_below(tensors, f"row.{index}.") for index in range(len(facts["rows"]))]
        recorded = [{k: t.numpy() for k, t in _below(mine, "recorded.").items()} for mine in of_rows]
        return Snapshot(
            rows=[_restore(row, mine, protocol) for row, mine in zip(facts["rows"], of_rows)],
            state=state_from_tensors(runner, _below(tensors, "state.")),
            randoms=[_random_from(mine["random"].tolist()) for mine in of_rows],
            held_choices=HeldChoices(*facts["held_choices"]),
            recording=Recording.from_arrays(recorded) if facts["is_recorded"] else None,
            beside=facts["beside"] | _below(tensors, "beside."),
            **{name: facts[name] for name in _SMALL},
        )
    except KeyError as error:
        raise SnapshotError(f"{path} lacks {error}: it was not saved whole") from error


def fingerprint(model: Any) -> str:
    """A hash of the configuration, and of the weights' names, shapes, dtypes and a few values of each."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _PASSING}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in dict(model.named_parameters()):
        if name in model.all_tied_weights_keys:
            continue  # offloaded, one weight is two
        module = model.get_submodule(name.rpartition(".")[0])
        with align_module_device(module):  # offloaded weights are there only while their module is called
            weight = getattr(module, name.rpartition(".")[2]).detach()
            few = weight.flatten()[:: max(1, weight.numel() // 64)].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + few.tobytes())
    return digest.hexdigest()


_PASSING = ("_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype")
"""What a configuration says of where it comes from, and not of the model."""


def _random_from(saved: list[int]) -> random.Random:
    restored = random.Random()
    restored.setstate((saved[0], tuple(saved[1:]), None))
    return restored


def _describe(row: Row) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A row as arrays and JSON."""
    lists, described = row.saved()
    arrays = {f"tokens.{name}": np.array(tokens, np.int64) for name, tokens in lists.items()}
    tools = []
    for index, (facts, at_work) in enumerate(zip(row.protocol.tools, row.tools)):
        small = {}
        for name, value in facts.state(at_work).items():
            if isinstance(value, np.ndarray):
                arrays[f"tool.{index}.{name}"] = np.array(value, order="C")  # a copy: two rows may share one
            else:
                small[name] = value
        tools.append(small)
    return arrays, {**described, "tools": tools}


def _restore(described: dict[str, Any], tensors: dict[str, Tensor], protocol: TokenProtocol) -> Row:
    small = described.pop("tools")
    tools = []
    for index, facts in enumerate(protocol.tools):
        large = {name: tensor.numpy() for name, tensor in _below(tensors, f"tool.{index}.").items()}
        tools.append(facts.restore({**small[index], **large}, protocol.marker))
    lists = {name: tensor.tolist() for name, tensor in _below(tensors, "tokens.").items()}
    lists["pending"] = deque(lists["pending"])
    return protocol.restore_row(tools, described | lists)


def state_from_tensors(runner: ModelRunner, tensors: dict[str, Tensor]) -> ModelState:
    """Fills the state that one token leaves, whose layers are of the right kinds."""
    device = runner.device
    lengths = tensors["lengths"].tolist()
    template, _ = runner.feed(None, [[0]])
    saved = {name: tensor.to(device) for name, tensor in _below(tensors, "cache.").items()}
    state = ModelState(replace_tensors(template.cache, saved), lengths, tensors["logits"].to(device))
    if isinstance(state.cache, RecurrentState):
        state.cache.check(state.cache, runner.model.config, len(lengths))
    if state.logits.shape != (len(lengths), template.logits.shape[1]):
        raise StateMismatchError("the session's logits are not those of this model: it was not saved whole")
    return state.select(range(len(lengths)))  # which also tells attention layers how long they are


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as opened:
            facts = json.loads((opened.metadata() or {})["session"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SnapshotError(f"{path} is no session that Session.save wrote ({error}): give the path of one") from error
    if facts.get("format") != FORMAT:
        raise SnapshotError(f"{path} is a {facts.get('format')!r} and this version reads {FORMAT!r}: save it again")
    return facts, tensors
