"""Rows of messages become what generation feeds, with loss on what the model writes; bad rows are named."""

import json

import pytest
from datasets import Dataset, Features, Json, List
from transformers import PreTrainedTokenizerFast

from hf_toolssm.errors import ChatTemplateError, CorruptRowError
from hf_toolssm.protocol.chat_template import ChatTemplate
from hf_toolssm.protocol.chat_tokens import add_chat_tokens
from hf_toolssm.protocol.text_tokenizer import build_text_tokenizer
from hf_toolssm.training.message_rows import render_messages, texts_of

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "time",
        "description": "Tells the time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "integer"}}},
    },
}


def calls(*given):
    functions = [{"name": name, "arguments": arguments} for name, arguments in given]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function} for function in functions],
    }


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def tool(name, content):
    return {"role": "tool", "name": name, "content": content}


ASKED = [
    user("What is the weather in Oslo, and the time?"),
    calls(("weather", {"city": "Oslo"}), ("time", {"zone": 1})),
    tool("weather", "21 <|im_end|> degrees"),
    tool("time", "noon"),
    assistant("21 degrees, and noon."),
    user("Thanks."),
    assistant("You are welcome."),
]

# As some checkpoints' templates do: only the last turn keeps what was thought.
FORGETS_THOUGHTS = (
    "{%- set ns = namespace(last=-1) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}<|im_start|>{{ m.role + '\n' }}"
    "{%- if m.reasoning_content and loop.index0 > ns.last -%}<think>{{ m.reasoning_content }}</think>{%- endif -%}"
    "{{ m.content }}<|im_end|>{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = build_text_tokenizer(texts_of(rows_of({"messages": ASKED, "tools": [WEATHER, TIME]})), 300)
    add_chat_tokens(tokenizer)
    return tokenizer


def rows_of(*rows):
    """Rows whose columns are JSON, so that each keeps its own keys."""
    columns = {name: List(Json()) for name in rows[0]}
    return Dataset.from_list(list(rows), Features(columns))


def rendered(rows, tokenizer):
    return list(render_messages(rows, tokenizer, num_proc=1))


def spell(tokenizer, ids):
    return tokenizer.decode(ids)


def learned(tokenizer, row):
    return spell(tokenizer, [label for label in row["labels"] if label != -100])


def test_what_the_model_writes_is_learned_with_its_end_and_nothing_else(tokenizer):
    (row,) = rendered(rows_of({"messages": ASKED, "tools": [WEATHER, TIME]}), tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert len(row["input_ids"]) == len(row["labels"])
    assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"]))
    assert row["labels"].count(end) == 3
    words = learned(tokenizer, row).split("<|im_end|>")
    assert words[1:] == ["21 degrees, and noon.", "You are welcome.", ""]
    assert json.loads(words[0].split("<tool_call>")[1].split("</tool_call>")[0]) == {
        "name": "weather",
        "arguments": {"city": "Oslo"},
    }
    # The tool's text is no end of a turn, though it is spelled like one.
    assert row["input_ids"].count(end) == 7
    assert "21 <|im_end|> degrees" in spell(tokenizer, row["input_ids"])


def test_the_tokens_are_those_that_generation_feeds(tokenizer):
    (row,) = rendered(rows_of({"messages": ASKED, "tools": [WEATHER, TIME]}), tokenizer)
    facts = given([WEATHER, TIME])
    whole = ChatTemplate(tokenizer, facts).render(ASKED)
    assert whole[: len(row["input_ids"])] == row["input_ids"]


def given(tools):
    from hf_toolssm.tools.function import Function
    from hf_toolssm.tools.tool import facts_of

    return [facts_of(Function(print, each)) for each in tools]


@pytest.mark.parametrize(
    "written",
    [
        {"messages": ASKED, "tools": [WEATHER, TIME]},
        {"messages": ASKED, "tools": json.dumps([WEATHER, TIME])},
        {"messages": ASKED, "tools": [json.dumps(WEATHER), json.dumps(TIME["function"])]},
        {
            "messages": [
                ASKED[0],
                calls(("weather", '{"city": "Oslo"}'), ("time", '{"zone": 1}')),
                *ASKED[2:],
            ],
            "tools": [WEATHER, TIME],
        },
    ],
    ids=["schemas", "one JSON text", "JSON texts", "arguments as JSON"],
)
def test_every_way_of_writing_a_row_gives_the_same_tokens_with_the_nulls_of_arrow_or_without(written, tokenizer):
    wanted = rendered(rows_of({"messages": ASKED, "tools": [WEATHER, TIME]}), tokenizer)
    mixed = Dataset.from_list([written])  # structs: every call has both arguments, one of them null
    if isinstance(written["tools"], list) and isinstance(written["tools"][0], dict):
        assert mixed[0]["tools"][0]["function"]["parameters"]["properties"]["zone"] is None
    assert rendered(mixed, tokenizer) == wanted


def test_a_null_that_json_says_is_kept(tokenizer):
    messages = [user("Now?"), calls(("time", {"zone": None})), tool("time", "noon"), assistant("Noon.")]
    (row,) = rendered(rows_of({"messages": messages, "tools": [TIME]}), tokenizer)
    assert '{"zone": null}' in learned(tokenizer, row)


def test_only_the_completion_is_learned(tokenizer):
    rows = rows_of({"prompt": ASKED[:6], "completion": ASKED[6:], "tools": [WEATHER, TIME]})
    (row,) = rendered(rows, tokenizer)
    (whole,) = rendered(rows_of({"messages": ASKED, "tools": [WEATHER, TIME]}), tokenizer)
    assert row["input_ids"] == whole["input_ids"]
    assert learned(tokenizer, row) == "You are welcome.<|im_end|>"


def test_a_template_that_takes_thoughts_out_of_history_makes_a_row_of_every_users_turn(tokenizer):
    forgetful = with_template(tokenizer, FORGETS_THOUGHTS)
    messages = [
        user("1?"),
        assistant("one", reasoning_content="think 1"),
        user("2?"),
        assistant("two", reasoning_content="think 2"),
    ]
    first, second = rendered(rows_of({"messages": messages}), forgetful)
    assert learned(forgetful, first) == "<think>think 1</think>one<|im_end|>"
    assert learned(forgetful, second) == "<think>think 2</think>two<|im_end|>"
    text = spell(forgetful, second["input_ids"])
    assert "think 1" not in text
    assert "one" in text
    without = [{**message, "reasoning_content": ""} for message in messages]
    assert len(rendered(rows_of({"messages": without}), forgetful)) == 1  # nothing is rewritten


def with_template(tokenizer, template):
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    other.chat_template = template
    return other


CALLED = calls(("weather", {"city": "Oslo"}))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([user("?"), calls(("stocks", {}))], "message 1 calls 'stocks', and the row offers weather"),
        ([user("?"), tool("weather", "21"), assistant("21")], "message 1: a tool's message stands behind"),
        ([user("?")], "no assistant says anything"),
        ([assistant("Hello!"), user("?"), assistant("21")], "an assistant speaks first"),
        ([user("?"), calls(("weather", [1]))], "the arguments of weather are an object"),
        ([user("?"), calls(("weather", "not JSON"))], "the arguments of weather are no JSON"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_named_with_what_is_wrong(messages, said, tokenizer):
    good = {"messages": [user("?"), CALLED, tool("weather", "21"), assistant("21")], "tools": [WEATHER]}
    rows = rows_of(good, {"messages": messages, "tools": [WEATHER]})
    with pytest.raises(CorruptRowError, match=f"row 1: .*{said}"):
        rendered(rows, tokenizer)
    if said.startswith(("message 1: a tool's", "the arguments")):
        with pytest.raises(CorruptRowError, match="row 1: "):
            list(texts_of(rows))
    with pytest.raises(CorruptRowError, match="row weather/7: "):
        rendered(rows.add_column("id", ["weather/6", "weather/7"]), tokenizer)


def test_tools_that_are_none_are_named(tokenizer):
    messages = [user("?"), assistant("21")]
    dialect = {"name": "weather", "parameters": {"type": "dict"}}
    for tools, said in ((["x"], "tools are a list"), ([WEATHER, WEATHER], "one name"), ([dialect], "JSON Schema")):
        rows = rows_of({"messages": messages, "tools": []}, {"messages": messages, "tools": tools})
        with pytest.raises(CorruptRowError, match=f"row 1: .*{said}"):
            rendered(rows, tokenizer)
        with pytest.raises(CorruptRowError, match=f"row weather/7: .*{said}"):
            rendered(rows.add_column("id", ["weather/6", "weather/7"]), tokenizer)


@pytest.mark.parametrize("nothing", [None, "", "null", "[]"])
def test_a_row_may_say_in_every_way_that_it_offers_no_tools(nothing, tokenizer):
    rows = Dataset.from_list([{"messages": [user("?"), assistant("21")], "tools": nothing}])
    assert rendered(rows, tokenizer) == rendered(rows.remove_columns("tools"), tokenizer)


def test_an_assistant_may_speak_first_in_what_is_not_learned(tokenizer):
    greeted = {"prompt": [assistant("Hello!"), user("?")], "completion": [assistant("21")]}
    (row,) = rendered(rows_of(greeted), tokenizer)
    assert learned(tokenizer, row) == "21<|im_end|>"


def test_a_tokenizer_without_a_template_or_without_tools_in_it_is_said_before_any_row(tokenizer):
    rows = rows_of({"messages": ASKED, "tools": [WEATHER, TIME]})
    with pytest.raises(ChatTemplateError, match="add_chat_tokens"):
        rendered(rows, with_template(tokenizer, None))
    with pytest.raises(ChatTemplateError, match="tools"):
        rendered(rows, with_template(tokenizer, FORGETS_THOUGHTS))


def test_a_template_that_never_ends_a_turn_is_refused(tokenizer):
    endless = "{%- for m in messages -%}<|im_start|>{{ m.role + ' ' + m.content + '\n' }}{%- endfor -%}"
    with pytest.raises(ChatTemplateError, match="ends the assistant's turn by no token"):
        rendered(rows_of({"messages": [user("?"), assistant("!")]}), with_template(tokenizer, endless))


def test_a_word_is_the_same_tokens_wherever_it_stands(tokenizer):
    (word,) = {tuple(tokenizer.encode(text)) for text in ("Oslo",)}
    for text in (" Oslo", '"Oslo"', "(Oslo)"):
        ids = tokenizer.encode(text)
        assert any(tuple(ids[at : at + len(word)]) == word for at in range(len(ids)))
    assert tokenizer.decode(tokenizer.encode("né 12 ☃\n")) == "né 12 ☃\n"
