"""Every context that a session with a store may come into, whatever is said in the task's form: its rule, for proofs.

A turn is any printable text that ends with a quote and a full stop or a question mark. What the pointer shows is any
of its characters, but where the form decides: before a quoted text stands another character, between quotes a text of
at least one, of which JSON escapes quotes and backslashes, and behind a key's last quote a space, a full stop or a
question mark. So the pointer never comes to the end of what was said, and no value is empty. Behind the end of a turn
another one may begin.
"""

from collections.abc import Hashable

from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.rule import END, KEPT_OF_PROMPTS, Place, Rule, States, calls, say
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools.pointer_store import (
    ABSENT,
    CLOSE_KEY,
    DELETE,
    DONE,
    GET,
    PUT,
    SHOW,
    VALUE_END,
    enter,
    escape,
    seek,
    take,
)

PRINTABLE = tuple(map(chr, range(32, 127)))
QUOTE, ESCAPE = '"', "\\"
QUERY_ENDS, DELETE_ENDS, GOES_ON = "?", ".", " "
"""Behind a key: it is asked for, it is to be forgotten, or its value comes."""

NONE = "none"
"""The answer where a key has no value."""

_ANY, _QUOTED, _ENDED = "any", "quoted", "ended"
"""What was said last: any character, a quote, or one behind which a turn may end."""

_NEXT: States = (("said", _ANY),)


class MemoryContexts(Rule):
    """The rule of the variant `store`."""

    start: Hashable = _NEXT[0]
    alike = dict.fromkeys(PRINTABLE, "a")
    context = 8

    def _said(self, last: str) -> Place:
        """In what the user says."""
        follows: dict[str, States] = dict.fromkeys(PRINTABLE, _NEXT) | {QUOTE: (("said", _QUOTED),)}
        if last == _QUOTED:
            follows |= dict.fromkeys((QUERY_ENDS, DELETE_ENDS), (("said", _ENDED),))
        if last != _ENDED:
            return Place(None, follows, keeps=KEPT_OF_PROMPTS)
        first = begin_token(seek("key"))
        return Place(first, follows | {first: (("seeking", "key", True),)}, keeps=KEPT_OF_PROMPTS)

    def _seeking(self, part: str, is_first: bool) -> Place:
        """Before the quote that begins a key or a value, or at it."""
        follows = dict.fromkeys(PRINTABLE, say(calls(seek(part)), (("seeking", part, False),)))
        follows[QUOTE] = say(calls(enter(part)), (("taking", part, True),))
        if is_first:
            del follows[QUOTE]
        return Place(None, follows)

    def _taking(self, part: str, is_first: bool) -> Place:
        """At a character of a key or a value, or behind its last one."""
        follows = dict.fromkeys(PRINTABLE, say(calls(take(part)), (("taking", part, False),)))
        follows[ESCAPE] = say(calls(escape(part)), (("escaped", part),))
        if is_first:
            del follows[QUOTE]
        elif part == "key":
            follows[QUOTE] = say(calls(CLOSE_KEY), (("closed",),))
        else:
            follows[QUOTE] = self._end(PUT)
        return Place(None, follows)

    def _escaped(self, part: str) -> Place:
        """At a character that stands for itself."""
        return Place(None, dict.fromkeys((QUOTE, ESCAPE), say(calls(take(part)), (("taking", part, False),))))

    def _closed(self) -> Place:
        """Behind a key."""
        follows = {
            GOES_ON: say(calls(seek("value")), (("seeking", "value", True),)),
            DELETE_ENDS: self._end(DELETE),
            QUERY_ENDS: say((ANSWER, *calls(GET)), (("shown", True),)),
        }
        return Place(None, follows)

    def _shown(self, is_first: bool) -> Place:
        """At a character of a value that was asked for, or where there is none or no more."""
        follows = {cell: say((cell, *calls(SHOW)), (("shown", False),)) for cell in PRINTABLE}
        if is_first:
            follows[ABSENT] = say((*NONE, *calls(DONE), END), _NEXT)
        else:
            follows[VALUE_END] = self._end()
        return Place(None, follows)

    def _end(self, *names: str) -> States:
        """The last calls of a turn, behind which another one may begin."""
        return say((*calls(*names, DONE), END), _NEXT)
