"""What is refused before a training begins, because it would quietly train something else."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig

from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.models.modeling_tool_mamba import ToolMambaMixer
from hf_toolssm.protocol.render import IGNORED
from hf_toolssm.training.adapter_targets import check_adapters
from hf_toolssm.training.heads import Head
from hf_toolssm.training.sft_config import PASSED, ToolSFTConfig

logger = logging.getLogger(__name__)


def datasets_in(rows: Any) -> list[Dataset]:
    """What can be looked at of one set of rows, or of several by name."""
    return [each for each in (rows.values() if isinstance(rows, dict) else [rows]) if isinstance(each, Dataset)]


def settle_state_passing(model: Any, owner: Any, args: ToolSFTConfig) -> None:
    """Says how many batches go on where nothing was said: as many as help, if the model (`owner`) can go on."""
    if args.state_passing_share is None:
        args.state_passing_share = PASSED if owner is not None else 0.0
        if owner is None and args.process_index == 0:
            what = "every batch starts from zeros: a %s takes no state in training (any Mamba does, as a ToolMamba)"
            logger.warning(what, type(model).__name__)


def settle_router_loss(model: Any, args: ToolSFTConfig) -> None:
    """Switches off a loss on routers where TRL would stop at it: where there are no experts, or it cannot count them.

    Raises:
        UnsafeTrainingError: that loss was asked for.
    """
    config = AutoConfig.from_pretrained(model) if isinstance(model, str) else getattr(model, "config", None)
    config = None if config is None else config.get_text_config()
    if not hasattr(config, "output_router_logits") or (getattr(config, "num_experts", None) or 0) > 1:
        return
    experts = getattr(config, "num_local_experts", None)
    if args.router_aux_loss_coef:
        raise UnsafeTrainingError(
            f"router_aux_loss_coef balances experts, and TRL finds none in a {type(model).__name__}: leave it out"
        )
    args.router_aux_loss_coef = 0.0
    if experts and args.process_index == 0:
        logger.warning("the load of the %d experts of a %s is not balanced by a loss", experts, type(model).__name__)


def check_model(model: Any, causal_lm: Any, owner: Any, args: ToolSFTConfig) -> None:
    """Raises UnsafeTrainingError where a model cannot be trained as asked.

    Args:
        model: PEFT's wrapper of `causal_lm`, or that itself.
        owner: the one of ours in it, whose state can be passed on; None where there is none.
    """
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
    if args.slow_decay_weight > 0:
        mixers = [module for module in model.modules() if isinstance(module, ToolMambaMixer)]
        if not mixers:
            raise UnsafeTrainingError(
                f"slow_decay_weight is of a ToolMamba's states, and this is a {type(model).__name__}: leave it out"
            )
        if args.activation_checkpointing or getattr(model, "is_gradient_checkpointing", False):
            raise UnsafeTrainingError(
                "slow_decay_weight reads what activation checkpointing throws away: leave out one of the two"
            )
        plain = all(type(layer) is torch.nn.Linear for mixer in mixers for layer in (mixer.x_proj, mixer.dt_proj))
        if args.slow_decay_at_worst and not plain:
            raise UnsafeTrainingError(
                "slow_decay_at_worst reads the weights of x_proj and dt_proj, and an adapter stands beside them: "
                "leave it out, or train in full"
            )
    compiled = args.torch_compile or any(m._compiled_call_impl or hasattr(m, "_orig_mod") for m in model.modules())
    if owner is not None and compiled:
        raise UnsafeTrainingError(
            f"torch.compile is refused for a {type(owner).__name__}: its kernels are compiled already, and what is "
            "left would be compiled again for every length of a batch. Leave it out."
        )
    if owner is not None and any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        raise UnsafeTrainingError(
            "an adapter of virtual tokens shifts every label: train a LoRA or all weights instead"
        )
    tables = [causal_lm.get_input_embeddings()]
    if not causal_lm.config.get_text_config().tie_word_embeddings:
        tables.append(causal_lm.get_output_embeddings())
    frozen = not all(any(weight.requires_grad for weight in table.parameters()) for table in tables)
    if frozen and getattr(causal_lm.config, "tool_token_ids", None):
        logger.warning(
            "the embeddings of the tool tokens are frozen and stay as they are: if they are new, pass a LoraConfig as "
            "peft_config to the trainer, or use hf_toolssm.training.lora.add_lora, which train them"
        )
    check_adapters(model)


def check_rows(dataset: Dataset, heads: Sequence[Head]) -> None:
    """Raises UnsafeTrainingError where the first 100 rows lack labels or targets, or have too many."""
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
    for head in heads:
        if head.column not in dataset.column_names:
            raise UnsafeTrainingError(
                f"the rows have no {head.column}, from which head {head.name} takes its targets: add that column"
            )
    for index in range(min(len(dataset), 100)):
        row = dataset[index]
        for head in heads:
            if len(row["input_ids"]) != len(row[head.column]):
                raise UnsafeTrainingError(
                    f"row {index} has {len(row['input_ids'])} tokens and {len(row[head.column])} targets in "
                    f"{head.column}: give one for each token, and {IGNORED} where there is none"
                )
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


def check_cut_loss(trainer: Any, has_own: bool) -> None:
    """Refuses losses that `bptt_length` would cut wrongly; a subclass may have its own."""
    used = {"label_smoothing_factor": trainer.label_smoother, "compute_loss_func": trainer.compute_loss_func}
    named = [name for name, loss in used.items() if loss is not None]
    named += [f"{type(trainer).__name__}.compute_loss"] * has_own
    if trainer.args.bptt_length is not None and named:
        raise UnsafeTrainingError(
            f"{named[0]} with bptt_length is refused: it would shift the labels inside a piece, and so miss the token "
            "behind every cut. Leave out one of the two."
        )


def check_heads_ran(trainer: Any, ran: bool) -> None:
    """Refuses a step that trained no head, because a subclass computes a loss of its own."""
    if trainer.heads and not ran:
        raise UnsafeTrainingError(
            f"{type(trainer).__name__}.compute_loss trains no head: let it add to what super().compute_loss returns"
        )
