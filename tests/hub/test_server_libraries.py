"""datasets and transformers publish to the test server and load from it, in this process and in a fresh one."""

import subprocess
import sys

import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

ROWS = [{"id": index, "steps": [{"kind": "think", "text": str(index)}]} for index in range(30)]


@pytest.fixture
def pushed(hub):
    """The id of a dataset with two configs, "ten" as the default with two splits, and "twenty"."""
    repo_id = hub.repo_id("rows")
    splits = {"train": Dataset.from_list(ROWS[:8]), "test": Dataset.from_list(ROWS[8:10])}
    DatasetDict(splits).push_to_hub(repo_id, "ten", set_default=True)
    Dataset.from_list(ROWS[10:]).push_to_hub(repo_id, "twenty", num_shards=2)
    return repo_id


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=2, state_size=4))


def loads_alike(model, loaded):
    found = loaded.state_dict()
    return all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("streaming", [False, True])
def test_each_config_of_a_dataset_loads_whole_and_streaming(hub, pushed, streaming):
    def rows(*arguments, split="train"):
        return list(load_dataset(pushed, *arguments, split=split, streaming=streaming))

    assert rows("ten") == rows() == ROWS[:8]
    assert rows("ten", split="test") == ROWS[8:10]
    assert rows("twenty") == ROWS[10:]
    assert hub.commits("rows", kind="dataset")[0].tree["twenty/train-00000-of-00002.parquet"].lfs


def test_pushing_a_config_again_replaces_its_files(hub, pushed):
    Dataset.from_list(ROWS[:5]).push_to_hub(pushed, "twenty")
    assert load_dataset(pushed, "twenty", split="train").num_rows == 5
    files = [path for path in hub.commits("rows", kind="dataset")[0].tree if path.startswith("twenty/")]
    assert files == ["twenty/train-00000-of-00001.parquet"]


@pytest.mark.parametrize("status", [409, 412])
def test_a_push_that_another_commit_overtakes_stops_and_publishes_when_made_again(hub, status):
    # datasets 5.2 means to repeat such a commit by itself, and looks for the status on the wrong exception.
    repo_id = hub.repo_id("rows")
    hub.faults.answer(status, "POST", "/commit/")
    with pytest.raises(HfHubHTTPError) as refused:
        Dataset.from_list(ROWS).push_to_hub(repo_id)
    assert refused.value.response.status_code == status
    assert set(hub.commits("rows", kind="dataset")[0].tree) == {".gitattributes"}
    Dataset.from_list(ROWS).push_to_hub(repo_id)
    assert load_dataset(repo_id, split="train").to_list() == ROWS


def test_a_private_dataset_loads_with_its_owners_token_only(hub, hub_server):
    repo_id = hub.repo_id("rows")
    Dataset.from_list(ROWS).push_to_hub(repo_id, private=True)
    with pytest.raises(DatasetNotFoundError):
        load_dataset(repo_id, token=hub_server.new_account().token)
    for streaming in (False, True):
        assert list(load_dataset(repo_id, split="train", streaming=streaming)) == ROWS


def test_a_model_is_pushed_and_loaded_from_a_branch_and_a_pull_request(hub, tiny):
    repo_id = hub.repo_id("tiny")
    tiny.push_to_hub(repo_id, revision="trial")
    assert loads_alike(tiny, AutoModelForCausalLM.from_pretrained(repo_id, revision="trial"))
    assert not hub.api.file_exists(repo_id, "config.json")
    tiny.push_to_hub(repo_id, create_pr=True)
    assert loads_alike(tiny, AutoModelForCausalLM.from_pretrained(repo_id, revision="refs/pr/1"))


def test_a_tokenizer_comes_back_with_all_of_its_chat_templates(hub):
    words = WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="?")
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.push_to_hub(hub.repo_id("words"))
    loaded = AutoTokenizer.from_pretrained(hub.repo_id("words"))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("answer", ["first", "second"])
def test_code_beside_a_model_runs_as_its_generate(hub, tiny, answer):
    repo_id = hub.repo_id("tiny")  # twice in one process: no test finds the code of another one
    tiny.push_to_hub(repo_id)
    code = f"def generate(model, **arguments):\n    return '{answer}'\n"
    hub.api.upload_file(repo_id=repo_id, path_in_repo="custom_generate/generate.py", path_or_fileobj=code.encode())
    loaded = AutoModelForCausalLM.from_pretrained(repo_id, trust_remote_code=True)
    assert loaded.generate(input_ids=torch.tensor([[1]])) == answer


def test_a_fresh_process_with_the_environment_loads_the_model_and_the_dataset(hub, tiny, pushed, tmp_path):
    repo_id = hub.repo_id("tiny")
    tiny.push_to_hub(repo_id)
    code = f"""
from datasets import load_dataset
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained({repo_id!r}).save_pretrained({str(tmp_path / "loaded")!r})
print(load_dataset({pushed!r}, "twenty", split="train").num_rows)
"""
    run = subprocess.run([sys.executable, "-c", code], env=hub.environment, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "20\n"
    assert loads_alike(tiny, AutoModelForCausalLM.from_pretrained(tmp_path / "loaded"))
    # All that it asked of another host is datasets' question for Parquet exports, which did not leave the machine.
    elsewhere = [request for request in hub.log if "://" in request.path]
    assert {request.status for request in elsewhere} == {403}
    assert all("datasets-server" in request.path for request in elsewhere)
