"""A Python function is a tool: what a model is told of it, what it gets, and what becomes of its result."""

import functools
import json
import math
from typing import Literal

import pytest

from hf_toolssm.errors import InvalidSchemaError, UndescribedToolError, UnknownToolError
from hf_toolssm.protocol.given_tools import describe, make_tools
from hf_toolssm.tools import facts_of
from hf_toolssm.tools.function import Function
from hf_toolssm.tools.tool import TIME_LIMIT, argument_of


def get_weather(city: str, days: int | None = None, unit: Literal["C", "F"] = "C") -> dict:
    """Looks up the weather.

    Args:
        city: The city's name.
        days: How many days ahead.
        unit: Of the temperature.
    """
    return {"city": city, "days": days, "unit": unit}


def gather(first: int, **others: str) -> str:
    """Gathers.

    Args:
        first: The first.
        others: All others.
    """
    return f"{first} {others}"


async def wait_for(city: str) -> str:
    """Waits.

    Args:
        city: Where.
    """
    return f"waited in {city}"


class Account:
    def __init__(self):
        self.total = 0

    def pay(self, amount: int) -> int:
        """Pays.

        Args:
            amount: In cents.
        """
        self.total += amount
        return self.total


def call(tool, text):
    """What the tool returns on what a model wrote."""
    (made,) = make_tools([tool])
    (name,) = facts_of(made).calls
    return made.call(name, argument_of(facts_of(made), name, text))


def test_a_function_says_what_its_hints_and_its_docstring_say():
    facts = facts_of(make_tools([get_weather])[0])
    assert facts.calls == {"get_weather": True}
    assert facts.schemas["get_weather"] == {
        "name": "get_weather",
        "description": "Looks up the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city's name."},
                "days": {"type": "integer", "nullable": True, "description": "How many days ahead."},
                "unit": {"type": "string", "enum": ["C", "F"], "description": "Of the temperature."},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    assert (facts.has_side_effects, facts.time_limit, facts.fork, facts.owner(None)) == (
        True,
        TIME_LIMIT,
        "copy",
        None,
    )


def test_it_is_called_with_what_the_model_wrote():
    assert call(get_weather, '{"city": "Zürich", "days": null}') == '{"city": "Zürich", "days": null, "unit": "C"}'
    assert call(gather, '{"first": 1, "a": "x", "b": "y"}') == "1 {'a': 'x', 'b': 'y'}"
    assert call(wait_for, '{"city": "Rome"}') == "waited in Rome"


@pytest.mark.parametrize(
    ("result", "observation"),
    [
        ("text", "text"),
        (b"\xff", b"\xff"),
        (None, ""),
        (0, "0"),
        (["ü", 1.5, None], '["ü", 1.5, null]'),
        ({"at": math}, json.dumps({"at": str(math)})),
    ],
)
def test_a_result_is_text_or_is_written_as_json(result, observation):
    def now():
        """Now."""
        return result

    assert call(now, "") == observation
    assert facts_of(make_tools([now])[0]).calls == {"now": False}


def test_a_method_remembers_in_its_object_so_it_is_not_copied_unless_the_caller_says_so():
    account = Account()
    (tool,) = make_tools([account.pay])
    facts = facts_of(tool)
    assert facts.owner(None) is account
    assert facts.fork == "never"
    assert tool.call("pay", {"amount": 3}) == "3"
    assert tool.call("pay", {"amount": 4}) == "7"
    (shared,) = make_tools([Function(account.pay, fork="shared", time_limit=None, has_side_effects=False)])
    facts = facts_of(shared)
    assert (facts.fork, facts.time_limit, facts.has_side_effects) == ("shared", None, False)
    assert facts.schemas["pay"]["parameters"]["required"] == ["amount"]


def test_a_partial_takes_what_is_left_and_may_have_a_name_of_its_own():
    in_rome = functools.partial(get_weather, "Rome", unit="F")
    assert describe(in_rome)["name"] == "get_weather"
    assert [*describe(in_rome)["parameters"]["properties"]] == ["days"]
    in_rome.__name__ = "weather_in_rome"
    assert facts_of(make_tools([in_rome])[0]).calls == {"weather_in_rome": True}
    assert call(in_rome, '{"days": 2}') == '{"city": "Rome", "days": 2, "unit": "F"}'
    account = Account()
    pay = functools.partial(account.pay)
    assert make_tools([pay])[0].owner is account
    assert call(functools.partial(Account.pay, account), '{"amount": 3}') == "3"


def test_a_schema_of_the_caller_is_used_as_it_is():
    schema = {"name": "power", "description": "Power.", "parameters": {"type": "object", "required": ["x"]}}
    for given in (schema, {"type": "function", "function": {**schema, "strict": True}}):
        (tool,) = make_tools([Function(lambda x: x**2, given)])
        assert facts_of(tool).schemas["power"] == schema
        assert tool.call("power", {"x": 7}) == "49"


def no_hint(city):
    """Looks up.

    Args:
        city: Where.
    """


def no_docstring(city: str):
    return city


def not_described(city: str, days: int):
    """Looks up.

    Args:
        city: Where.
    """


def unknown_hint(city: Account):
    """Looks up.

    Args:
        city: Where.
    """


def no_name(*cities: str):
    """Looks up.

    Args:
        cities: Where.
    """


def by_place(city: str, /):
    """Looks up.

    Args:
        city: Where.
    """


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_hint, r"no_hint cannot be a tool: Argument city is missing a type hint(?s:.*)def no_hint\(city: str\)"),
        (no_docstring, r'no docstring(?s:.*)"""What it does.\n\n    Args:\n        city: What it is.\n    """'),
        (not_described, "no description for the argument 'days'(?s:.*)days: What it is."),
        (unknown_hint, "Couldn't convert the type hint"),
        (no_name, "'cities' takes none"),
        (by_place, "'city' takes none"),
        (lambda city: city, r"a lambda has no name(?s:.*)def name\(city: str\)"),
        (math.sqrt, "sqrt cannot be a tool"),
        (iter, "iter cannot be a tool"),
        (Account.pay, "needs 'self'; pass the method of an object"),
        (Function(no_docstring), "no docstring"),
        (functools.partial(no_docstring, "Rome"), "no docstring"),
        (functools.partial(gather, a="x"), r"by its \*\*others a call could give 'a' anew"),
    ],
)
def test_a_function_that_says_too_little_is_refused_with_the_form_that_it_needs(function, message):
    with pytest.raises(UndescribedToolError, match=message):
        make_tools([function])


def test_what_is_no_tool_is_named_before_any_work():
    with pytest.raises(UnknownToolError, match="share a call, 'get_weather'"):
        make_tools([get_weather, get_weather])
    with pytest.raises(UnknownToolError, match="is no tool"):
        make_tools([Account])
    with pytest.raises(UnknownToolError, match="tools is a list"):
        make_tools(get_weather)
    with pytest.raises(InvalidSchemaError, match="needs a schema"):
        facts_of(Function(get_weather))
    for wrong in (3, {}, {"name": ["f"]}, {"name": "f"}, {"name": "f", "description": "", "parameters": {}}):
        with pytest.raises(InvalidSchemaError):
            Function(get_weather, wrong)


@pytest.mark.parametrize("name", ["function", "mcp", "schemas", "tool"])
def test_no_config_names_what_runs_code(name):
    with pytest.raises(UnknownToolError, match="no tool is named"):
        make_tools([{"name": name}])
