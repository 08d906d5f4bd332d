"""The pointer over a user's text: every line once, in order, as it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_toolssm.errors import UnknownCallError, UnknownToolError
from hf_toolssm.tools import facts_of, make_tool

TOOL = make_tool({"name": "lines"})


@given(st.text(), st.data())
def test_lines_are_read_or_skipped_in_their_order_by_any_copy(text, data):
    at_work, lines = TOOL.start(text), text.splitlines()
    for line in lines:
        skips = data.draw(st.booleans())
        at_work = data.draw(st.sampled_from([at_work, at_work.clone(), TOOL.restore(at_work.state())]))
        left = at_work.clone()
        assert at_work.call("skip_line" if skips else "next_line", "") == ("skipped" if skips else f"line: {line}")
        assert left.call("next_line", "") == f"line: {line}"  # a copy stands where it was
    assert [at_work.call(name, "") for name in ("next_line", "skip_line", "next_line")] == ["end"] * 3


def test_a_text_of_the_callers_own_takes_the_place_of_the_problem():
    at_work = make_tool({"name": "lines", "text": "a\nb"}).start("the problem")
    assert [at_work.call("next_line", "") for _ in range(3)] == ["line: a", "line: b", "end"]
    with pytest.raises(UnknownToolError, match="is a text"):
        make_tool({"name": "lines", "text": 3})


def test_it_is_a_tool_of_text_whose_calls_have_no_argument():
    facts = facts_of(TOOL)
    assert (facts.unit, facts.calls, facts.time_limit) == ("text", {"next_line": False, "skip_line": False}, None)
    with pytest.raises(UnknownCallError, match="no call"):
        TOOL.start("a").call("line", "")
