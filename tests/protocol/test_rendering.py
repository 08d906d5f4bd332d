"""Cells become tokens one at a time, with loss exactly on what the model writes, for any tokenizer."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_toolssm.errors import CellNotOneTokenError, EmptyProblemError, MissingToolTokensError
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.special_tokens import add_tool_tokens, tool_token_ids, tool_tokens
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import ANSWER, StepKind
from hf_toolssm.tools import make_tool
from hf_toolssm.tools.pointer_memory import MEMORY_BEGIN, PointerMemory

PROBLEMS = st.tuples(st.integers(0, 99_999), st.integers(0, 99_999)).map(lambda pair: f"{pair[0]}+{pair[1]}=")


@given(problem=PROBLEMS)
def test_loss_is_on_thoughts_outputs_calls_and_the_end_only(addition, tokenizer, problem):
    trajectory = addition.solve(problem, "local")
    rendered = Renderer(tokenizer).render(trajectory)
    ids, labels = rendered["input_ids"], rendered["labels"]
    kinds, cells = zip(*trajectory.cells())
    assert kinds[: len(problem)] == (StepKind.INPUT,) * len(problem)
    assert len(ids) == len(labels) == len(kinds) + 1
    for token, label, kind in zip(ids, labels, [*kinds, StepKind.OUTPUT]):
        assert label == (-100 if kind in (StepKind.INPUT, StepKind.OBSERVATION) else token)
    assert ids[-1] == tokenizer.eos_token_id
    assert tuple(tokenizer.convert_ids_to_tokens(ids[:-1])) == cells


def test_every_character_is_a_token_and_text_comes_back(tokenizer):
    ids = tokenizer("98765+4321=")["input_ids"]
    assert len(ids) == 11
    assert tokenizer.decode(ids) == "98765+4321="


def test_a_tool_token_in_a_text_is_one_token(tokenizer):
    ids = tokenizer(f"1{ANSWER}2")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["1", ANSWER, "2"]


def test_the_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    batch = again(["1+2=", "34+56="], padding=True)
    assert batch["attention_mask"][0] == [0, 0, 1, 1, 1, 1]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_any_tokenizer_takes_the_tool_tokens_and_writes_one_cell_as_one_token(addition, specs, byte_tokenizer):
    tools = [make_tool(spec) for spec in specs]
    with pytest.raises(MissingToolTokensError, match="add_tool_tokens"):
        tool_token_ids(byte_tokenizer, tools)
    assert len(byte_tokenizer("12345")["input_ids"]) < 5  # it merges digits, which a memory of cells must not
    added = add_tool_tokens(byte_tokenizer, tools)
    assert added == len(tool_tokens(tools))
    assert add_tool_tokens(byte_tokenizer, tools) == 0
    trajectory = addition.solve("12345+98765=", "local")
    ids = Renderer(byte_tokenizer).render(trajectory)["input_ids"]
    assert len(ids) == len(list(trajectory.cells())) + 1
    assert byte_tokenizer.decode(ids[:12]) == "12345+98765="


def test_a_tokenizer_that_has_the_tool_tokens_pads_on_the_left_also_saved(specs, byte_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.padding_side, tokenizer.pad_token = "right", None
    add_tool_tokens(tokenizer, [make_tool(spec) for spec in specs])
    tokenizer.save_pretrained(tmp_path)
    batch = AutoTokenizer.from_pretrained(tmp_path)(["1", "1 2 3"], padding=True)
    assert batch["attention_mask"][0][0] == 0
    assert batch["input_ids"][0][0] == tokenizer.eos_token_id


def test_prompts_are_what_training_saw_for_any_tokenizer(addition, specs, tokenizer, byte_tokenizer):
    add_tool_tokens(byte_tokenizer, [make_tool(spec) for spec in specs])
    problems = ["12345+98765=", "7+5="]
    for each in (tokenizer, byte_tokenizer):
        batch = Renderer(each).prompts(problems)
        for row, problem in enumerate(problems):
            ids = Renderer(each).render(addition.solve(problem, "local"))["input_ids"][: len(problem)]
            assert batch["input_ids"][row, batch["attention_mask"][row].bool()].tolist() == ids
        assert batch["attention_mask"][1].tolist() == [0] * 8 + [1] * 4
    together = tokenizer(problems, padding=True, return_tensors="pt")
    assert together["input_ids"].equal(Renderer(tokenizer).prompts(problems)["input_ids"])


def test_line_breaks_are_characters_too(specs):
    lines = build_task_tokenizer(["a", "\n"], [make_tool(spec) for spec in specs])
    assert lines.convert_ids_to_tokens(lines("a\n\na")["input_ids"]) == ["a", "\n", "\n", "a"]


def test_a_cell_of_two_characters_is_refused(specs):
    with pytest.raises(CellNotOneTokenError, match="one character"):
        build_task_tokenizer(["a", "bc"], [make_tool(spec) for spec in specs])


def test_a_tokenizer_without_an_end_token_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(MissingToolTokensError, match="eos_token"):
        add_tool_tokens(bare, [PointerMemory()])


@pytest.mark.parametrize("cell", ["x", "12", ""])
def test_a_cell_that_is_not_one_known_token_is_named(tokenizer, cell):
    with pytest.raises(CellNotOneTokenError, match="one known token"):
        Renderer(tokenizer).token(cell)


def test_an_empty_problem_has_no_prompt(tokenizer):
    with pytest.raises(EmptyProblemError, match="at least one cell"):
        Renderer(tokenizer).problem([])


def test_markers_and_commands_are_tokens_of_their_own(tokenizer, specs):
    ids = tool_token_ids(tokenizer, [make_tool(spec) for spec in specs])
    assert len(set(ids.values())) == len(ids) == 1 + 1 + 9 + 2
    assert MEMORY_BEGIN in ids
