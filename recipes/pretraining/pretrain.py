"""Pretrains a small language model on a corpus of texts, and measures bits per byte on texts that are held out.

    python recipes/pretraining/corpus.py --output outputs/corpus
    accelerate launch --config_file recipes/accelerate/cpu.yaml \\
        recipes/pretraining/pretrain.py --config recipes/pretraining/cpu.yaml

Learns a tokenizer from the training texts, cuts their tokens into rows of `block` tokens, trains, and writes model,
tokenizer, `results.json` and card to `output_dir`, and with `--push_to_hub true --hub_model_id org/name` to the Hub;
from there `recipes/sft.py --model` fine-tunes it. Beside the model stand a 5-gram model of the same tokens and xz.
Interrupted, it goes on with `--resume_from_checkpoint true`.
"""

import hashlib
import lzma
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, load_dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, set_seed
from trl import TrlParser

from ngram import MOST_TOKENS, ngram_log2

sys.path.append(str(Path(__file__).parents[1]))  # the recipes
from publish import PRETRAINING
from sft_arguments import RecipeArguments
from sft_training import train, write_card_and_publish

from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.evaluation.report import write_json, write_report
from hf_toolssm.files import escape_unprintable
from hf_toolssm.hub.model_card import read_json
from hf_toolssm.hub.publish_model import training_destination
from hf_toolssm.models.architectures import TOOL_MAMBA, make_model
from hf_toolssm.protocol.render import IGNORED
from hf_toolssm.protocol.text_tokenizer import build_text_tokenizer
from hf_toolssm.training.sft_config import ToolSFTConfig

END = "<|endoftext|>"
READ_FOR_TOKENIZER = 20_000_000
"""Characters that the tokenizer is learned from."""

MEASURED_AT_ONCE = 4_096
"""Tokens of a held-out text that are measured in one piece; behind them the state begins anew."""


@dataclass
class PretrainingArguments:
    corpus: str = field(metadata={"help": "a folder or a Hub id with a column text, and the splits train, validation"})
    vocabulary_size: int = field(default=3_000, metadata={"help": "tokens of the tokenizer, at most 4,096"})
    block: int = field(default=512, metadata={"help": "tokens of a row"})
    hidden_size: int = field(default=192, metadata={"help": "width"})
    num_hidden_layers: int = field(default=6, metadata={"help": "depth"})
    state_size: int = field(default=16, metadata={"help": "state per channel"})
    num_proc: int = field(default=2, metadata={"help": "processes that write tokens"})


def main() -> None:
    escape_unprintable()
    options, config = TrlParser((PretrainingArguments, ToolSFTConfig)).parse_args_and_config()
    if options.vocabulary_size > MOST_TOKENS:  # said before hours of training, behind which it is needed
        raise UnsafeTrainingError(f"--vocabulary_size is at most {MOST_TOKENS:,}, and not {options.vocabulary_size:,}")
    start, state, output = time.perf_counter(), PartialState(), Path(config.output_dir)
    destination = training_destination(config)
    with state.main_process_first():
        texts = load_dataset(options.corpus)
        tokenizer = learn_tokenizer(texts["train"], options.vocabulary_size)
        rows, held_out = (blocks(texts[split], tokenizer, options) for split in ("train", "validation"))
    if not len(rows) or not len(held_out):
        raise UnsafeTrainingError(f"--block {options.block} is longer than the texts of a split: take a shorter one")
    if state.is_main_process:
        check_rows(rows, output / "rows.json", bool(config.resume_from_checkpoint))
    set_seed(config.seed)
    shape = {"width": options.hidden_size, "depth": options.num_hidden_layers, "state_size": options.state_size}
    model = make_model(TOOL_MAMBA, len(tokenizer), **shape, mamba={"time_step_min": 0.001, "time_step_max": 0.1})
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    trained = train(model, tokenizer, rows, RecipeArguments(), config, start)
    if trained is None:
        return
    model, about = trained
    figures = measure(model.eval(), tokenizer, texts["validation"], rows, held_out)
    about |= {
        "task": PRETRAINING,
        "dataset": options.corpus,
        "example_problem": "def main(",
        "vocabulary_size": len(tokenizer),
        "train_tokens": rows.num_rows * options.block,
        "seen_tokens": about["steps"] * about["batch_size"] * options.block,
    }
    write_report(output, [], [], {**about, **figures})
    print(f"bits per byte of {figures['held_out_bytes']:,} held-out bytes: {figures['bits_per_byte']}")
    write_card_and_publish(output, destination)
    print(f"model, tokenizer, results.json and README.md are in {output}")


