"""Checkpoint selection: the best of a training's checkpoints is the one that is right on longer problems."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy

from hf_toolssm.evaluation.free_running import evaluate_free_running
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.training.sft_config import ToolSFTConfig


def checkpoint_selection(
    config: ToolSFTConfig, tokenizer: PreTrainedTokenizerBase, references: Sequence[Trajectory], length: int
) -> dict[str, Any]:
    """What `ToolSFTTrainer` needs to keep the best of its checkpoints, by running free at every save.

    Args:
        config: evaluates at every save from then on, and ends with the best model.
        tokenizer: of the model.
        references: solved problems that are longer than those of the training.
        length: of the longest.

    Returns:
        The trainer's `eval_dataset` and `accuracy`.
    """
    rows = Dataset.from_list([Renderer(tokenizer).render(reference) for reference in references])

    def accuracy(model: PreTrainedModel) -> float:
        return evaluate_free_running(model, tokenizer, "validation", length, references).trajectory_accuracy or 0.0

    config.save_strategy = config.eval_strategy = IntervalStrategy.STEPS
    config.eval_steps = config.save_steps
    config.per_device_eval_batch_size = 4  # long rows
    config.load_best_model_at_end, config.greater_is_better = True, True
    config.metric_for_best_model = "selection"
    return {"eval_dataset": rows, "accuracy": accuracy}
