"""A small training run as its own program, so that tests can launch it with one process or two, and interrupt it.

small_run.py OUTPUT ROWS_PER_PROCESS STEPS BPTT_LENGTH [--resume] [--head]
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import set_seed

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TRAINING, ProblemSet, generate_rows
from hf_toolssm.models.architectures import make_model
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.tools import make_tool
from hf_toolssm.training.heads import Head, binary_loss
from hf_toolssm.training.lora import add_lora
from hf_toolssm.training.sft_config import ToolSFTConfig
from hf_toolssm.training.trainer import ToolSFTTrainer


def make_trainer(
    output, batch_size, steps, lora_rank=0, architecture="tool_mamba", accuracy=None, adapter=None, heads=(), **options
):
    task = load_task("addition")
    specs = task.tools("local")
    tokenizer = build_task_tokenizer(task.cells("local"), [make_tool(spec) for spec in specs])
    renderer = Renderer(tokenizer)
    problems = ProblemSet(load_task("addition"), TRAINING, 3, (("train", 64),), "local")
    rows = Dataset.from_list([renderer.row(row) for row in generate_rows(problems, "train", 0, 64)])
    if heads:
        rows = rows.add_column("parity", [parities(row["input_ids"]) for row in rows])
    set_seed(0)
    model = make_model(architecture, len(tokenizer), width=16, depth=2, state_size=4, mamba={})
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=0)
    defaults = {
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    config = ToolSFTConfig(
        output_dir=str(output), per_device_train_batch_size=batch_size, max_steps=steps, **{**defaults, **options}
    )
    if lora_rank:
        model = add_lora(model, lora_rank)
    measured = {} if accuracy is None else {"accuracy": accuracy, "eval_dataset": rows.select(range(4))}
    options = {"peft_config": adapter, "heads": heads, **measured}
    return ToolSFTTrainer(model, config, rows, processing_class=tokenizer, **options)


def parities(ids):
    """Of every third token whether its id is odd: targets of a head."""
    return [token % 2 if place % 3 == 0 else -100 for place, token in enumerate(ids)]


def parity_head(name="parity", weight=0.5):
    torch.manual_seed(1)
    return Head(name, nn.Linear(16, 1), "parity", binary_loss, weight)


def losses(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


if __name__ == "__main__":
    output = Path(sys.argv[1])
    batch_size, steps, bptt_length = (int(word) for word in sys.argv[2:5])
    trainer = make_trainer(
        output, batch_size, steps, bptt_length=bptt_length, heads=[parity_head()] * ("--head" in sys.argv)
    )
    trainer.train(resume_from_checkpoint="--resume" in sys.argv)
    if trainer.accelerator.is_main_process:
        report = {"losses": losses(trainer), "processes": trainer.accelerator.num_processes}
        report["head"] = losses(trainer, "parity_loss")
        (output / "report.json").write_text(json.dumps(report), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()  # no process ends before the report is written
