"""A session on disk: one safetensors file with the model's state, the tools' state and what the rows were doing.

Tensors hold what is large (states, logits, tool memories, pending observations, answers); the file's metadata holds
the rest as JSON. A killed process leaves the file before or the file after.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import SnapshotError, StateMismatchError
from hf_toolssm.files import whole_file
from hf_toolssm.generation.decoder import StepWeights
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.session import Session
from hf_toolssm.generation.token_protocol import TokenProtocol, make_protocol
from hf_toolssm.models.cache_tensors import replace_tensors
from hf_toolssm.models.model_state import ModelState
from hf_toolssm.models.state import RecurrentState
from hf_toolssm.tools import Tool

FORMAT = "hf_toolssm session 1"


@dataclass
class _Facts:
    """What the metadata says beside the rows."""

    format: str
    model: str
    protocol: dict[str, Any]
    temperature: float
    step_weights: StepWeights
    tokens: int
    held: dict[str, int]
    rows: list[dict[str, Any]]


def save_session(session: Session, path: str | Path) -> None:
    """Writes a session; see the module's text.

    Args:
        session: its calls under way end first.
        path: of the file.

    Raises:
        SnapshotError: the file cannot be written, or a tool's state is none.
    """
    session.settle()
    tensors = {f"state.{name}": tensor for name, tensor in session.state.to_tensors().items()}
    rows = []
    for index, row in enumerate(session.rows):
        arrays, described = _describe(row)
        version, internal, _ = session.randoms[index].getstate()
        arrays["random"] = np.array([version, *internal], np.int64)
        tensors |= {f"row.{index}.{name}": torch.from_numpy(array) for name, array in arrays.items()}
        rows.append(described)
    facts = _Facts(
        format=FORMAT,
        model=fingerprint(session.runner.model),
        protocol=_meaning(session.protocol),
        temperature=session.temperature,
        step_weights=session.step_weights,
        tokens=session.tokens,
        held={str(row): token for row, token in session.held.items()},
        rows=rows,
    )
    try:
        with whole_file(Path(path)) as temporary:
            save_file(tensors, temporary, {"session": json.dumps(vars(facts))})
    except (OSError, SafetensorError, TypeError) as error:
        raise SnapshotError(
            f"the session cannot be saved to {path} ({error}): give a path in a folder that exists, and let a tool's "
            "state() hold numpy arrays and JSON values"
        ) from error


def load_session(
    path: str | Path,
    model: Any,
    tools: Sequence[Mapping[str, Any] | Tool] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    end_ids: Sequence[int] | None,
) -> Session:
    """Reads a session back; `tools`, `tokenizer` and `end_ids` are those that it was started with.

    Raises:
        SnapshotError: the file is none that `save_session` wrote.
        StateMismatchError: it is of another model, or of other tools.
    """
    facts, tensors = _read(Path(path))
    if facts.model != fingerprint(model):
        raise StateMismatchError(
            f"the session in {path} was saved with other weights, another dtype or another architecture: load it with "
            "the model that it was saved with"
        )
    protocol = make_protocol(model, tools, tokenizer, end_ids)
    if facts.protocol != _meaning(protocol):
        raise StateMismatchError(
            f"the session in {path} was saved with other tools, tokens or end_ids: pass those that it was started with"
        )
    runner = ModelRunner(model)
    try:
        of_rows = [_below(tensors, f"row.{index}.") for index in range(len(facts.rows))]
        rows = [_restore(row, mine, protocol) for row, mine in zip(facts.rows, of_rows)]
        randoms = [_random_from(mine["random"].tolist()) for mine in of_rows]
        state = _state_from_tensors(runner, _below(tensors, "state."))
    except KeyError as error:
        raise SnapshotError(f"{path} lacks {error}: it was not saved whole") from error
    session = Session(runner, protocol, rows, state, facts.temperature, randoms, facts.step_weights)
    session.tokenizer, session.tokens = tokenizer, facts.tokens
    session.held = {int(row): token for row, token in facts.held.items()}
    return session


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


def _meaning(protocol: TokenProtocol) -> dict[str, Any]:
    """What every token does that does something."""
    commands = {text: token for token, (_, text) in protocol.commands.items()}
    return {"commands": commands, "answer": protocol.answer, "ends": sorted(map(str, protocol.ends))}


def _random_from(saved: list[int]) -> random.Random:
    restored = random.Random()
    restored.setstate((saved[0], tuple(saved[1:]), None))
    return restored


def _describe(row: Row) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A row as arrays and JSON."""
    arrays = {"pending": np.array(row.pending, np.int64), "answer": np.array(row.answer, np.int64)}
    tools = []
    for index, session in enumerate(row.sessions):
        small = {}
        for name, value in session.state().items():
            if isinstance(value, np.ndarray):
                arrays[f"tool.{index}.{name}"] = np.array(value, order="C")  # a copy: two rows may share one
            else:
                small[name] = value
        tools.append(small)
    facts = {name: getattr(row, name) for name in ("answering", "tool_calls", "finished", "complete", "error")}
    return arrays, {**facts, "tools": tools}


def _restore(facts: dict[str, Any], tensors: dict[str, Tensor], protocol: TokenProtocol) -> Row:
    marker = protocol.ids.__getitem__
    small = facts.pop("tools")
    sessions = []
    for index, tool in enumerate(protocol.tools):
        large = {name: tensor.numpy() for name, tensor in _below(tensors, f"tool.{index}.").items()}
        sessions.append(tool.restore({**small[index], **large}, marker))
    row = Row(protocol, sessions, **facts)
    row.pending.extend(tensors["pending"].tolist())
    row.answer = tensors["answer"].tolist()
    return row


def _state_from_tensors(runner: ModelRunner, tensors: dict[str, Tensor]) -> ModelState:
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


def _read(path: Path) -> tuple[_Facts, dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as opened:
            facts = _Facts(**json.loads((opened.metadata() or {})["session"]))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SnapshotError(f"{path} is no session that Session.save wrote ({error}): give the path of one") from error
    if facts.format != FORMAT:
        raise SnapshotError(f"{path} is a {facts.format!r} and this version reads {FORMAT!r}: save it again")
    return facts, tensors
