"""`SFTConfig` for recurrent models on tool trajectories: right defaults, and guards for what is quietly wrong."""

from dataclasses import dataclass, field

from trl import SFTConfig

from hf_toolssm.errors import UnsafeTrainingError


@dataclass
class ToolSFTConfig(SFTConfig):
    """TRL's `SFTConfig` with `state_passing_share` and `bptt_length`, without truncation, packing or recomputation.

    Raises:
        UnsafeTrainingError: an option would quietly train something else than the trajectories.
    """

    state_passing_share: float = field(
        default=0.5,
        metadata={
            "help": "Share of batches that start from the final states of the batch before instead of zeros "
            "(Ruiz & Gu, arXiv 2507.02782). 0 switches it off."
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
        default=None, metadata={"help": "Old name of activation_checkpointing; either only without state passing."}
    )
    data_seed: int | None = field(default=None, metadata={"help": "Seed of the order of the rows; by default `seed`."})
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
            "train_sampling_strategy": (
                self.train_sampling_strategy == "group_by_length" and self.state_passing_share > 0,
                "states would be passed on only between rows of one length; set state_passing_share: 0 to use it",
            ),
            "gradient_checkpointing": (
                self.gradient_checkpointing and (self.state_passing_share > 0 or self.bptt_length is not None),
                "the recomputation would start from the final state; set state_passing_share: 0 to use it, and no "
                "bptt_length",
            ),
        }
        for name, (asked, why) in refused.items():
            if asked:
                raise UnsafeTrainingError(f"{name}={getattr(self, name)} is refused: {why}. Leave it out.")
        if self.bptt_length is not None and self.bptt_length < 1:
            raise UnsafeTrainingError(f"bptt_length is a number of tokens, at least 1, not {self.bptt_length}")
        if not 0 <= self.state_passing_share <= 1:
            raise UnsafeTrainingError(f"state_passing_share is a share from 0 to 1, not {self.state_passing_share}")
