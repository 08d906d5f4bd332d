"""Two optimizer steps of `recipes/sft.py` from a checkpoint of the 130M shape, with the tokenizer that it has.

    python recipes/benchmarks/checkpoint_training.py --tokenizer 20B_tokenizer.json

The weights are random, the shape and the file layouts those of `state-spaces/mamba-130m-hf` (transformers') and
`state-spaces/mamba-130m` (mamba_ssm's own). From each the recipe trains two steps in full and two with a LoRA, every
time in a process of its own, whose peak memory the system tells. Tokens a second are those of the training loop: two
steps, of which the first compiles the kernels where no cache has them yet.
"""

import ast
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from hf_toolssm.evaluation.report import hardware, markdown_table, write_json
from hf_toolssm.files import escape_unprintable

SFT = Path(__file__).parents[1] / "sft.py"
PADDED_TO = 8
WAYS = {"full": [], "LoRA of rank 8": ["--lora_rank", "8", "--learning_rate", "0.001"]}


@dataclass
class CheckpointArguments:
    tokenizer: str = field(metadata={"help": "a tokenizer.json, such as that of GPT-NeoX-20B"})
    output: Path = field(default=Path("outputs/checkpoint_training.json"), metadata={"help": "the JSON file"})
    hidden_size: int = field(default=768, metadata={"help": "width; 768 is that of the 130M shape"})
    num_hidden_layers: int = field(default=24, metadata={"help": "depth; 24 is that of the 130M shape"})
    batch_size: int = field(default=4, metadata={"help": "rows of a step"})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(CheckpointArguments).parse_args_into_dataclasses()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = [
            {"layout": layout, "training": way, **train(folder / "out", model, words, options.batch_size)}
            for layout, model in write_layouts(folder, options).items()
            for way, words in WAYS.items()
        ]
    write_json(options.output, {"trainings": found, "hardware": hardware()})
    print(table(found))


def write_layouts(folder: Path, options: CheckpointArguments) -> dict[str, list[str]]:
    """Writes the checkpoint in both layouts; the options that name each to the recipe."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=options.tokenizer, eos_token="<|endoftext|>")
    vocabulary = -len(tokenizer) // PADDED_TO * -PADDED_TO
    torch.manual_seed(0)
    shape = {"hidden_size": options.hidden_size, "num_hidden_layers": options.num_hidden_layers}
    model = MambaForCausalLM(MambaConfig(vocab_size=vocabulary, **shape))
    stock, native = folder / "stock", folder / "native"
    model.save_pretrained(stock)
    tokenizer.save_pretrained(stock)
    native.mkdir()
    weights = {name.replace("embeddings.", "embedding."): value for name, value in model.state_dict().items()}
    torch.save(weights, native / "pytorch_model.bin")
    config = {"d_model": options.hidden_size, "n_layer": options.num_hidden_layers, "vocab_size": len(tokenizer)}
    config |= {"ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "pad_vocab_size_multiple": PADDED_TO}
    (native / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {
        "transformers": ["--model", str(stock)],
        "mamba_ssm": ["--model", str(native), "--tokenizer", str(stock)],
    }


def train(output: Path, model: list[str], words: list[str], batch_size: int) -> dict[str, Any]:
    """Two steps: the tokens of both, seconds, peak memory, and what trains."""
    command = [sys.executable, str(SFT), "--task", "addition", *model, *words, "--output_dir", str(output)]
    command += ["--max_steps", "2", "--per_device_train_batch_size", str(batch_size), "--num_examples", "64"]
    command += ["--logging_steps", "1", "--save_strategy", "no", "--disable_tqdm", "true"]
    command += ["--eval_lengths", "2", "--eval_num_problems", "1"]
    log = output.with_suffix(".log")
    with open(log, "w", encoding="utf-8") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    text = log.read_text(encoding="utf-8")
    if status:
        raise SystemExit(text[-3000:])
    said: dict[str, Any] = {}
    for line in text.splitlines():
        said |= logged(line)
    return {
        "tokens": int(float(said["num_tokens"])),
        "seconds": float(said["train_runtime"]),
        "peak_gib": round(used.ru_maxrss / 1024**2, 2),
        "what_trains": next(line for line in text.splitlines() if " parameters (" in line),
    }


def logged(line: str) -> dict[str, Any]:
    """What a line of the trainer's log says; nothing where it is none."""
    return ast.literal_eval(line) if line.startswith("{") and line.endswith("}") else {}


def table(found: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    head = ["file layout", "training", "what trains", "tokens of two steps", "tokens/s", "peak memory, GiB"]
    rows = [
        [
            each["layout"],
            each["training"],
            each["what_trains"],
            f"{each['tokens']:,}",
            f"{each['tokens'] / each['seconds']:.0f}",
            f"{each['peak_gib']:.1f}",
        ]
        for each in found
    ]
    return markdown_table(head, rows)


if __name__ == "__main__":
    main()
