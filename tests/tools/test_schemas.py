"""What a model wrote as arguments is what the schema says, or a sentence that tells it what to write."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_toolssm.errors import InvalidArgumentsError, InvalidSchemaError, UnknownToolError
from hf_toolssm.tools import facts_of
from hf_toolssm.tools.tool import argument_of, check_names, error_text


class Clock:
    """Tells the time.

    And more, of which a model is told nothing.
    """

    calls = {"clock": True, "now": False}

    def call(self, name, argument):
        return f"12:00 {argument}"


class Typed:
    def __init__(self, properties=None, **schema):
        parameters = {"type": "object", "properties": properties or {}, **schema}
        self.schemas = {"act": {"description": "Acts.", "parameters": parameters}}

    def call(self, name, arguments):
        return json.dumps(arguments)


WEATHER = Typed(
    {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "nullable": True},
        "unit": {"enum": ["C", "F"]},
        "where": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}}], "nullable": True},
    },
    required=["city"],
    additionalProperties=False,
)
FACTS = facts_of(WEATHER)


def refused(text, facts=FACTS):
    with pytest.raises(InvalidArgumentsError) as raised:
        argument_of(facts, "act", text)
    return str(raised.value)


def test_a_tool_without_a_schema_gets_the_text_and_has_the_schema_of_one():
    facts = facts_of(Clock())
    assert argument_of(facts, "clock", "any { text") == "any { text"
    assert argument_of(facts, "clock", {"argument": "in Rome"}) == "in Rome"
    assert argument_of(facts, "now", {}) == ""
    with pytest.raises(InvalidArgumentsError, match="'argument' is a required property"):
        argument_of(facts, "clock", {})
    assert facts.schemas["clock"]["description"] == facts.schemas["now"]["description"] == "Tells the time."
    assert facts.schemas["clock"]["parameters"]["required"] == ["argument"]
    assert facts.schemas["now"] == {
        "name": "now",
        "description": "Tells the time.",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    }


def test_a_schema_says_which_calls_there_are_and_whether_they_take_anything():
    assert FACTS.calls == {"act": True}
    assert facts_of(Typed(additionalProperties=False)).calls == {"act": False}
    assert argument_of(facts_of(Typed(additionalProperties=False)), "act", "") == {}


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"city": "Z\\u00fcrich", "days": null}', {"city": "Zürich", "days": None}),
        (' {"city": "", "where": [1, 2.5], "unit": "F"}\n', {"city": "", "where": [1, 2.5], "unit": "F"}),
        ('{"city": "<|end|>", "where": null}', {"city": "<|end|>", "where": None}),
    ],
)
def test_what_follows_the_schema_is_given_as_a_dict(text, arguments):
    assert argument_of(FACTS, "act", text) == arguments == argument_of(FACTS, "act", arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'city' is a required property. It takes city (string), days (integer, optional)"),
        ('{"city": 5}', "city: 5 is not of type 'string'"),
        ('{"city": null}', "city: null is not of type 'string'"),
        ('{"city": "a", "days": true}', "days: true is not of type 'integer'"),
        ('{"city": "a", "days": 0}', "days: 0 is less than the minimum of 1"),
        ('{"city": "a", "unit": "K"}', "unit: \"K\" is not one of ['C', 'F']"),
        ('{"city": "a", "where": [1, "x"]}', "where[1]: \"x\" is not of type 'number'"),
        ('{"city": "a", "town": 1}', "('town' was unexpected)"),
        ('["a"]', "[\"a\"] is not of type 'object'"),
        ("null", "null is not of type 'object'"),
        ("{'city': 'a'}", "no JSON: Expecting property name"),
        ('{"city": "a"} and', "no JSON: Extra data"),
        ('{"city": "a", "city": "b"}', "'city' stands in it twice"),
        ('{"city": "a", "days": NaN}', "NaN is no number"),
        ('{"city": "a", "days": -Infinity}', "-Infinity is no number"),
        ('{"city": "a", "where": [1e999]}', "cannot be checked"),
        ('{"city": "a", "days": ' + "9" * 100_000 + "}", "Exceeds the limit"),
        ('{"city": "\\ud800"}', "half of a character"),
        ("[" * 1_000_000, "nested too deeply"),
        ('{"city": ' + "[" * 500 + "]" * 500 + "}", "city: [[[[[[[[[[[["),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text, said):
    assert said in refused(text)
    assert len(error_text(InvalidArgumentsError(refused(text)))) < 400


def test_of_many_faults_three_are_told():
    facts = facts_of(Typed({key: {"type": "string"} for key in "abcdefgh"}))
    told = refused(json.dumps(dict.fromkeys("abcdefgh", 1)), facts)
    assert [told.count(f"{key}: 1 is not") for key in "abcdefgh"] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert "; and more. It takes a (string, optional), b" in told
    assert len(refused(json.dumps({"a": ["x" * 10_000] * 100}), facts)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
CITIES = st.fixed_dictionaries({"city": st.text() | JSON}, optional={"days": JSON, "where": JSON, "unit": JSON})


def read(facts, text):
    """The arguments, and what the model reads if they are refused."""
    try:
        return argument_of(facts, "act", text), None
    except InvalidArgumentsError as error:
        return None, error_text(error)


@given(st.text() | (JSON | CITIES).map(json.dumps))
def test_whatever_a_model_writes_is_a_valid_dict_or_a_short_refusal(text):
    arguments, refusal = read(FACTS, text)
    if arguments is None:
        assert 0 < len(refusal) <= 500
    else:
        assert isinstance(arguments["city"], str)
        assert {*arguments} <= {"city", "days", "unit", "where"}
        json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()


@given(st.dictionaries(st.sampled_from("abc"), JSON))
def test_values_of_any_kind_come_back_as_they_were_written_or_are_no_json(values):
    text = json.dumps(values)
    arguments, refusal = read(facts_of(Typed(dict.fromkeys("abc", {}), additionalProperties=False)), text)
    if arguments is None:
        assert "half of a character" in refusal or "is no number" in refusal
    else:
        assert arguments == json.loads(text)


def test_a_reference_reaches_into_its_own_schema_and_nowhere_else():
    tree = {"$ref": "#/$defs/tree"}
    facts = facts_of(Typed({"tree": tree}, **{"$defs": {"tree": {"type": "array", "items": tree}}}))
    assert argument_of(facts, "act", '{"tree": [[], [[]]]}') == {"tree": [[], [[]]]}
    assert "tree[1][0]: 3 is not of type 'array'" in refused('{"tree": [[], [3]]}', facts)
    for reference in ("https://example.com/schema", "#/$defs/other", "file:///etc/passwd", "other.json"):
        with pytest.raises(InvalidSchemaError, match="leads nowhere"):
            facts_of(Typed({"a": {"$ref": reference}}))


def test_a_reference_that_a_value_only_shows_is_none_and_one_of_an_inner_schema_begins_there():
    shown = {"default": {"$ref": "nowhere"}, "const": {"$ref": "nowhere"}}
    assert argument_of(facts_of(Typed({"a": shown})), "act", '{"a": {"$ref": "nowhere"}}')
    inner = {"$id": "http://example.com/inner", "$ref": "#/$defs/number", "$defs": {"number": {"type": "number"}}}
    facts = facts_of(Typed({"a": {"$ref": "#/$defs/inner"}}, **{"$defs": {"inner": inner}}))
    assert "a: \"x\" is not of type 'number'" in refused('{"a": "x"}', facts)
    with pytest.raises(InvalidSchemaError, match="leads nowhere"):
        facts_of(Typed({"a": {**inner, "$defs": {}}}, **{"$defs": inner["$defs"]}))


def test_a_schema_that_refers_to_itself_without_end_is_a_refusal():
    around = {"anyOf": [{"$ref": "#/$defs/around"}]}
    facts = facts_of(Typed({"a": around}, **{"$defs": {"around": around}}))
    assert "cannot be checked" in refused('{"a": 1}', facts)


@pytest.mark.parametrize(
    "schemas",
    [
        None,
        [{"name": "act"}],
        {3: {"description": "", "parameters": {"type": "object"}}},
        {"act": {"type": "object"}},
        {"act": {"description": None, "parameters": {"type": "object"}}},
        {"act": {"description": "", "parameters": {"type": "string"}}},
        {"act": {"description": "", "parameters": {"type": "object", "properties": []}}},
        {"act": {"description": "", "parameters": {"type": "object", "properties": {"a": {"type": "text"}}}}},
        {"act": {"description": "", "parameters": {"type": "object", "properties": {"a": {"pattern": "("}}}}},
        {"act": {"description": "", "parameters": {"type": "object", "maximum": float("nan")}}},
        {"act": {"description": "", "parameters": {"type": "object", "default": object()}}},
        {"act": {"description": "", "parameters": {"type": "object", "$schema": []}}},
    ],
)
def test_a_schema_that_is_none_is_named_before_any_work(schemas):
    tool = Typed()
    tool.schemas = schemas
    with pytest.raises(InvalidSchemaError):
        facts_of(tool)


def test_schemas_are_those_of_the_calls_of_a_tool_of_text():
    tool = Typed()
    tool.calls = {"act": True, "other": True}
    with pytest.raises(InvalidSchemaError, match="for the calls act, other"):
        facts_of(tool)
    tool.calls, tool.unit = {"act": True}, "cells"
    with pytest.raises(InvalidSchemaError, match="tools that read text"):
        facts_of(tool)


def test_two_tools_with_one_call_are_named():
    with pytest.raises(UnknownToolError, match="share a call, 'act'"):
        check_names([facts_of(Typed()), facts_of(WEATHER)])


def test_a_pattern_is_matched_within_its_time_or_the_model_is_told():
    code = facts_of(Typed({"code": {"type": "string", "pattern": "^[A-Z]{2}$"}}))
    assert argument_of(code, "act", '{"code": "AB"}') == {"code": "AB"}
    assert "does not match" in refused('{"code": "abc"}', code)
    slow = facts_of(Typed({"code": {"type": "string", "pattern": r"^(\w+\s?)*\($"}}))
    told = refused(json.dumps({"code": "word " * 40 + "!"}), slow)  # Python's own search would take centuries
    assert "takes too long" in told or "does not match" in told
