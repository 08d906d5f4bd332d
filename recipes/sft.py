"""Trains a model on tool trajectories, then measures it free-running; or on conversations (`sft_messages.py`).

    accelerate launch --config_file recipes/accelerate/cpu.yaml \\
        recipes/sft.py --config recipes/configs/addition_cpu.yaml

builds the dataset (or reads one), trains from scratch or from a checkpoint, saves model and tokenizer to `output_dir`,
and writes `results.json`, `length_generalization.png` and the model card there. With `--push_to_hub true` and
`--hub_model_id org/name` (`--hub_private_repo true`, `--hub_revision BRANCH`) all that is published at the end, in one
commit. Interrupted, the same command goes on from the last checkpoint with `--resume_from_checkpoint true`.
"""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sft_messages
from accelerate import PartialState
from datasets import concatenate_datasets
from free_running import check_tools, free_running
from sft_arguments import FOR_MESSAGES, RecipeArguments, refuse
from sft_training import base_tokenizer, train, write_card_and_publish
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import TrlParser

from dataset_builders.catalog import load_task
from dataset_builders.mixture import Share, merge_cells, merge_tools, mix, training_shares
from dataset_builders.problem_sets import TRAINING, ProblemSet, ReferenceTrajectories, evaluation_sets
from dataset_builders.task import example_rng
from dataset_builders.training_rows import training_rows
from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.evaluation import LengthResult
from hf_toolssm.evaluation.certification.walks import walk_rows
from hf_toolssm.evaluation.report import hardware, table, write_json, write_report
from hf_toolssm.evaluation.selection import checkpoint_selection
from hf_toolssm.files import escape_unprintable
from hf_toolssm.hub.publish_model import training_destination
from hf_toolssm.models import tool_models
from hf_toolssm.training.curriculum import in_curriculum
from hf_toolssm.training.rendered_rows import render_rows
from hf_toolssm.training.sft_config import ToolSFTConfig

WALKED = 256
"""Tokens of a walk through a rule, at most."""


def main() -> None:
    escape_unprintable()
    recipe, config = TrlParser((RecipeArguments, ToolSFTConfig)).parse_args_and_config()
    start, state, output = time.perf_counter(), PartialState(), Path(config.output_dir)
    # What cannot be is said before anything is built.
    destination = training_destination(config)
    with state.main_process_first():
        conversations = sft_messages.conversations(recipe.dataset)
    if conversations is not None:
        sft_messages.train_on(*conversations, recipe, config, start, destination)
        return
    refuse(recipe, FOR_MESSAGES, "is of a --dataset of messages")
    tokenizer = tokenizer_of(recipe)
    shares = training_shares(load_task(recipe.task), recipe.variant, recipe.train_max_length, recipe.mixture)
    first, task = shares[0], shares[0].task
    test = partial(evaluation_sets, task, first.variant, num_problems=recipe.eval_num_problems)
    rule = task.rule(first.variant) if recipe.rule_walks else None  # or says that there is none
    measured = (test(recipe.eval_lengths, []), test([], recipe.eval_adversarial_lengths))
    if any(measured):
        check_tools(task, first.variant)
    # The other processes measure nothing.
    plain, adversarial = ([*map(ReferenceTrajectories, sets * state.is_main_process)] for sets in measured)

    draw = partial(task.sample_training, example_rng("model card"), recipe.train_max_length)
    example = next(problem for problem in iter(draw, None) if task.suits(problem, first.variant))
    turns = opening(task.dialogue(example, first.variant))

    with state.main_process_first():
        read = partial(training_rows, num_proc=recipe.num_proc, builds=state.is_main_process)
        sets = [share.training_set(recipe.num_examples, recipe.dataset_seed) for share in shares]
        rows, dataset_revision = read(sets[0], recipe.dataset, output / "dataset")
        more = [read(each, None, output / f"dataset-{each.task.name}")[0] for each in sets[1:]]
    set_seed(config.seed)
    model, tokenizer = model_and_tokenizer(recipe, shares, tokenizer)
    with state.main_process_first():
        rendered = [render_rows(rows, tokenizer, recipe.num_proc) for rows in (rows, *more)]
        training = mix(rendered, [share.weight for share in shares], recipe.dataset_seed)
        if recipe.rule_walks:
            walks = walk_rows(rule, tokenizer, recipe.rule_walks, WALKED, recipe.dataset_seed)
            training = concatenate_datasets([training, walks.cast(training.features)])
    if recipe.curriculum:
        training = in_curriculum(training, config)
    selection = selection_of(recipe, first, config, tokenizer)
    trained = train(model, tokenizer, training, recipe, config, start, selection=selection)
    if trained is None:
        return
    model, facts = trained
    about = {
        "task": [share.task.save(output) for share in shares][0],
        "variant": first.variant,
        "unit": task.unit,
        "environment": task.environment,
        "example_problem": turns[0],
        "example_turns": turns,
        "train_max_length": recipe.train_max_length,
        "mixture": [str(share) for share in shares[1:]],
        "dataset": recipe.dataset or f"built: {recipe.num_examples} rows, seed {recipe.dataset_seed}",
        "dataset_revision": dataset_revision,
        "rule_walks": recipe.rule_walks,
        "curriculum": recipe.curriculum,
        **facts,
    }
    write_json(output / "training.json", {**about, "hardware": hardware()})

    def measure(references: ReferenceTrajectories) -> LengthResult:
        return free_running(model, tokenizer, references, recipe.eval_batch_size)

    by_length, by_adversary = list(map(measure, plain)), list(map(measure, adversarial))
    write_report(output, by_length, by_adversary, about)
    print(table([*by_length, *by_adversary]))
    write_card_and_publish(output, destination)
    print(f"model, results.json, length_generalization.png and README.md are in {output}")


