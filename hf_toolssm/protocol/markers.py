"""A tokenizer's added tokens in text in which whatever somebody said is shadows; see `protocol.shadow_text`."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from hf_toolssm.protocol.plain_text import encode_plain, pattern_of
from hf_toolssm.protocol.shadow_text import FIRST_SHADOW, LAST_SHADOW, shadow, unshadow_repr


class Markers:
    """Those of a tokenizer's added tokens that mean something: all but blanks.

    Args:
        tokenizer: of the text.

    Attributes:
        names: by token, its text.

    Raises:
        UnspellableTextError: the tokenizer does not write letters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self.names = {token: found.content for token, found in added if shadow(found.content) != found.content}
        self._ids = {content.strip(): token for token, content in self.names.items()}
        self._live = pattern_of([found for token, found in added if token in self.names])
        self._mistakable = re.compile(f"{self._live.pattern}|[{FIRST_SHADOW}-{LAST_SHADOW}]")
        self._before = list(self.names)[:1]  # a decoder may leave out a space at the very beginning
        self._lead = len(tokenizer.decode(self._before)) if self._before else 0
        self._space = self._decoded(encode_plain(tokenizer, "a", goes_on=True))[:-1]  # some begin every text by one

    def find(self, text: str) -> list[tuple[int, int, int]]:
        """Every marker in a text: its token, where it begins, and where it ends."""
        return [(self._ids[found[0].strip()], *found.span()) for found in self._live.finditer(text)]

    def last(self, text: str) -> int:
        """Where the last marker of a text ends; 0 if there is none."""
        return max((end for *_, end in self.find(text)), default=0)

    def encode(self, text: str, is_first: bool = False) -> list[int]:
        """The tokens of what a template wrote; a text that is not the first stands behind a marker, or other text."""
        ids: list[int] = []
        at = 0
        for token, start, end in [*self.find(text), (None, len(text), len(text))]:
            plain = unshadow_repr(text[at:start])
            if plain:
                ids += encode_plain(self._tokenizer, plain, goes_on=not is_first or at > 0)
            if token is not None:
                ids.append(token)
            at = end
        return ids

    def spell(self, ids: Sequence[int]) -> str:
        """The text of tokens; what is spelled like a marker and is none is a shadow."""
        text, run = "", list[int]()

        def end_run() -> str:
            plain = self._decoded(run).removeprefix(self._space) if run else ""
            run.clear()
            return self.unmistakable(plain)

        for token in ids:
            name = self.names.get(token)
            if name is None:
                run.append(token)
            else:
                text += end_run() + name
        return text + end_run()

    def unmistakable(self, text: str) -> str:
        """A text that somebody wrote, in which what could be taken for a marker, or for a shadow, is one."""
        return self._mistakable.sub(lambda found: shadow(found[0]), text)

    def _decoded(self, plain: Sequence[int]) -> str:
        return self._tokenizer.decode([*self._before, *plain], clean_up_tokenization_spaces=False)[self._lead :]
