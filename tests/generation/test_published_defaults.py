"""What a stranger gets from a saved folder, with no option given, is what was measured: greedy, padded on the left."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import WITHOUT_PACKAGE, random_model
from small_models import written
from transformers import AutoTokenizer, GenerationConfig, pipeline

from hf_toolssm import ToolMambaForCausalLM
from hf_toolssm.generation.session import Session
from hf_toolssm.models.plain_tool_mamba import PlainToolMambaForCausalLM
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model

PROBLEMS = [f"{left}+{right}=" for left in (7, 98, 12345) for right in (1, 60, 555, 9999)]
TOKENS = 40


@pytest.fixture(scope="module")
def folder(tokenizer, specs, tmp_path_factory):
    """A model whose next token is so uncertain that a sample is hardly ever the greedy row."""
    folder = tmp_path_factory.mktemp("published")
    model = random_model(tokenizer, specs)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 0.02
    model.generation_config.max_new_tokens = TOKENS
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measured(folder, tokenizer):
    """The texts of a greedy session."""
    session = Session.start(ToolMambaForCausalLM.from_pretrained(folder), tokenizer(PROBLEMS)["input_ids"])
    rows = written(session, TOKENS)
    assert sum(map(len, rows)) > 2 * len(rows)
    return [problem + tokenizer.decode(row, skip_special_tokens=True) for problem, row in zip(PROBLEMS, rows)]


def texts(generator, **options):
    return [result["generated_text"] for (result,) in generator(PROBLEMS, **options)]


def test_a_pipeline_gives_what_was_measured(folder, measured):
    assert texts(pipeline("text-generation", model=str(folder))) == measured


def test_a_batch_in_a_pipeline_too(folder, measured):
    assert texts(pipeline("text-generation", model=str(folder), batch_size=3)) == measured


def test_a_pipeline_of_the_published_code_too(folder, measured):
    model = PlainToolMambaForCausalLM.from_pretrained(folder)
    generator = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    assert texts(generator) == texts(generator, batch_size=3) == measured


@pytest.mark.slow
def test_a_pipeline_where_the_package_is_not_installed_too(folder, measured):
    code = f"""{WITHOUT_PACKAGE}
import json
from transformers import pipeline
generator = pipeline("text-generation", model={str(folder)!r}, trust_remote_code=True)
print(json.dumps([result["generated_text"] for (result,) in generator({PROBLEMS!r}, batch_size=2)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=folder.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == measured


def test_sampling_is_there_for_who_asks_for_it(folder, measured):
    assert texts(pipeline("text-generation", model=str(folder)), do_sample=True) != measured


def test_the_generation_config_says_greedy_and_nothing_of_the_checkpoints_chat(tokenizer, specs, tmp_path):
    model = random_model(tokenizer, specs)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1, max_length=4_096, eos_token_id=9
    )
    model.config.use_cache = False
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=0)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    del saved["transformers_version"]
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    assert saved == {"do_sample": False, "max_length": 4_096, **ends}
