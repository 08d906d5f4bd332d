"""Calls written as Python is are read exactly, in every spelling that a template or a model may choose."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_toolssm.errors import MalformedCallError
from hf_toolssm.protocol.python_calls import read_python_calls

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAME = st.text("abc_$-.\u00e9\U0001f642", min_size=1, max_size=4)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


def as_json(value):
    return json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("write", [repr, json.dumps, as_json])
@given(calls=st.lists(st.tuples(NAME, st.dictionaries(NAME, VALUE, max_size=3)), max_size=3))
def test_what_python_or_json_writes_is_read_back(write, calls):
    written = ", ".join(
        f"{name}({', '.join(f'{key}={write(value)}' for key, value in arguments.items())})"
        for name, arguments in calls
    )
    read = [(call["function"]["name"], call["function"]["arguments"]) for call in read_python_calls(f"[{written}]")]
    assert read == calls
    assert repr(read) == repr(calls)  # `True` is no 1 and 1.0 no 1


def test_a_string_may_hold_the_signs_of_the_syntax_and_line_ends():
    (call,) = read_python_calls("[f(a='), g(b=1)]', b='it\\'s', c=\"x\ny\", d='\\d')]")
    assert call == {
        "type": "function",
        "function": {"name": "f", "arguments": {"a": "), g(b=1)]", "b": "it's", "c": "x\ny", "d": "\\d"}},
    }


@pytest.mark.parametrize(
    ("text", "at"),
    [
        *(("", 0), ("f()", 0), ("[", 1), ("[f", 2), ("[f(", 3), ("[f(1)]", 4), ("[f(a=1)", 7), ("[f(a=1 b=2)]", 7)),
        *(("[f(a='x)]", 5), ("[f(a=nan)]", 5), ("[f(a=g())]", 5), ("[f()] more", 6), ("[f(a={1: 2})]", 6)),
        *((r"[f(a='\ud800')]", 5), (r"[f(a='\UFFFFFFFF')]", 5), ("[f(a=[1, 2)]", 10), ("[f(a=1e999)]", 5)),
        *((f"[f(a={'9' * 5000})]", 5), (f"[f(a={'[' * 10**5}", r"\d+")),
    ],
)
def test_anything_else_is_an_error_that_says_where(text, at):
    with pytest.raises(MalformedCallError, match=rf"character {at} "):
        read_python_calls(text)
