"""Trains a Mamba on tool trajectories, then measures it free-running.

    accelerate launch --config_file recipes/accelerate/cpu.yaml \\
        recipes/sft.py --config recipes/configs/addition_cpu.yaml

builds the dataset (or reads one), trains from scratch or from a checkpoint, saves model and tokenizer to `output_dir`,
and writes `results.json`, `length_generalization.png` and the model card there. With `--push_to_hub true` and
`--hub_model_id org/name` (`--hub_private_repo true`, `--hub_revision BRANCH`) all that is published at the end, in one
commit. Interrupted, the same command goes on from the last checkpoint with `--resume_from_checkpoint true`; shards of
the dataset that were built stay.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from certificate import commit
from datasets import Dataset, load_dataset, load_dataset_builder
from datasets.fingerprint import Hasher
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import HubStrategy, IntervalStrategy
from transformers.utils.hub import cached_file, extract_commit_hash
from trl import TrlParser

from dataset_builders.build import build_folder
from dataset_builders.builder import TRAINING, ProblemSet, ReferenceTrajectories, evaluation_sets
from dataset_builders.mixture import Share, merge_cells, merge_tools, mix, parse_share
from dataset_builders.task import Task, copy_table, example_rng, load_task, task_file, task_name
from hf_toolssm import ToolMambaForCausalLM
from hf_toolssm.errors import (
    InvalidHubNameError,
    InvalidMixtureError,
    TokenizerNeededError,
    ToolSSMError,
    UnsafeTrainingError,
)
from hf_toolssm.evaluation import LengthResult, evaluate_free_running
from hf_toolssm.evaluation.report import REPORT_FILES, hardware, table, write_json, write_report
from hf_toolssm.files import escape_unprintable
from hf_toolssm.hub.model_card import write_model_card
from hf_toolssm.hub.publish import MAIN, Destination, check_destination
from hf_toolssm.hub.publish_model import publish_model
from hf_toolssm.models.architectures import BASELINES, TOOL_MAMBA, make_model
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model
from hf_toolssm.protocols import Renderer, add_tool_tokens, build_task_tokenizer
from hf_toolssm.sources import digest
from hf_toolssm.tools import make_tool
from hf_toolssm.training.curriculum import short_rows_first
from hf_toolssm.training.sft_config import ToolSFTConfig
from hf_toolssm.training.trainer import ToolSFTTrainer, last_whole_checkpoint

logger = logging.getLogger(__name__)

CARD_TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"


@dataclass
class RecipeArguments:
    task: str = field(
        default="addition",
        metadata={"help": "A file of dataset_builders/ or of its machines/, or the path of your own machine, a .tm."},
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
        default=None, metadata={"help": "A folder or a Hub id; by default built into output_dir/dataset."}
    )
    train_max_length: int = field(default=5, metadata={"help": "Longest training problem."})
    num_examples: int = field(default=40_000, metadata={"help": "Training rows to build."})
    dataset_seed: int = field(default=0, metadata={"help": "Another seed gives other problems."})
    num_proc: int = field(default=2, metadata={"help": "Processes that build and render rows."})
    model: str | None = field(
        default=None, metadata={"help": "A Mamba checkpoint to fine-tune; from scratch without."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "The checkpoint's tokenizer, a folder or a Hub id; by default the one beside it. Checkpoints of "
            "mamba_ssm come without."
        },
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
    curriculum: bool = field(
        default=False, metadata={"help": "The first half of the training goes from short rows to long ones."}
    )
    choice_length: int | None = field(
        default=None,
        metadata={
            "help": "Early choice: at every save the model runs free on 16 validation problems up to this length, "
            "longer than training's, and the best checkpoint is kept; among equals the one of the lowest loss."
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


def main() -> None:
    escape_unprintable()
    recipe, config = TrlParser((RecipeArguments, ToolSFTConfig)).parse_args_and_config()
    destination = destination_of(config)
    if recipe.model is not None and recipe.architecture != TOOL_MAMBA:
        raise UnsafeTrainingError(
            f"architecture {recipe.architecture} is of a model from scratch, and a checkpoint is fine-tuned as a "
            "ToolMamba: leave out --architecture or --model"
        )
    tokenizer = checkpoint_tokenizer(recipe)
    task = load_task(recipe.task)
    variant = recipe.variant or task.variants[0]
    shares = [parse_share(text) for text in recipe.mixture]
    tables = {recipe.task, *(share.task for share in shares)}
    if len({task_file(table) for table in tables}) < len(tables):
        raise InvalidMixtureError(f"two tables of the mixture have the same name, of {sorted(tables)}: rename one")
    output = Path(config.output_dir)
    start = time.perf_counter()
    state = PartialState()
    # The problems before the training: a set that does not exist is said at once.
    example = task.sample_training(example_rng("model card"), recipe.train_max_length)
    plain = test_problems(recipe, variant, recipe.eval_lengths, [])
    adversarial = test_problems(recipe, variant, [], recipe.eval_adversarial_lengths)
    with state.main_process_first():
        rows, dataset_revision = load_training_rows(recipe, variant, output)
        parts = [rows]
        parts += [built_rows(recipe, share, output / f"dataset-{task_name(share.task)}") for share in shares]
    set_seed(config.seed)
    tasks = [(task, variant), *((load_task(share.task), share.variant) for share in shares)]
    model, tokenizer = model_and_tokenizer(recipe, tasks, tokenizer)
    # None for a folder.
    base_model_revision = extract_commit_hash(cached_file(recipe.model, "config.json"), None) if recipe.model else None
    with state.main_process_first():
        rendered = [render_rows(rows, tokenizer, recipe.num_proc) for rows in parts]
        weights = [1.0, *(share.weight for share in shares)]
        training = mix(rendered, weights, recipe.dataset_seed) if shares else rendered[0]
    if recipe.lora_rank:
        from hf_toolssm.training.lora import add_lora  # needs the extra `peft`

        model = add_lora(model, recipe.lora_rank)
    if recipe.curriculum:
        training = in_curriculum(training, config)
    choice = early_choice(recipe, variant, config, tokenizer) if recipe.choice_length is not None else {}
    trainer = ToolSFTTrainer(model, config, training, processing_class=tokenizer, **choice)
    resume = config.resume_from_checkpoint
    if str(resume).lower() == "true":  # the last checkpoint; anything else is a checkpoint's folder
        resume = str(last_whole_checkpoint(output))
    trained = trainer.train(resume_from_checkpoint=resume)
    if trainer.accelerator.is_main_process:  # figures of an earlier training must not stand beside these weights
        for name in (*REPORT_FILES, "README.md"):
            (output / name).unlink(missing_ok=True)
    if not recipe.lora_rank:
        trainer.save_model()
    if not trainer.accelerator.is_main_process:
        return
    # Without what accelerate adds for mixed precision: what is measured is what is saved.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if recipe.lora_rank:
        model = model.merge_and_unload()
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    for share in shares:
        copy_table(share.task, output)
    about = {
        "task": copy_table(recipe.task, output),
        "variant": variant,
        "unit": task.unit,
        "example_problem": example,
        "train_max_length": recipe.train_max_length,
        "mixture": [str(share) for share in shares],
        "dataset": recipe.dataset or f"built: {recipe.num_examples} rows, seed {recipe.dataset_seed}",
        "dataset_revision": dataset_revision,
        "architecture": model.config.model_type if recipe.model else recipe.architecture,
        "base_model": recipe.model,
        "base_model_revision": base_model_revision,
        "tokenizer": recipe.tokenizer,
        "lora_rank": recipe.lora_rank,
        "seed": config.seed,
        "num_parameters": model.num_parameters(),
        "steps": trainer.state.global_step,
        "batch_size": config.train_batch_size * config.gradient_accumulation_steps * config.world_size,
        "learning_rate": config.learning_rate,
        "state_passing_share": config.state_passing_share,
        "state_noise_share": config.state_noise_share,
        "curriculum": recipe.curriculum,
        "chosen_step": trainer.state.best_global_step if recipe.choice_length is not None else None,
        "train_loss": trained.training_loss,
        "resumed": bool(resume),  # then the minutes are those since
        "commit": commit(),
        "train_minutes": round((time.perf_counter() - start) / 60, 2),
    }
    write_json(output / "training.json", {**about, "hardware": hardware()})
    measure_and_report(model, tokenizer, plain, adversarial, recipe.eval_batch_size, about, output)
    if destination is not None:
        try:
            published = publish_model(output, destination, CARD_TEMPLATE)
        except ToolSSMError as error:
            command = f"python recipes/publish.py --model {output} --repo_id {destination.repo_id}"
            error.add_note(f"The model itself is finished. Publish it without training again: {command}")
            raise
        print(published)


def destination_of(config: ToolSFTConfig) -> Destination | None:
    """Where the finished model is to go, checked before any work; the trainer itself pushes nothing.

    Raises:
        UnsafeTrainingError: a push was asked for in a way that this recipe does not do.
        InvalidHubNameError, HubAccessError, HubUnavailableError: see `hub.publish.check_destination`.
    """
    if not config.push_to_hub:
        return None
    if config.hub_model_id is None:
        raise InvalidHubNameError("--push_to_hub needs a name: add --hub_model_id org/name")
    if config.hub_token is not None:
        raise UnsafeTrainingError("hub_token would stand in logs and saved arguments: set HF_TOKEN, and leave it out")
    if config.hub_strategy != HubStrategy.EVERY_SAVE:  # its default
        raise UnsafeTrainingError("the model is pushed once, finished and measured: leave out hub_strategy")
    destination = Destination(config.hub_model_id, "model", bool(config.hub_private_repo), config.hub_revision or MAIN)
    check_destination(destination)
    config.push_to_hub = False  # or the trainer would push checkpoints that nobody measured
    return destination


def in_curriculum(rows: Dataset, config: ToolSFTConfig) -> Dataset:
    """The rows of the whole training, in the order of a curriculum."""
    if config.max_steps < 1:
        raise UnsafeTrainingError("a curriculum is planned over the whole training: set max_steps")
    if config.train_sampling_strategy != "random":
        raise UnsafeTrainingError(
            f"a curriculum orders the rows itself: leave out train_sampling_strategy: {config.train_sampling_strategy}"
        )
    config.train_sampling_strategy = "sequential"
    per_step = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    return short_rows_first(rows, config.max_steps * per_step, config.seed)


def early_choice(
    recipe: RecipeArguments, variant: str, config: ToolSFTConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What the trainer needs to keep the best of its checkpoints; of a mixture, the best for the recipe's own task."""
    assert recipe.choice_length is not None
    if recipe.choice_length <= recipe.train_max_length:
        raise UnsafeTrainingError(
            f"choice_length {recipe.choice_length} is no longer than the training's {recipe.train_max_length}: all "
            "checkpoints would seem right"
        )
    problems = ProblemSet(recipe.task, TRAINING, recipe.choice_length, (("validation", 16),), variant)
    references = list(ReferenceTrajectories(problems, "validation"))  # solved once for all saves
    rows = Dataset.from_list([Renderer(tokenizer).render(reference) for reference in references])

    def accuracy(model: PreTrainedModel) -> float:
        measured = evaluate_free_running(model, tokenizer, "validation", problems.length, references)
        return measured.trajectory_accuracy

    config.save_strategy = config.eval_strategy = IntervalStrategy.STEPS
    config.eval_steps = config.save_steps
    config.per_device_eval_batch_size = 4  # long rows
    config.load_best_model_at_end, config.metric_for_best_model, config.greater_is_better = True, "choice", True
    return {"eval_dataset": rows, "accuracy": accuracy}


