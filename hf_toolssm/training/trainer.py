"""`SFTTrainer` with state passing: training sees the states that long sequences lead to.

A model trained from zero states on short problems has never been in the states that a long run reaches. Starting a
share of the batches from the final states of the batch before (Ruiz & Gu, arXiv 2507.02782, "state passing") shows
them.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers.trainer_pt_utils import BatchRebalanceSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from hf_toolssm.cache.recurrent_state import RecurrentState
from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.protocol.render import IGNORED
from hf_toolssm.training.checks import (
    check_cut_loss,
    check_heads_ran,
    check_model,
    check_rows,
    datasets_in,
    settle_router_loss,
    settle_state_passing,
)
from hf_toolssm.training.curriculum import EpochOfRows
from hf_toolssm.training.freed_memory import keep_freed_memory
from hf_toolssm.training.heads import (
    HEADS_FILE,
    Head,
    TargetCollator,
    heads_on_model,
    load_heads,
    modules_of,
    save_heads,
    try_head,
)
from hf_toolssm.training.hidden_states import CarriedStates, Start, reading
from hf_toolssm.training.labelled_scores import NO_LOGITS, score_labels
from hf_toolssm.training.pieces import cut, labels_of_next_tokens
from hf_toolssm.training.sft_config import ToolSFTConfig
from hf_toolssm.training.slow_decay import slow_decays
from hf_toolssm.training.token_means import TokenMeans
from hf_toolssm.training.wrapped_models import (
    as_saved,
    causal_lm_in,
    give_head_a_bias,
    move,
    own_forwards,
    own_models,
    take_off_forwards,
)

logger = logging.getLogger(__name__)

_TARGET_COUNTS = "target_counts"
"""In a batch, by head: how many targets all batches of the step hold, of all processes."""


class ToolSFTTrainer(SFTTrainer):
    """TRL's `SFTTrainer` on rendered trajectories (`input_ids` and `labels`), for ToolMamba and any other causal
    language model.

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
        heads: what else is learned from the hidden states, see `training.heads`. One forward serves the language model
            and all of them. They are trained, clipped, saved and resumed with the model, in a file of their own.

    Attributes:
        states: what is passed on, see `CarriedStates`; None where nothing is.

    Raises:
        UnsafeTrainingError: a state is to be passed on that the model does not have, a LoRA is where it cannot train
            or leaves the tool tokens untrained (see `training.lora.complete_lora`), a loss is cut by `bptt_length`,
            among the first 100 rows one has no labels, no label that carries loss, or nothing but such labels, or a
            head does not fit the model, the rows or another head.
    """

    args: ToolSFTConfig
    data_collator: Any
    _signature_columns: Any

    def __init__(
        self,
        model: Any,
        args: ToolSFTConfig,
        train_dataset: Dataset,
        accuracy: Callable[[Any], float] | None = None,
        heads: Sequence[Head] = (),
        **kwargs: Any,
    ) -> None:
        args = copy.copy(args)  # what is settled by this model is not said of the next
        self.heads = list(heads)
        self._head_modules = modules_of(self.heads)
        held_out = kwargs.get("eval_dataset")
        for rows in (train_dataset, *datasets_in(held_out)):
            check_rows(rows, self.heads)
        if accuracy is not None and isinstance(held_out, dict):
            raise UnsafeTrainingError(
                "accuracy chooses by one evaluation set, and eval_dataset names several: pass one of them"
            )
        if kwargs.get("peft_config") is not None:
            from hf_toolssm.training.lora import complete_lora  # needs the extra `peft`

            move(model, args.device)
            kwargs["peft_config"] = complete_lora(model, kwargs["peft_config"])
        settle_router_loss(model, args)
        before = own_forwards(model)
        super().__init__(model, args=args, train_dataset=train_dataset, **kwargs)
        take_off_forwards(self.model, before)
        self._check_loss()
        self._owner: Any = next(iter(own_models(self.model)), None)
        self._causal_lm = causal_lm_in(self.model)
        give_head_a_bias(self._causal_lm)
        settle_state_passing(self._causal_lm, self._owner, args)
        check_model(self.model, self._causal_lm, self._owner, args)
        self._means = TokenMeans(self.accelerator)
        self._take_heads()
        self.states: CarriedStates | None = None
        if self._owner is not None and args.starts_from_states:
            state_class = type(self._owner).state_class
            self.states = CarriedStates(state_class, self._owner.config, args.seed, args.process_index)
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self._accuracy = accuracy

    def _take_heads(self) -> None:
        if not self.heads:
            return
        elsewhere = self.is_fsdp_enabled or self.is_deepspeed_enabled or self.optimizer is not None
        if elsewhere or self.args.ddp_find_unused_parameters is not False:
            raise UnsafeTrainingError(
                "heads are trained on one device or by data parallelism, with the trainer's own optimizer and "
                "ddp_find_unused_parameters: false"
            )
        self._head_modules.to(self.args.device)
        for rows in (self.train_dataset, *datasets_in(self.eval_dataset)):
            for head in self.heads:
                try_head(head, self._causal_lm.config.get_text_config().hidden_size, rows)
        self.data_collator = TargetCollator(self.data_collator, [head.column for head in self.heads])

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' training. The heads stand on the model meanwhile, so that whatever trains it trains them."""
        with self._heads_on_model(True):
            return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Transformers' optimizer of the model and the heads."""
        with self._heads_on_model(True):
            return super().create_optimizer(model)

    def _heads_on_model(self, on: bool) -> AbstractContextManager[None]:
        return heads_on_model(self.model, self._head_modules, on)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Transformers' evaluation, with the given accuracy; see the class."""
        self._means.take("eval")  # of a prediction before
        metrics = super().evaluate(*args, **kwargs)
        if self._accuracy is not None:
            model = self.accelerator.unwrap_model(self.model)
            with as_saved(model), self._heads_on_model(False):
                accuracy = self._accuracy(causal_lm_in(model))
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
            self.add_callback(EpochOfRows(sampler))
        return sampler

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*{*self._signature_columns, *(head.column for head in self.heads)}]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Tensor | int | None]:
        """Transformers' batches of a step, which know how many targets of a head the step has."""
        batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        if self.heads and num_items_in_batch is not None:
            per_head = [sum((batch[head.column] != IGNORED).sum() for batch in batches) for head in self.heads]
            counts = torch.stack(per_head).to(self.args.device)
            if self.args.average_tokens_across_devices:
                counts = self.accelerator.reduce(counts, "sum")
            for batch in batches:
                batch[_TARGET_COUNTS] = {head.name: count for head, count in zip(self.heads, counts)}
        return batches, num_items_in_batch

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward from the state that the batch starts from, whatever the loss runs in between.

        With `bptt_length`, rows longer than it are trained in pieces; see `ToolSFTConfig`.
        """
        pieces = self._pieces(inputs)
        if len(pieces) > 1:
            self._check_loss()  # once more: it can be set on the trainer
        self._heads_ran = False
        if self.states is None and len(pieces) == 1:
            loss = super().training_step(model, inputs, num_items_in_batch)
            check_heads_ran(self, self._heads_ran)
            return loss
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
        check_heads_ran(self, self._heads_ran)
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The language model's loss on the labelled tokens, plus each head's weighted loss, plus, in training, the
        weighted penalty on slow decay, which counts as much as the batch's labelled tokens.

        One forward gives the hidden states for all of them. Models that are not ours are scored as TRL does it, which
        knows how each makes logits of them.
        """
        columns = {head.column for head in self.heads}
        given = {name: value for name, value in inputs.items() if name not in columns | {_TARGET_COUNTS}}
        decays: AbstractContextManager[list[Tensor]] = nullcontext([])
        if self.args.slow_decay_weight and torch.is_grad_enabled():
            decays = slow_decays(model, inputs["attention_mask"], self.args.slow_decay_at_worst)
        with reading(self._causal_lm.base_model) as hidden, decays as slow:
            if self._owner is None:
                result = super().compute_loss(model, given, return_outputs, num_items_in_batch)
            else:
                result = self._language_model_loss(model, given, hidden, return_outputs, num_items_in_batch)
        if not (self.heads or slow):
            return result
        loss, outputs = result if return_outputs else (result, None)
        # As for the language model: DDP averages gradients, and the counts are those of every process.
        processes = self._processes_averaged(num_items_in_batch)
        label_count = (labels_of_next_tokens(inputs) != IGNORED).sum()
        items = torch.as_tensor(label_count if num_items_in_batch is None else num_items_in_batch / processes)
        sums = {"lm_loss": (loss * items, label_count)} if self.heads else {}
        if slow:
            penalty = torch.stack(slow).mean() * label_count
            sums["slow_decay"] = penalty, label_count
            loss = loss + self.args.slow_decay_weight * penalty / items.clamp(min=1)
        self._heads_ran = True
        self._head_modules.train(self.model.training)
        with self.accelerator.autocast():
            for head in self.heads:
                head_sum, count = sums[f"{head.name}_loss"] = head.sums(hidden[0], inputs[head.column])
                total = inputs.get(_TARGET_COUNTS, {head.name: count})[head.name]
                loss = loss + head.weight * processes * head_sum / total.clamp(min=1)
        self._means.add(self._mode, sums)
        return (loss, outputs) if return_outputs else loss

    def _language_model_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        hidden: list[Tensor],
        return_outputs: bool,
        num_items_in_batch: Tensor | int | None,
    ) -> Any:
        is_smoothed = self.label_smoother is not None and self.args.loss_type == "nll"
        needs_logits = return_outputs or is_smoothed or self.compute_loss_func is not None
        without_labels = {name: value for name, value in inputs.items() if name not in ("labels", "shift_labels")}
        if not needs_logits:
            without_labels["logits_to_keep"] = NO_LOGITS
        outputs = model(**without_labels, use_cache=False)

        next_tokens = labels_of_next_tokens(inputs)
        mask = next_tokens != IGNORED
        before_labels = hidden[0][:, : mask.shape[1]][mask]
        with self.accelerator.autocast():
            scores = score_labels(self._owner.get_output_embeddings(), before_labels, next_tokens[mask])
        count = mask.sum()
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, inputs["labels"], num_items_in_batch=num_items_in_batch)
        elif is_smoothed:
            loss = self.label_smoother(
                outputs, inputs["labels"], shift_labels=True, num_items_in_batch=num_items_in_batch
            )
        else:
            log_probs = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, scores.log_probs)
            per_token = -log_probs
            if self.args.loss_type == "dft":  # arXiv 2508.05629
                per_token = per_token * log_probs.exp().detach()
            items = count if num_items_in_batch is None else num_items_in_batch
            loss = per_token.sum() / torch.as_tensor(items).clamp(min=1)
        means = {"entropy": (scores.entropy.sum(), count), "mean_token_accuracy": (scores.is_top1.sum(), count)}
        loss = loss * self._processes_averaged(num_items_in_batch)
        self._means.add(self._mode, means, inputs["attention_mask"].sum() if self.model.training else None)
        return (loss, outputs) if return_outputs else loss

    def _processes_averaged(self, num_items_in_batch: Tensor | int | None) -> int:
        """Over how many processes DDP averages a loss that was divided by what all of them hold."""
        everywhere = self.args.average_tokens_across_devices and num_items_in_batch is not None
        return self.accelerator.num_processes if everywhere else 1

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with the means over the tokens since the last one; see `TokenMeans`."""
        means = self._means.take(self._mode)
        if "entropy" in means:
            means["num_tokens"] = self._means.num_tokens
        # An evaluation's losses say which set they are of: `eval_loss`, `eval_long_loss`.
        of_set = next((name.removesuffix("loss") for name in logs if name.endswith("_loss")), "eval_")
        logs.update({(name if self.model.training else of_set + name): value for name, value in means.items()})
        super().log(logs, start_time)

    def _check_loss(self) -> None:
        check_cut_loss(self, has_own=type(self).compute_loss is not ToolSFTTrainer.compute_loss)

    def _initial_state(self, rows: int) -> RecurrentState:
        if self.states is not None:
            return self.states.draw(rows, self.args.state_passing_share or 0.0, self.args.state_noise_share)
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
        return cut(inputs, length, longest, [head.column for head in self.heads])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Transformers' files of the model, and the heads' beside them."""
        if self.args.should_save:  # first: saving the model may publish the folder
            save_heads(self.heads, output_dir or self.args.output_dir)
        with self._heads_on_model(False):
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # First, because the file that says that a checkpoint is whole comes last.
        if self.states is not None:
            self.states.save(Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self._heads_on_model(False):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.heads:
            load_heads(self.heads, resume_from_checkpoint)
        elif (Path(resume_from_checkpoint) / HEADS_FILE).exists():
            raise UnsafeTrainingError(
                f"{resume_from_checkpoint} was trained with heads: give them to the trainer again"
            )
        if self.states is None:
            return
        path = self.states.file(Path(resume_from_checkpoint))
        if path.exists():
            self.states.load(Path(resume_from_checkpoint), str(self.args.device))
        else:
            logger.warning("%s is missing: the first batch starts from zeros, unlike in an uninterrupted run", path)

    def _load_best_model(self) -> None:
        with self._heads_on_model(False):
            super()._load_best_model()
        if self.heads:
            load_heads(self.heads, self.state.best_model_checkpoint)