def check_rows(rows: Dataset, path: Path, resumes: bool) -> None:
    """Says of which rows a training is, in its folder, or finds that it would go on with others.

    Raises:
        UnsafeTrainingError: corpus, vocabulary, block, or the tokenizer's version are not those that it began with.
    """
    digest = hashlib.sha256()
    for some in rows.with_format("numpy").iter(batch_size=1_000):
        digest.update(np.ascontiguousarray(some["input_ids"], np.int64).tobytes())
    if resumes and path.exists() and read_json(path)["sha256"] != digest.hexdigest():
        raise UnsafeTrainingError(
            f"the training in {path.parent} began with other rows: give the options and the corpus that it began with,"
            " or another --output_dir"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"sha256": digest.hexdigest()})


def learn_tokenizer(texts: Dataset, vocabulary_size: int) -> PreTrainedTokenizerBase:
    """A tokenizer of byte pairs, from texts all over the corpus, with a token that ends a text."""
    tokenizer = build_text_tokenizer(_some(texts), vocabulary_size - 1)
    tokenizer.add_special_tokens({"eos_token": END})
    return tokenizer


def _some(texts: Dataset) -> Iterator[str]:
    left = READ_FOR_TOKENIZER
    for at in np.random.default_rng(0).permutation(len(texts)):
        text = texts[int(at)]["text"]
        left -= len(text)
        if left < 0:
            return
        yield text


def blocks(texts: Dataset, tokenizer: PreTrainedTokenizerBase, options: PretrainingArguments) -> Dataset:
    """The texts one behind the other, each behind an end, as rows of `options.block` tokens, all of them learned."""
    end, size = tokenizer.eos_token_id, options.block

    def cut(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        written = tokenizer(batch["text"], split_special_tokens=True)["input_ids"]
        ids = [token for each in written for token in (end, *each)]
        rows = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
        return {"input_ids": rows, "labels": [[IGNORED, *row[1:]] for row in rows]}  # before the first stands nothing

    return texts.map(
        cut,
        batched=True,
        batch_size=200,
        remove_columns=texts.column_names,
        num_proc=options.num_proc,
        desc="writing tokens",
    )


def measure(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Dataset, rows: Dataset, held_out: Dataset
) -> dict[str, Any]:
    """Bits per byte of held-out texts: the model's, each text from an empty state; a 5-gram model's; xz's."""
    bits = 0.0
    said = [text["text"] for text in texts]
    size = sum(len(text.encode()) for text in said)
    written = tokenizer(said, split_special_tokens=True)["input_ids"]
    for text in tqdm(written, desc="held-out texts"):
        ids = [tokenizer.eos_token_id, *text]
        for at in range(0, len(ids) - 1, MEASURED_AT_ONCE):
            piece = torch.tensor([ids[at : at + MEASURED_AT_ONCE + 1]], device=model.device)
            with torch.inference_mode():
                logits = model(input_ids=piece[:, :-1]).logits[0].float()
            bits += torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum").item() / math.log(2)
    train, test = (np.concatenate(each.with_format("numpy")["input_ids"][:]) for each in (rows, held_out))
    log2 = ngram_log2(train, test, len(tokenizer))
    is_text = test != tokenizer.eos_token_id
    # Of the blocks, which leave out the last tokens of a batch of texts: so by bytes a token.
    tokens = sum(map(len, written))
    packed = len(lzma.compress("".join(said).encode(), preset=9 | lzma.PRESET_EXTREME)) * 8
    return {
        "held_out_texts": len(said),
        "held_out_bytes": size,
        "bits_per_byte": {
            "model": round(bits / size, 4),
            "5-gram": round(float(-log2[is_text].mean()) * tokens / size, 4),
            "xz": round(packed / size, 4),
        },
        "bytes_per_token": round(size / tokens, 3),
        "measured_at_once": MEASURED_AT_ONCE,
    }


if __name__ == "__main__":
    main()
