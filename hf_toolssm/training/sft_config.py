"""`SFTConfig` for models of tool trajectories: right defaults, and guards for what is quietly wrong."""

import math
from dataclasses import dataclass, field

from trl import SFTConfig

from hf_toolssm.errors import UnsafeTrainingError

PASSED = 0.5
"""The share of batches that go on, of a model with a state that can be passed on, where none is said."""


@dataclass
class ToolSFTConfig(SFTConfig):
    """TRL's `SFTConfig` with initial states and `bptt_length`, without truncation or packing.

    Raises:
        UnsafeTrainingError: an option would quietly train something else than the trajectories.
    """

    state_passing_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of batches that start from the final states of the batch before instead of zeros "
            f"(Ruiz & Gu, arXiv 2507.02782). 0 switches it off; by default it is {PASSED} for a model that takes a "
            "state in training, and 0 for any other."
        },
    )
    state_noise_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of batches that start from noise with the mean and deviation of the states that state "
            "passing would start from, of each process its own ('fitted noise' in the same paper). Together with "
            "state_passing_share at most 1."
        },
    )
    slow_decay_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a penalty on states that decay slowly, see `training.slow_decay`: what a model that is "
            "to be proved right needs. 0 switches it off."
        },
    )
    slow_decay_at_worst: bool = field(
        default=False,
        metadata={
            "help": "The penalty is on how slowly states could decay, whatever a layer read, and not on how they do: "
            "what a proof needs where a convolution sees more tokens than a context knows."
        },
    )
    bptt_length: int | None = field(
        default=None,
        metadata={
            "help": "Rows longer than this are trained in consecutive pieces of so many tokens: the state is carried "
            "from piece to piece, gradients are not, and memory is that of one piece. None trains every row whole."
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Must stay None: a cut trajectory has lost its answer."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Old name of activation_checkpointing: off by default."}
    )
    use_cache: bool = field(
        default=True, metadata={"help": "What the saved model's config says; training itself keeps no cache."}
    )
    data_seed: int | None = field(default=None, metadata={"help": "Seed of the order of the rows; by default `seed`."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every trained weight has a gradient in every batch: none is searched for."}
    )
    bf16: bool | None = field(default=False, metadata={"help": "bfloat16 autocast; worth it on a GPU."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_seed is None:  # otherwise a resumed run shuffles by whatever random state it finds
            self.data_seed = self.seed
        refused = {
            "packing": (self.packing, "a recurrent state leaks from one packed trajectory into the next"),
            "eval_packing": (self.eval_packing, "a recurrent state leaks from one packed trajectory into the next"),
            "padding_free": (self.padding_free, "a recurrent state leaks from one trajectory into the next"),
            "max_length": (self.max_length is not None, "a cut trajectory loses its answer without a word"),
            "assistant_only_loss": (self.assistant_only_loss, "the labels of the rows already say what is learned"),
            "completion_only_loss": (self.completion_only_loss, "the labels of the rows already say what is learned"),
            "chat_template_path": (self.chat_template_path, "the rows are rendered already, by another template"),
            "eos_token": (self.eos_token, "the rows are rendered already, with the ends that the tokenizer gives"),
            "train_sampling_strategy": (
                self.train_sampling_strategy == "group_by_length" and self.starts_from_states,
                "states would be passed on only between rows of one length; set state_passing_share: 0 to use it",
            ),
        }
        for name, (asked, why) in refused.items():
            if asked:
                raise UnsafeTrainingError(f"{name}={getattr(self, name)} is refused: {why}. Leave it out.")
        if not 0 <= self.slow_decay_weight < math.inf:
            raise UnsafeTrainingError(f"slow_decay_weight is at least 0 and finite, and not {self.slow_decay_weight}")
        if self.slow_decay_at_worst and not self.slow_decay_weight:
            raise UnsafeTrainingError("slow_decay_at_worst says what slow_decay_weight weighs, which is 0: set it too")
        if self.slow_decay_weight and self.bptt_length is not None:
            raise UnsafeTrainingError(
                "slow_decay_weight is weighted by a batch's labelled tokens, and a piece of a prompt has none: leave "
                "out bptt_length, or the weight"
            )
        if self.bptt_length is not None and self.bptt_length < 1:
            raise UnsafeTrainingError(f"bptt_length is a number of tokens, at least 1, not {self.bptt_length}")
        shares = (PASSED if self.state_passing_share is None else self.state_passing_share, self.state_noise_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise UnsafeTrainingError(
                "state_passing_share and state_noise_share are shares from 0 to 1, together at most 1, and not "
                f"{shares[0]} and {shares[1]}"
            )

    @property
    def starts_from_states(self) -> bool:
        """Whether any batch starts from more than zeros, if the model has a state that can be passed on."""
        return self.state_passing_share != 0 or self.state_noise_share > 0
