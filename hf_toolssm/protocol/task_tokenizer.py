"""A tokenizer of a few dozen tokens for models trained from scratch on one task."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_toolssm.errors import CellNotOneTokenError
from hf_toolssm.protocol.special_tokens import add_tool_tokens
from hf_toolssm.tools import Tool

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"


def build_task_tokenizer(cells: Sequence[str], tools: Sequence[Tool]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is the task's cells, the tools' tokens and pad, end and unknown.

    Every character of a text is one token; a character that is not a cell becomes the unknown token, which `generate`
    refuses by name. It pads on the left, as a recurrent state needs it.

    Args:
        cells: the task's cells, each one character.
        tools: the tools whose tokens are added.

    Raises:
        CellNotOneTokenError: a cell is not one character.
    """
    for cell in cells:
        if len(cell) != 1:
            raise CellNotOneTokenError(f"a cell of the task tokenizer is one character, and {cell!r} is not")
    vocabulary = {text: index for index, text in enumerate(dict.fromkeys([PAD, END, UNKNOWN, *cells]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    # Without a decoder the library joins tokens with spaces; fusing gives the text back as it was.
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    add_tool_tokens(tokenizer, tools)
    return tokenizer