def opening(dialogue: Iterator[tuple[str, str | None]]) -> list[str]:
    """What is said up to the first turn that asks for an answer."""
    said = []
    for text, right in dialogue:
        said.append(text)
        if right is not None:
            break
    return said


def tokenizer_of(recipe: RecipeArguments) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the checkpoint that is fine-tuned; None from scratch."""
    if recipe.tokenizer is not None and recipe.model is None:
        raise UnsafeTrainingError(
            "a model from scratch has a tokenizer of its tasks' cells: leave out --tokenizer, or add --model"
        )
    return base_tokenizer(recipe)


def model_and_tokenizer(
    recipe: RecipeArguments, shares: list[Share], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A small model with a tokenizer of the tasks' cells, or the checkpoint with its own and the tool tokens added."""
    tasks = [(share.task, share.variant) for share in shares]
    if recipe.model is not None:
        return tool_models.from_checkpoint(recipe.model, tokenizer, merge_tools(tasks))
    return tool_models.from_scratch(
        recipe.architecture,
        merge_cells(tasks),
        merge_tools(tasks),
        width=recipe.hidden_size,
        depth=recipe.num_hidden_layers,
        state_size=recipe.state_size,
        mamba=recipe.mamba,
    )


def selection_of(
    recipe: RecipeArguments, share: Share, config: ToolSFTConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What the trainer needs to keep the best of its checkpoints; of a mixture, the best for the recipe's own task."""
    length = recipe.selection_length
    if length is None:
        return {}
    if share.task.most_tokens is not None:
        raise UnsafeTrainingError(
            f"selection_length compares trajectories, and of {share.task.name} a check decides: leave it out"
        )
    if length <= recipe.train_max_length:
        raise UnsafeTrainingError(
            f"selection_length {length} is no longer than the training's {recipe.train_max_length}: all checkpoints "
            "would seem right"
        )
    problems = ProblemSet(share.task, TRAINING, length, (("validation", 16),), share.variant)
    references = list(ReferenceTrajectories(problems, "validation"))  # solved once for all saves
    return checkpoint_selection(config, tokenizer, references, length)


if __name__ == "__main__":
    main()
