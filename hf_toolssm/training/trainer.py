"""`SFTTrainer` with state passing: training sees the states that long sequences lead to.

A model trained from zero states on short problems has never been in the states that a long run reaches. Starting a
share of the batches from the final states of the batch before (Ruiz & Gu, arXiv 2507.02782, "state passing") shows
them.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import BatchRebalanceSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from hf_toolssm.cache.recurrent_state import RecurrentState
from hf_toolssm.errors import NoCheckpointError, UnsafeTrainingError
from hf_toolssm.models.modeling_tool_mamba import ADAPTER_TARGETS
from hf_toolssm.protocol.render import IGNORED
from hf_toolssm.training.freed_memory import keep_freed_memory
from hf_toolssm.training.hidden_states import CarriedStates, Start
from hf_toolssm.training.sft_config import ToolSFTConfig

logger = logging.getLogger(__name__)


class ToolSFTTrainer(SFTTrainer):
    """TRL's `SFTTrainer` on rendered trajectories (`input_ids` and `labels`), for ToolMamba and for its baselines.

    A model with a `state_class` (ToolMamba, LSTM, GRU, RMT) can have its state passed on; any other trains as it is.

    Row i of a batch goes on from row i of the batch before: rows are drawn at random, so the pairing is too, and it is
    the same for any number of processes. Where batches differ in size, it is the latest batch that had a row i, and a
    batch of more rows than any before takes them again from the first. Which batches go on is decided by the seed and
    the count of batches. The carried states are saved with every checkpoint.

    `train_sampling_strategy="batch_rebalance"` with gradient accumulation spares most of the padding: the rows of one
    step are sorted by length into micro-batches of about equal work. A long row then goes on from a shorter one of its
    step, or from a long one of the step before.

    Args:
        accuracy: measures the model, for example free-running on problems longer than those of the training: a share
            from 0 to 1. Every evaluation then reports it as `eval_accuracy`, and `eval_selection`, which orders models
            by it and those of equal accuracy by their loss on `eval_dataset`: `load_best_model_at_end` with
            `metric_for_best_model="selection"` keeps the best.

    Attributes:
        states: what is passed on, see `CarriedStates`; None where nothing is.

    Raises:
        UnsafeTrainingError: a state is to be passed on that the model does not have, a LoRA is where it cannot train
            or leaves the tool tokens untrained (see `training.lora.complete_lora`), a loss is cut by `bptt_length`,
            or among the first 100 rows one has no labels, no label that carries loss, or nothing but such labels.
    """

    args: ToolSFTConfig

    def __init__(
        self,
        model: Any,
        args: ToolSFTConfig,
        train_dataset: Dataset,
        accuracy: Callable[[Any], float] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_rows(train_dataset)
        held_out = kwargs.get("eval_dataset")
        for rows in held_out.values() if isinstance(held_out, dict) else [held_out]:
            if isinstance(rows, Dataset):
                _check_rows(rows)
        if accuracy is not None and isinstance(held_out, dict):
            raise UnsafeTrainingError(
                "accuracy chooses by one evaluation set, and eval_dataset names several: pass one of them"
            )
        if kwargs.get("peft_config") is not None:
            from hf_toolssm.training.lora import complete_lora  # needs the extra `peft`

            kwargs["peft_config"] = complete_lora(model, kwargs["peft_config"])
        before = {module: vars(module).get("forward") for module in _own_models(model)}
        super().__init__(model, args=args, train_dataset=train_dataset, **kwargs)
        for module in _own_models(self.model):
            del module.forward  # TRL's: the class's own answers the same call
            if before.get(module) is not None:
                module.forward = before[module]
        self._check_loss()
        self._owner: Any = next(iter(_own_models(self.model)), None)
        _check_model(self.model, self._owner, args)
        self.states: CarriedStates | None = None
        if self._owner is not None and args.starts_from_states:
            state_class = type(self._owner).state_class
            self.states = CarriedStates(state_class, self._owner.config, args.seed, args.process_index)
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self._accuracy = accuracy

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Transformers' evaluation, with the given accuracy; see the class."""
        metrics = super().evaluate(*args, **kwargs)
        if self._accuracy is not None:
            model = self.accelerator.unwrap_model(self.model)
            # Of PEFT's wrapper, the model with the adapters in it, which can run free.
            free = model.get_base_model() if hasattr(model, "get_base_model") else model
            with _as_saved(model):
                accuracy = self._accuracy(free)
            # At most a thousandth, less than one problem of many is worth.
            tie_break = 1e-3 / (1 + metrics["eval_loss"])
            measured = {"eval_accuracy": accuracy, "eval_selection": accuracy + tie_break}
            self.log(measured)
            metrics |= measured
        return metrics

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, BatchRebalanceSampler):
            sampler.seed = self.args.data_seed  # transformers has one order for all seeds
            self.add_callback(_EpochOfRows(sampler))
        return sampler

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward from the state that the batch starts from, whatever the loss runs in between.

        With `bptt_length`, rows longer than it are trained in pieces; see `ToolSFTConfig`.
        """
        pieces = self._pieces(inputs)
        if len(pieces) > 1:
            self._check_loss()  # once more: it can be set on the trainer
        if self.states is None and len(pieces) == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        state = self._initial_state(len(inputs["input_ids"]))
        losses = []
        for index, piece in enumerate(pieces):
            start = Start(piece["input_ids"], state)
            last = index == len(pieces) - 1
            with start.of(self._owner.base_model), nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, piece, num_items_in_batch))
            state = start.end
        if self.states is not None:
            self.states.keep(state)
        if len(pieces) > 1:
            self._average_piece_metrics(pieces)
        return torch.stack(losses).sum()

    def _check_loss(self) -> None:
        if self.args.bptt_length is None:
            return
        named = [
            name
            for name, used in {
                "label_smoothing_factor": self.label_smoother is not None,
                "compute_loss_func": self.compute_loss_func is not None,
                f"{type(self).__name__}.compute_loss": type(self).compute_loss is not SFTTrainer.compute_loss,
            }.items()
            if used
        ]
        if named:
            raise UnsafeTrainingError(
                f"{named[0]} with bptt_length is refused: it would shift the labels inside a piece, and so miss the "
                "token behind every cut. Leave out one of the two."
            )

    def _initial_state(self, rows: int) -> RecurrentState:
        if self.states is not None:
            return self.states.draw(rows, self.args.state_passing_share, self.args.state_noise_share)
        return type(self._owner).state_class(self._owner.config)

    def _pieces(self, inputs: dict[str, Any]) -> list[dict[str, Tensor]]:
        """The batch cut along its length; one piece if it need not be cut."""
        length = self.args.bptt_length
        if length is None:
            return [inputs]
        real = inputs["attention_mask"].any(0).nonzero()
        longest = self.accelerator.gather((real[-1] + 1).to(self.args.device)).max().item()
        if longest <= length:
            return [inputs]
        # Every process runs as many pieces, because each piece's metrics are gathered.
        count = -(-longest // length)
        shifted = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
        columns = {
            "input_ids": (inputs["input_ids"], 0),
            "attention_mask": (inputs["attention_mask"], 0),
            "labels": (inputs["labels"], IGNORED),
            "shift_labels": (shifted, IGNORED),
        }
        pieces = []
        for start in range(0, count * length, length):
            stop = min(start + length, longest)
            width = 1 if bool((~inputs["attention_mask"][:, start:stop].bool()).all()) else stop - start
            pieces.append(
                {
                    name: F.pad(part := values[:, start : start + width], (0, width - part.shape[1]), value=fill)
                    for name, (values, fill) in columns.items()
                }
            )
        return pieces

    def _average_piece_metrics(self, pieces: list[dict[str, Tensor]]) -> None:
        """Leaves one entry for the batch in TRL's metrics, in which pieces weigh as much as they have labels."""
        counts = torch.stack([(piece["shift_labels"] != IGNORED).sum() for piece in pieces]).to(self.args.device)
        weights = self.accelerator.reduce(counts).tolist()
        for name in ("entropy", "mean_token_accuracy"):
            entries = self._metrics["train"][name]
            parts = entries[-len(pieces) :]
            entries[-len(pieces) :] = [sum(w * part for w, part in zip(weights, parts)) / max(1, sum(weights))]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # First, because the file that says that a checkpoint is whole comes last.
        if self.states is not None:
            self.states.save(Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.states is None:
            return
        path = self.states.file(Path(resume_from_checkpoint))
        if path.exists():
            self.states.load(Path(resume_from_checkpoint), str(self.args.device))
        else:
            logger.warning("%s is missing: the first batch starts from zeros, unlike in an uninterrupted run", path)


class _EpochOfRows(TrainerCallback):
    """Tells a rebalanced order its epoch, which transformers forgets when several processes resume."""

    def __init__(self, sampler: BatchRebalanceSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


def last_whole_checkpoint(folder: Path) -> Path:
    """The latest checkpoint of a run that was written to its end; one that an interruption cut off is passed over.

    Raises:
        NoCheckpointError: there is none.
    """
    whole = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_whole(path)]
    if not whole:
        raise NoCheckpointError(
            f"{folder} holds no whole checkpoint to resume from: start the run without resume_from_checkpoint"
        )
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # transformers writes it last
    except (OSError, json.JSONDecodeError):
        return False
    return True


def _own_models(model: Any) -> list[Any]:
    """The causal language models in it that have a state to pass on."""
    modules = model.modules() if isinstance(model, nn.Module) else ()  # a name is loaded by TRL
    return [module for module in modules if hasattr(type(module), "state_class")]


@contextmanager
def _as_saved(model: Any) -> Iterator[None]:
    """Takes off what accelerate puts on a model for mixed precision, which is no part of what is saved."""
    mixed = vars(model).pop("forward", None) if hasattr(model, "_original_forward") else None
    try:
        yield
    finally:
        if mixed is not None:
            model.forward = mixed


def _check_model(model: Any, owner: Any, args: ToolSFTConfig) -> None:
    if owner is None and (args.starts_from_states or args.bptt_length is not None):
        raise UnsafeTrainingError(
            f"{type(model).__name__} has no state that this trainer could pass on: set state_passing_share: 0, no "
            "state_noise_share and no bptt_length, or load a Mamba checkpoint with ToolMambaForCausalLM"
        )
    if args.state_noise_share > 0 and not type(owner).state_class.continuous:
        raise UnsafeTrainingError(
            f"the state of {type(model).__name__} holds tokens, which noise would make into others: set "
            "state_noise_share: 0"
        )
    compiled = args.torch_compile or any(m._compiled_call_impl or hasattr(m, "_orig_mod") for m in model.modules())
    if owner is not None and compiled:
        raise UnsafeTrainingError(
            f"torch.compile is refused for a {type(owner).__name__}: its kernels are compiled already, and what is "
            "left would be compiled again for every length of a batch. Leave it out."
        )
    frozen = owner is not None and not any(p.requires_grad for p in owner.get_input_embeddings().parameters())
    if frozen and owner.config.tool_token_ids:
        logger.warning(
            "the embeddings of the tool tokens are frozen and stay as they are: if they are new, pass a LoraConfig as "
            "peft_config to the trainer, or use hf_toolssm.training.lora.add_lora, which train them"
        )
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and name.rpartition(".")[2] not in ADAPTER_TARGETS:
            raise UnsafeTrainingError(
                f"a LoRA on {name} would not train or not merge: target only {', '.join(ADAPTER_TARGETS)}"
            )


def _check_rows(dataset: Dataset) -> None:
    if not isinstance(dataset, Dataset):
        raise UnsafeTrainingError(
            f"the rows are a {type(dataset).__name__}, whose labels cannot be checked: pass a datasets.Dataset"
        )
    missing = {"input_ids", "labels"} - set(dataset.column_names)
    if missing:
        raise UnsafeTrainingError(
            f"the training rows have no {' and '.join(sorted(missing))}: render them with "
            "hf_toolssm.Renderer, which leaves problem and observations without loss"
        )
    for index in range(min(len(dataset), 100)):
        row = dataset[index]
        if len(row["input_ids"]) != len(row["labels"]):
            raise UnsafeTrainingError(
                f"row {index} has {len(row['input_ids'])} tokens and {len(row['labels'])} labels"
            )
        labels = torch.tensor(row["labels"])
        if bool((labels == IGNORED).all()):
            raise UnsafeTrainingError(f"no token of row {index} carries loss: render the rows again")
        if not bool((labels == IGNORED).any()):
            raise UnsafeTrainingError(
                f"every token of row {index} carries loss, the problem and the observations included: "
                "render the rows with hf_toolssm.Renderer"
            )
