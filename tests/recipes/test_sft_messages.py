"""`recipes/sft.py` on conversations leaves a folder that chats, and says what it cannot train before any work."""

import json
import random

import pytest
from conftest import import_recipe, run_script
from datasets import load_dataset
from small_models import small_model
from transformers import AutoTokenizer

from hf_toolssm import Chat, ToolMambaForCausalLM
from hf_toolssm.errors import ChatTemplateError, UnsafeTrainingError
from hf_toolssm.hub.publish_model import check_finished
from hf_toolssm.models.architectures import load_model
from hf_toolssm.protocol.text_tokenizer import build_text_tokenizer
from hf_toolssm.tools.function import Function

SMALL = ["--max_steps", "2", "--num_proc", "1", "--per_device_train_batch_size", "8", "--logging_steps", "1"]
SMALL += ["--report_to", "none", "--disable_tqdm", "true", "--vocabulary_size", "400"]


@pytest.fixture(scope="module")
def synthetic():
    """The modules of recipes/function_calling."""
    names = ("conversations", "functions", "measure_calls")
    return tuple(import_recipe(name, "recipes/function_calling") for name in names)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "dataset"
    run_script("recipes/function_calling/conversations.py", "--output", folder, "--num-examples", "48")
    return folder


def test_rows_are_written_anew_and_nothing_else_of_their_folder_is_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("stays", encoding="utf-8")
    for count in ("3", "4"):
        run_script("recipes/function_calling/conversations.py", "--output", tmp_path, "--num-examples", count)
        assert len(load_dataset(str(tmp_path), data_files="train.parquet", split="train")) == int(count)
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "stays"


def train(dataset, output, *words):
    return run_script("recipes/sft.py", "--dataset", dataset, "--output_dir", output, *SMALL, *words)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs") / "chat"
    train(dataset, folder, "--hidden_size", "32")
    return folder


def test_what_is_trained_chats_from_its_folder(trained, synthetic):
    _, functions, _ = synthetic
    model, tokenizer = ToolMambaForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    assert tokenizer.chat_template
    assert tokenizer.response_template
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    function = functions.tested("order_taxi")
    chat = Chat.start(model, tokenizer, tools=[Function(function, function.schema(), has_side_effects=False)])
    reply = chat.send("please order the taxi in Oslo", max_new_tokens=20)
    assert reply.tokens > 20
    assert chat.messages[0] == {"role": "user", "content": "please order the taxi in Oslo"}


def test_the_card_says_that_nothing_but_the_loss_was_measured_and_the_folder_can_be_published(trained):
    check_finished(trained)
    results = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert f"Nothing was measured but the mean loss of the training, {results['train_loss']:.4f}" in card
    assert "length-generalization" not in card
    assert (results["num_rows"], results["steps"], results["base_model"]) == (48, 2, None)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", ["mamba", "lfm2"])
