"""What every training of `recipes/sft.py` shares, whatever its rows say: train, resume, save, publish."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certificate import commit
from datasets import Dataset
from publish import card_template
from sft_arguments import RecipeArguments
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_toolssm.errors import ToolSSMError, UnsafeTrainingError
from hf_toolssm.evaluation.report import REPORT_FILES
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.hub.model_card import write_model_card
from hf_toolssm.hub.publish import Destination
from hf_toolssm.hub.publish_model import publish_model
from hf_toolssm.models import tool_models
from hf_toolssm.models.architectures import TOOL_MAMBA, check_checkpoint
from hf_toolssm.training.adapter_targets import what_trains
from hf_toolssm.training.checkpoints import last_whole_checkpoint
from hf_toolssm.training.sft_config import ToolSFTConfig
from hf_toolssm.training.trainer import ToolSFTTrainer
from hf_toolssm.training.wrapped_models import move


def base_tokenizer(recipe: RecipeArguments) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the checkpoint that is fine-tuned; None from scratch."""
    if recipe.model is None:
        return None
    if recipe.architecture != TOOL_MAMBA:
        raise UnsafeTrainingError(
            f"architecture {recipe.architecture} is of a model from scratch, and a checkpoint has its own: leave out "
            "--architecture or --model"
        )
    check_checkpoint(recipe.model)
    return tool_models.checkpoint_tokenizer(recipe.model, recipe.tokenizer)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    recipe: RecipeArguments,
    config: ToolSFTConfig,
    start: float,
    new_tokens: Sequence[int] | None = None,
    selection: dict[str, Any] | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]] | None:
    """Trains on rendered rows, and saves model and tokenizer.

    Args:
        start: `time.perf_counter()` when the command began.
        new_tokens: whose embeddings a LoRA trains; by default the tool tokens'.
        selection: what the trainer needs to keep the best of its checkpoints.

    Returns:
        The model as it was saved, and what is to be told of its training. None in all processes but the main one.
    """
    output = Path(config.output_dir)
    revision = recipe.model and tool_models.checkpoint_revision(recipe.model)  # now: asking may fail
    move(model, config.device)  # whose kernels decide what runs, and where an adapter trains
    ModelRunner(model)  # refuses what could not work through tools once it is trained
    if recipe.lora_rank:
        from hf_toolssm.training.lora import add_lora  # needs the extra `peft`

        model = add_lora(model, recipe.lora_rank, new_tokens)
    trainer = ToolSFTTrainer(model, config, rows, processing_class=tokenizer, **selection or {})
    if trainer.accelerator.is_main_process:
        print(what_trains(model))
    resume = config.resume_from_checkpoint
    if str(resume).lower() == "true":  # the last checkpoint; anything else is a checkpoint's folder
        resume = str(last_whole_checkpoint(output))
    trained = trainer.train(resume_from_checkpoint=resume)

    is_main = trainer.accelerator.is_main_process
    if is_main:  # figures of an earlier training must not stand beside these weights
        for name in (*REPORT_FILES, "README.md"):
            (output / name).unlink(missing_ok=True)
    if not recipe.lora_rank:
        trainer.save_model()
    if not is_main:
        return None
    # Without what accelerate adds for mixed precision: what is measured is what is saved.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if recipe.lora_rank:
        model = model.merge_and_unload()
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return model, {
        "architecture": model.config.model_type if recipe.model else recipe.architecture,
        "base_model": recipe.model,
        "base_model_revision": revision,
        "tokenizer": recipe.tokenizer,
        "lora_rank": recipe.lora_rank,
        "seed": config.seed,
        "num_parameters": model.num_parameters(),
        "steps": trainer.state.global_step,
        "batch_size": config.train_batch_size * config.gradient_accumulation_steps * config.world_size,
        "learning_rate": config.learning_rate,
        "state_passing_share": trainer.args.state_passing_share,
        "state_noise_share": config.state_noise_share,
        "slow_decay_weight": config.slow_decay_weight,
        "slow_decay_at_worst": config.slow_decay_at_worst,
        "selected_step": trainer.state.best_global_step if selection else None,
        "train_loss": trained.training_loss,
        "resumed": bool(resume),  # then the minutes are those since
        "commit": commit(),
        "train_minutes": round((time.perf_counter() - start) / 60, 2),
    }


def write_card_and_publish(output: Path, destination: Destination | None) -> None:
    """Writes the model's card, and publishes what was trained if it is to be published."""
    template = card_template(output)
    write_model_card(output, template)
    if destination is None:
        return
    try:
        print(publish_model(output, destination, template))
    except ToolSSMError as error:
        command = f"python recipes/publish.py --model {output} --repo_id {destination.repo_id}"
        error.add_note(f"The model itself is finished. Publish it without training again: {command}")
        raise
