"""The models and problems that are measured: ours, stock on the same weights, and solved additions as tokens."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM, PreTrainedTokenizerBase

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TEST, TRAINING, ProblemSet, ReferenceTrajectories
from hf_toolssm import ToolMambaConfig, ToolMambaForCausalLM
from hf_toolssm.generation.decoder import StepWeights, make_decoder
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model
from hf_toolssm.protocol.render import IGNORED, Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.tools import make_tool
from measure import relative_difference

TASK, VARIANT = "addition", "local"
ADDITION_SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16}


@dataclass(frozen=True)
class Scale:
    """How much is measured. The targets are for `FULL`; `SMALL` shows in seconds that every part runs.

    Attributes:
        repetitions: of what takes less than a few seconds.
        train_batch: rows and tokens of a training step.
        train_lengths: tokens of the one row of a step, for the time per token by length.
        large_shape: the model of 130 million parameters.
        large_train_tokens: of its one row.
        large_steps: decode steps of it, ours and stock's.
        digits: of the one addition that is decoded, and of each of many side by side.
        stock_steps: decode steps of stock.
        observation: tokens of a tool's result.
        session: tokens of one session.
        conversation: a user's turns of a chat, and calls in each.
        rows: of a dataset.
        read_mib: what the bandwidth is measured on.
        product_size: what the arithmetic is measured on.
    """

    repetitions: int
    train_batch: tuple[int, int]
    train_lengths: tuple[int, ...]
    large_shape: dict[str, int]
    large_train_tokens: int
    large_steps: tuple[int, int]
    digits: tuple[int, int]
    stock_steps: int
    observation: int
    session: int
    conversation: tuple[int, int]
    rows: int
    read_mib: int
    product_size: int


FULL = Scale(
    repetitions=5,
    train_batch=(64, 192),
    train_lengths=(1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536),
    large_shape={"vocab_size": 50_280, "hidden_size": 768, "num_hidden_layers": 24, "state_size": 16},
    large_train_tokens=512,
    large_steps=(60, 20),
    digits=(1_000, 100),
    stock_steps=300,
    observation=10_000,
    session=1_000_000,
    conversation=(50, 20),
    rows=2_000,
    read_mib=1_024,
    product_size=2_048,
)
SMALL = Scale(
    repetitions=2,
    train_batch=(4, 24),
    train_lengths=(64, 128, 256),
    large_shape={"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    large_train_tokens=32,
    large_steps=(10, 5),
    digits=(5, 3),
    stock_steps=10,
    observation=200,
    session=2_000,
    conversation=(2, 2),
    rows=40,
    read_mib=8,
    product_size=128,
)


def addition_model(path: str | None) -> tuple[ToolMambaForCausalLM, PreTrainedTokenizerBase]:
    """The trained model at `path`, or one of the same shape with random weights, in evaluation mode."""
    if path is not None:
        model = ToolMambaForCausalLM.from_pretrained(path, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(path)
    return random_model(**ADDITION_SHAPE)


def random_model(**shape: int) -> tuple[ToolMambaForCausalLM, PreTrainedTokenizerBase]:
    """A model that could be trained on addition, in evaluation mode; `vocab_size` may exceed the tokenizer's."""
    task = load_task(TASK)
    specs = task.tools(VARIANT)
    tokenizer = build_task_tokenizer(task.cells(VARIANT), [make_tool(spec) for spec in specs])
    torch.manual_seed(0)
    model = ToolMambaForCausalLM(ToolMambaConfig(**{"vocab_size": len(tokenizer), **shape})).eval()
    # As initialised, a shallow model's state hardly shows in its logits, and a wrong one would pass for right, while a
    # deep one doubles every rounding error layer by layer, as no trained model does.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.6 * model.config.hidden_size**-0.5 * torch.randn_like(parameter)
        for block in model.backbone.layers:
            block.mixer.out_proj.weight *= (2 / model.config.num_hidden_layers) ** 3
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=0)
    return model, tokenizer


def stock_model(model: ToolMambaForCausalLM, mambapy: bool = False) -> MambaForCausalLM:
    """Stock transformers on a copy of the same weights; `mambapy` has it train with that package's scan."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "state_size", "layer_norm_epsilon")
    stock = MambaForCausalLM(
        MambaConfig(**{name: getattr(model.config, name) for name in names}, use_mambapy=mambapy, eos_token_id=None)
    )
    stock.load_state_dict(model.state_dict())
    stock.generation_config.eos_token_id = None  # it writes as many tokens as it is asked for
    return stock.to(model.dtype).eval()


@dataclass(frozen=True)
class Solved:
    """A solved problem as tokens: its prompt, all that follows it, and the answer alone."""

    prompt: list[int]
    solution: list[int]
    answer: list[int]


@lru_cache(maxsize=1)  # the same problems serve several figures
def solved_additions(tokenizer: PreTrainedTokenizerBase, digits: int, count: int) -> list[Solved]:
    """Problems whose numbers have that many digits each, so that all prompts are equally long."""
    renderer = Renderer(tokenizer)
    problems = ProblemSet(load_task(TASK), TEST, digits, (("test", count),), VARIANT)
    solved = []
    for trajectory in ReferenceTrajectories(problems, "test"):
        ids, size = renderer.render(trajectory)["input_ids"], len(trajectory.problem)
        solved.append(Solved(ids[:size], ids[size:], renderer.problem(trajectory.answer)))
    return solved


def training_batch(tokenizer: PreTrainedTokenizerBase, rows: int, length: int) -> dict[str, Tensor]:
    """Rows of the addition builder as a collator would give them, padded or cut to a length.

    Returns:
        `input_ids`, `labels` and `attention_mask`, (rows, length) each.
    """
    renderer = Renderer(tokenizer)
    problems = ProblemSet(load_task(TASK), TRAINING, 5, (("train", rows),), VARIANT)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for trajectory in ReferenceTrajectories(problems, "train"):
        row = renderer.render(trajectory)
        row["attention_mask"] = [1] * len(row["input_ids"])
        for (name, values), filler in zip(row.items(), (tokenizer.pad_token_id, IGNORED, 0)):
            batch[name].append((values + [filler] * length)[:length])
    return {name: torch.tensor(values) for name, values in batch.items()}


@torch.no_grad()
def stepwise_difference(
    model: ToolMambaForCausalLM, stock: MambaForCausalLM, tokens: list[int], step_weights: StepWeights = None
) -> float:
    """The largest difference of our decode steps' logits from stock's, over all tokens, relative to the largest."""
    state, _ = ModelRunner(model).feed(None, [tokens[:1]])
    decoder = make_decoder(ModelRunner(model), step_weights)
    decoder.load(state)
    ours = [decoder.logits()]
    cache, theirs = None, []
    for at, token in enumerate(tokens):
        if at:
            decoder.step([token])
            ours.append(decoder.logits())
        output = stock(input_ids=torch.tensor([[token]]), cache_params=cache, use_cache=True)
        cache = output.cache_params
        theirs.append(output.logits[:, -1])
    return relative_difference(torch.cat(ours), torch.cat(theirs))