def load_training_rows(recipe: RecipeArguments, variant: str, output: Path) -> tuple[Dataset, str | None]:
    """The training split of the given dataset, with its commit if it is on the Hub, or of the one that is built."""
    problems = training_set(recipe, Share(recipe.task, variant, recipe.train_max_length, 1.0))
    if recipe.dataset is not None and not Path(recipe.dataset).is_dir():
        builder = load_dataset_builder(recipe.dataset, problems.name)
        builder.download_and_prepare()
        return builder.as_dataset("train"), builder.hash
    folder = Path(recipe.dataset) if recipe.dataset is not None else output / "dataset"
    if recipe.dataset is None and PartialState().is_main_process:
        build_folder([problems], folder, recipe.num_proc)
    return read_rows(problems, folder), None


def built_rows(recipe: RecipeArguments, share: Share, folder: Path) -> Dataset:
    """The training split of another task of the mixture, built if it is not there."""
    problems = training_set(recipe, share)
    if PartialState().is_main_process:
        build_folder([problems], folder, recipe.num_proc)
    return read_rows(problems, folder)


def training_set(recipe: RecipeArguments, share: Share) -> ProblemSet:
    sizes = (("train", recipe.num_examples),)
    return ProblemSet(share.task, TRAINING, share.max_length, sizes, share.variant, recipe.dataset_seed)


