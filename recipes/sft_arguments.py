"""What recipes/sft.py can be told, beside the arguments of TRL's trainer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.models.architectures import BASELINES, TOOL_MAMBA


@dataclass
class RecipeArguments:
    task: str = field(
        default="addition",
        metadata={"help": "A file of dataset_builders/tasks/ or machines/, or the path of your own machine, a .tm."},
    )
    variant: str | None = field(
        default=None, metadata={"help": "Which of the task's algorithms; by default its first."}
    )
    mixture: list[str] = field(
        default_factory=list,
        metadata={
            "help": "More tasks to train on, each as task:max_length=weight or task/variant:max_length=weight; the "
            "recipe's own task has weight 1. They are built in output_dir; measure them with recipes/evaluate.py."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "A folder or a Hub id; by default built into output_dir/dataset. One with a column messages (and "
            "tools), or prompt and completion, trains a model that chats."
        },
    )
    train_max_length: int = field(default=5, metadata={"help": "Longest training problem."})
    num_examples: int = field(default=40_000, metadata={"help": "Training rows to build."})
    dataset_seed: int = field(default=0, metadata={"help": "Another seed gives other problems."})
    num_proc: int = field(default=2, metadata={"help": "Processes that build and render rows."})
    rule_walks: int = field(
        default=0,
        metadata={
            "help": "Rows to train on beside those of problems: walks through the task's rule, in which a tool shows "
            "anything that it could. A model that is to be proved right has to be right there, too. They are of the "
            "recipe's own task, and come on top of a mixture."
        },
    )
    model: str | None = field(default=None, metadata={"help": "A checkpoint to fine-tune; from scratch without."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "The checkpoint's tokenizer, a folder or a Hub id; by default the one beside it. Checkpoints of "
            "mamba_ssm come without. On messages a model from scratch may have one too."
        },
    )
    chat_template: str | None = field(
        default=None,
        metadata={
            "help": "On messages: toolssm gives the tokenizer our template and its tokens; by default its own is used."
        },
    )
    vocabulary_size: int = field(
        default=2_000,
        metadata={"help": "On messages, from scratch, without --tokenizer: of the one that is learned from them."},
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Train a LoRA of that rank and merge it at the end; 0 trains all weights."}
    )
    architecture: str = field(
        default=TOOL_MAMBA,
        metadata={"help": f"Of a model from scratch: {TOOL_MAMBA}, or a baseline: {', '.join(BASELINES)}."},
    )
    hidden_size: int = field(default=64, metadata={"help": "Width, from scratch."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Depth, from scratch."})
    state_size: int = field(default=16, metadata={"help": "State per channel, from scratch."})
    time_step_min: float = field(
        default=0.05,
        metadata={
            "help": "Smallest initial step size, from scratch. A trajectory of small k needs a state that forgets: "
            "with steps from 0.001, as Mamba starts, old tokens pile up in long phases that training never shows."
        },
    )
    time_step_max: float = field(default=0.5, metadata={"help": "Largest initial step size, from scratch."})
    conv_kernel: int = field(
        default=4,
        metadata={
            "help": "Tokens that a layer's convolution sees, from scratch. Where it sees all k tokens that decide, no "
            "state has to remember them, and all may forget fast: what a model that is to be proved right needs."
        },
    )
    curriculum: bool = field(
        default=False, metadata={"help": "The first half of the training goes from short rows to long ones."}
    )
    selection_length: int | None = field(
        default=None,
        metadata={
            "help": "Checkpoint selection: at every save the model runs free on 16 validation problems up to this "
            "length, longer than training's, and the best is kept; among equals the one of the lowest loss."
        },
    )
    eval_lengths: list[int] = field(
        default_factory=lambda: [5, 10, 100, 1000], metadata={"help": "Lengths measured after training."}
    )
    eval_adversarial_lengths: list[int] = field(
        default_factory=list, metadata={"help": "Lengths of the adversarial sets measured after training."}
    )
    eval_num_problems: int = field(default=32, metadata={"help": "Problems a set."})
    eval_batch_size: int = field(
        default=32, metadata={"help": "Problems that run side by side; fewer need less memory."}
    )

    def __post_init__(self) -> None:
        # A config's `4` is an int, which transformers refuses where it wants a float.
        self.time_step_min, self.time_step_max = float(self.time_step_min), float(self.time_step_max)
        if self.rule_walks < 0 or self.conv_kernel < 1:
            raise UnsafeTrainingError(
                f"rule_walks are at least 0 and conv_kernel at least 1, not {self.rule_walks} and {self.conv_kernel}"
            )

    @property
    def mamba(self) -> dict[str, float]:
        """What a Mamba from scratch is made of beside its shape."""
        return {name: getattr(self, name) for name in ("time_step_min", "time_step_max", "conv_kernel")}


FOR_MESSAGES = ("chat_template", "vocabulary_size")
"""What has a meaning on messages only."""

FOR_TRAJECTORIES = (
    *("task", "variant", "mixture", "train_max_length", "num_examples", "dataset_seed", "rule_walks", "curriculum"),
    *("selection_length", "eval_lengths", "eval_adversarial_lengths", "eval_num_problems", "eval_batch_size"),
)
"""What has a meaning on trajectories only."""


def refuse(recipe: RecipeArguments, names: Sequence[str], why: str) -> None:
    """Raises UnsafeTrainingError where one of these options was given, because it would be ignored."""
    defaults = RecipeArguments()
    for name in names:
        if getattr(recipe, name) != getattr(defaults, name):
            raise UnsafeTrainingError(f"--{name} {why}: leave it out")
