"""What a chat template wrote is read back from its text alone, as other engines do with what is saved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from template_families import (
    FAMILIES,
    WITHOUT_REASONING,
    family_conversation,
    family_tokenizer,
    reason,
    same,
    template,
)
from transformers import AutoTokenizer

from hf_toolssm.protocol.chat_tokens import add_chat_tokens
from hf_toolssm.protocol.python_calls import read_python_calls
from hf_toolssm.protocol.response_templates import (
    UNVERIFIED,
    read_template,
    response_template_for,
    with_python_calls_as_text,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = TEXT.map(lambda text: text.replace("<", ">"))
CALL = {
    "type": "function",
    "function": {"name": "get", "arguments": {"key": "</tool_call><|im_end|>", "n": [1, None]}},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get",
            "description": "Reads <tools>.",
            "parameters": {"type": "object", "properties": {"key": {"type": "string"}, "n": {"type": "array"}}},
        },
    }
]


OURS = family_tokenizer("toolssm", split=False)


@pytest.mark.parametrize("name", ["lfm2", "llama3", "gptoss", "gemma3", "deepseek_r1_distill"])
def test_a_template_that_writes_no_calls_that_we_know_has_no_response_template(name):
    assert response_template_for(template(name)) is None


@pytest.mark.parametrize("family", ["toolssm", "lfm2_v2", "nemotron_3_nano", "qwen3_5_think", "qwen3_6"])
def test_a_training_variant_is_read_as_its_template(family):
    assert response_template_for(template(f"{family}_training")) == response_template_for(template(family))


def read_back(tokenizer, messages, tools):
    """The last message, as it is read from the text that the template writes for it."""
    exact = with_python_calls_as_text(tokenizer.response_template)
    typed = exact["fields"]["tool_calls"].get("content") == "xml-inline"
    whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    prompt, head, turn = whole.rpartition(exact["start_anchor"])
    read = tokenizer.parse_response(turn, exact, prefix=prompt + head, tools=tools if typed else None)
    if isinstance(read.get("tool_calls"), str):
        read["tool_calls"] = read_python_calls(read["tool_calls"])
    return read


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seeds", [range(30), pytest.param(range(1000), marks=pytest.mark.slow)], ids=["30", "1000"])
def test_every_turn_is_read_back_from_its_text(family, seeds):
    tokenizer = family_tokenizer(family, split=True)
    equal = 0
    for seed in seeds:
        messages, tools = family_conversation(family, seed)
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or reason(family, message, tools, split=True):
                continue
            assert same(read_back(tokenizer, messages[: index + 1], tools), message)
            equal += 1
    assert equal > len(seeds)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "text",
    ["a\n</parameter>\nb", "\n</parameter>\n", "\n", "\n</tool_call>", "f()]<|tool_call_end|>", "</function>", ""],
)
def test_a_value_may_hold_what_ends_a_value(family, text):
    arguments = {"key": text, "n": [text]}
    call = {"type": "function", "function": {"name": "get", "arguments": arguments}}
    message = {"role": "assistant", "content": "", "tool_calls": [call, CALL]}
    question = {"role": "user", "content": "q"}
    assert read_back(family_tokenizer(family, split=True), [question, message], TOOLS) == message


@pytest.mark.parametrize("family", sorted({*FAMILIES} - WITHOUT_REASONING))
def test_a_turn_may_be_reasoning_alone(family):
    message = {"role": "assistant", "content": "", "reasoning_content": "so"}
    question = {"role": "user", "content": "q"}
    assert read_back(family_tokenizer(family, split=True), [question, message], TOOLS) == message


@given(content=PLAIN, reasoning=PLAIN, argument=TEXT, cut=st.integers(0, 99))
def test_our_own_turn_is_exact_whole_and_in_pieces(content, reasoning, argument, cut):
    call = {"type": "function", "function": {"name": "get", "arguments": {"key": argument}}}
    message = {"role": "assistant", "content": content, "tool_calls": [call, CALL]}
    if reasoning:
        message["reasoning_content"] = reasoning
    question = {"role": "user", "content": "<think>"}
    prompt = OURS.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    whole = OURS.apply_chat_template([question, message], tokenize=False)
    turn = whole.removeprefix(prompt)
    assert len(turn) < len(whole)
    assert OURS.parse_response(turn, prefix=prompt, tools=TOOLS) == message
    parser = OURS.get_response_parser(prefix=prompt, tools=TOOLS)
    for piece in (turn[:cut], turn[cut:]):
        parser.feed(piece)
    assert parser.finalize()[0] == message


def test_what_a_model_writes_behind_a_call_is_kept():
    turn = 'before<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>behind<|im_end|>'
    assert OURS.parse_response(turn, prefix="")["content"] == "beforebehind"


def test_chat_tokens_are_saved_with_both_templates_and_added_once(tmp_path):
    tokenizer = family_tokenizer("granite_4", split=True)
    assert add_chat_tokens(tokenizer) == 10
    assert add_chat_tokens(tokenizer) == 0
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == read_template("toolssm")
    assert loaded.response_template == response_template_for(loaded.chat_template)
    assert (loaded.eos_token, loaded.pad_token, loaded.padding_side) == ("<|im_end|>", "<|end_of_text|>", "left")
    # Servers decode without special tokens before they look for calls.
    ids = loaded('<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call><|im_end|>')["input_ids"]
    assert loaded.parse_response(loaded.decode(ids, skip_special_tokens=True), prefix="")["tool_calls"]


def test_the_training_template_writes_the_same_and_marks_what_the_model_writes():
    messages, tools = family_conversation("toolssm", 3)
    options = {"tools": tools, "chat_template": read_template("toolssm_training")}
    whole = OURS.apply_chat_template(messages, tools=tools, tokenize=False)
    assert OURS.apply_chat_template(messages, tokenize=False, **options) == whole
    marked = OURS.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True, **options)
    learned = [token for token, mine in zip(marked["input_ids"], marked["assistant_masks"]) if mine]
    turns = [part.partition("<|im_end|>\n")[0] for part in whole.split("<|im_start|>assistant\n")[1:]]
    assert OURS.decode(learned) == "".join(f"{turn}<|im_end|>" for turn in turns)


def test_what_was_never_run_beside_its_checkpoint_says_so():
    assert all(read_template(name).startswith("{#- Unverified") for name in UNVERIFIED)


def test_what_is_saved_for_lfm2_reads_plain_python_calls():
    tokenizer = family_tokenizer("lfm2_2_5", split=True)
    calls = "get(key='a, b(c)', n=[1, {\"x\": [2]}]), get()"
    turn = f"Yes, f(x), g(y). <|tool_call_start|>[{calls}]<|tool_call_end|><|im_end|>"
    read = tokenizer.parse_response(turn, prefix="", tools=TOOLS)
    calls = [call["function"]["arguments"] for call in read["tool_calls"]]
    assert (read["content"], calls) == ("Yes, f(x), g(y). ", [{"key": "a, b(c)", "n": [1, {"x": [2]}]}, {}])