def read_rows(problems: ProblemSet, folder: Path) -> Dataset:
    return load_dataset(str(folder.resolve()), problems.name, split="train")


def render_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int) -> Dataset:
    """The rows as `input_ids` and `labels`, from the cache if the same source rendered them before."""
    renderer = Renderer(tokenizer)
    # `datasets` would know the renderer by its name only, and take what an earlier version of its source wrote.
    source = digest(Renderer.__module__)
    return rows.map(
        renderer.row,
        remove_columns=rows.column_names,
        num_proc=num_proc,
        desc="rendering rows",
        new_fingerprint=Hasher.hash([rows._fingerprint, source, tokenizer]),
    )


def checkpoint_tokenizer(recipe: RecipeArguments) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the checkpoint that is fine-tuned; None from scratch.

    Raises:
        TokenizerNeededError: there is none beside the checkpoint or under the name that was given.
        UnsafeTrainingError: a tokenizer was given without a checkpoint.
    """
    if recipe.model is None:
        if recipe.tokenizer is not None:
            raise UnsafeTrainingError(
                "a model from scratch has a tokenizer of its tasks' cells: leave out --tokenizer, or add --model"
            )
        return None
    name = recipe.tokenizer or recipe.model
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise TokenizerNeededError(
            f"no tokenizer can be loaded from {name}: name the one that the checkpoint was trained with, by "
            "--tokenizer FOLDER_OR_ID (of state-spaces' Mamba 130m to 2.8b it is EleutherAI/gpt-neox-20b)"
        ) from error


def model_and_tokenizer(
    recipe: RecipeArguments, tasks: list[tuple[Task, str]], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A small model with a tokenizer of the tasks' cells, or a checkpoint with its own and the tool tokens added."""
    specs = merge_tools(tasks)
    tools = [make_tool(spec) for spec in specs]
    if tokenizer is None:
        tokenizer = build_task_tokenizer(merge_cells(tasks), tools)
        trained_vocabulary = 0
        model = make_model(
            recipe.architecture,
            len(tokenizer),
            recipe.hidden_size,
            recipe.num_hidden_layers,
            recipe.state_size,
            {"time_step_min": recipe.time_step_min, "time_step_max": recipe.time_step_max},
        )
    else:
        trained_vocabulary = len(tokenizer)
        add_tool_tokens(tokenizer, tools)
        # Full precision: in bfloat16 small updates of the weights would be rounded away.
        model = ToolMambaForCausalLM.from_pretrained(recipe.model, dtype=torch.float32)
        rows = model.get_input_embeddings().num_embeddings
        if trained_vocabulary > rows:
            raise UnsafeTrainingError(
                f"the tokenizer has {trained_vocabulary} tokens and the checkpoint only {rows}: name the one that it "
                "was trained with, by --tokenizer"
            )
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary)
    # Long enough for thousands of digits; a longer problem says max_new_tokens itself.
    model.generation_config.max_new_tokens = 200_000
    return model, tokenizer


def test_problems(
    recipe: RecipeArguments, variant: str, lengths: list[int], adversarial_lengths: list[int]
) -> list[ReferenceTrajectories]:
    if not PartialState().is_main_process:
        return []  # the others measure nothing
    sets = evaluation_sets(recipe.task, variant, lengths, adversarial_lengths, recipe.eval_num_problems)
    return [ReferenceTrajectories(problems, "test") for problems in sets]


def measure_and_report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plain: list[ReferenceTrajectories],
    adversarial: list[ReferenceTrajectories],
    batch_size: int,
    about: dict,
    output: Path,
) -> None:
    def measure(references: ReferenceTrajectories) -> LengthResult:
        name, length = references.problem_set.name, references.problem_set.length
        return evaluate_free_running(model, tokenizer, name, length, references, batch_size)

    by_length, by_adversary = list(map(measure, plain)), list(map(measure, adversarial))
    write_report(output, by_length, by_adversary, about)
    write_model_card(output, CARD_TEMPLATE)
    print(table([*by_length, *by_adversary]))
    print(f"model, results.json, length_generalization.png and README.md are in {output}")


if __name__ == "__main__":
    main()