def test_a_checkpoint_without_a_template_learns_ours(name, rank, dataset, tmp_path):
    tokenizer = build_text_tokenizer(["please order the taxi"], 300)
    tokenizer.save_pretrained(tmp_path / "base")
    small_model(name, tokenizer, []).save_pretrained(tmp_path / "base")
    words = ["--model", tmp_path / "base", "--lora_rank", rank]
    with pytest.raises(ChatTemplateError, match="add_chat_tokens") as caught:
        train(dataset, tmp_path / "no", *words)
    assert "--chat_template toolssm" in caught.value.__notes__[0]
    before = load_model(tmp_path / "base").get_input_embeddings().weight
    train(dataset, tmp_path / "chat", *words, "--chat_template", "toolssm", "--learning_rate", "1e-2")
    model = load_model(tmp_path / "chat")
    known = AutoTokenizer.from_pretrained(tmp_path / "chat")
    after = model.get_input_embeddings().weight
    assert len(known) == len(tokenizer) + 10 == after.shape[0]
    assert bool((after[: len(tokenizer)] == before).all()) is (rank > 0)  # a LoRA trains the new rows only
    Chat.start(model, known).send("hello", max_new_tokens=3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "sorting"], "--task is of trajectories"),
        (["--eval_lengths", "3"], "--eval_lengths is of trajectories"),
        (["--chat_template", "mine"], "--chat_template is toolssm"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(words, said, dataset, tmp_path):
    with pytest.raises(UnsafeTrainingError, match=said):
        train(dataset, tmp_path / "no", *words)
    assert not (tmp_path / "no").exists()
    config = ["--config", "recipes/configs/addition_cpu.yaml", "--output_dir", tmp_path / "no"]
    with pytest.raises(UnsafeTrainingError, match="--chat_template is of a --dataset of messages"):
        run_script("recipes/sft.py", *config, "--chat_template", "toolssm")


def test_rows_in_columns_of_other_names_are_refused_with_those_that_are_read(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    line = json.dumps({"conversations": [{"from": "human", "value": "hello"}]})
    (rows / "train.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(UnsafeTrainingError, match="has the columns conversations: .* in a column messages"):
        train(rows, tmp_path / "no")


def test_a_checkpoint_of_command_tokens_is_refused(model, tokenizer, dataset, tmp_path):
    model.save_pretrained(tmp_path / "addition")
    tokenizer.save_pretrained(tmp_path / "addition")
    with pytest.raises(UnsafeTrainingError, match="was trained to call its tools by tokens"):
        train(dataset, tmp_path / "no", "--model", tmp_path / "addition", "--chat_template", "toolssm")


def test_rows_are_built_again_as_they_were_and_hold_what_their_functions_give(dataset, synthetic):
    conversations, functions, _ = synthetic
    built = load_dataset(str(dataset), split="train")
    for row, again in zip(built, conversations.training_rows(48, seed=0)):
        assert row == again
        schemas = {each["function"]["name"]: each["function"] for each in row["tools"]}
        assert not {*functions.UNSEEN, *functions.STRANGE} & {*schemas}
        asked = [m for m in row["messages"] if m["role"] == "assistant" and m.get("tool_calls")]
        results = [m["content"] for m in row["messages"] if m["role"] == "tool"]
        called = [call["function"] for message in asked for call in message["tool_calls"]]
        for call, result in zip(called, results, strict=True):
            verb, noun = call["name"].split("_")
            function = functions.SyntheticFunction(verb, noun, tuple(call["arguments"]))
            assert function(**call["arguments"]) == result
            assert list(call["arguments"]) == schemas[call["name"]]["parameters"]["required"]
    assert [*conversations.training_rows(2, seed=0)] != [*conversations.training_rows(2, seed=1)]


def test_the_test_asks_in_other_wordings_than_training(synthetic):
    conversations, functions, _ = synthetic
    asked = {
        message["content"]
        for row in conversations.training_rows(2_000, seed=0)
        for message in row["messages"]
        if message["role"] == "user"
    }
    words = {word for text in asked for word in text.replace(",", "").split()}
    for name in (*functions.SEEN, *functions.UNSEEN):
        last = functions.VERBS[name.split("_")[0]][1][-1]
        if name in functions.SEEN:
            assert not any(f"{last} the {name.split('_')[1]}" in text for text in asked)
        for index in range(50):
            problem = conversations.test_problem(name, index)
            assert problem.request not in asked
            assert problem.right.name == name
            assert name in [function.name for function in problem.offered]
            known = set(problem.request.replace(",", "").split()) - set(map(str, problem.arguments.values()))
            assert known <= words


def test_a_reply_is_judged_by_what_first_goes_wrong(synthetic):
    conversations, functions, evaluation = synthetic
    right = functions.tested("order_taxi")
    offered = [right, functions.tested("check_printer")]
    arguments = {"city": "Oslo", "person": "Anna"}
    answer = functions.said([right(**arguments)])
    problem = conversations.Problem(offered, right, "the taxi", arguments)

    def judged(*calls, content=answer, more=()):
        written = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
        first = {"role": "assistant", "content": "", **({"tool_calls": written} if written else {})}
        return evaluation.judge([first, *more], content, problem)

    assert judged(("order_taxi", arguments)) == (4, None)
    assert judged() == (0, "no call")
    assert judged(more=[{"role": "tool", "content": "MalformedCallError"}]) == (0, "the call cannot be read")
    assert judged(("order_taxi", arguments), ("order_taxi", arguments)) == (1, "more than one call")
    assert judged(("check_printer", {})) == (1, "another function that was offered")
    assert judged(("order_cake", {})) == (1, "a function that was not offered")
    assert judged(("order_taxi", {"city": "Oslo"})) == (2, "other parameters than were asked for")
    assert judged(("order_taxi", {"city": "Rome", "person": "Bela"})) == (2, "another value: city, person")
    assert judged(("order_taxi", {"city": "Oslo", "person": 1}))[0] == 2
    assert judged(("order_taxi", arguments), content="Done.")[0] == 3


def test_the_evaluation_writes_what_it_found_onto_the_card(trained, tmp_path):
    words = ["--model", trained, "--num-problems", "2", "--output", tmp_path]
    printed = run_script("recipes/function_calling/measure_calls.py", *words)
    groups = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["evaluation"]["groups"]
    assert [group["num_problems"] for group in groups] == [2, 2, 2]
    assert all(sum(group["faults"].values()) == 2 - 2 * group["right_answer"] for group in groups)
    assert "never seen, of seen words" in printed
    assert "Nothing was measured" not in (trained / "README.md").read_text(encoding="utf-8")
    assert "| seen in training | 2 |" in (trained / "README.md").read_text(encoding="utf-8")


def test_a_function_gives_the_same_for_the_same_arguments_and_sometimes_fails(synthetic):
    _, functions, _ = synthetic
    function, rng = functions.tested("book_boat"), random.Random(0)
    drawn = [function.draw(rng) for _ in range(200)]
    results = [json.loads(function(**arguments)) for arguments in drawn]
    assert results == [json.loads(function(**dict(reversed(arguments.items())))) for arguments in drawn]
    assert {*map(tuple, results)} == {("reference",), ("error",)}
