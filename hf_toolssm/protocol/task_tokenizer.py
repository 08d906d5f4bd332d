"""A tokenizer of a few dozen tokens for models trained from scratch on one task."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_toolssm.errors import CellNotOneTokenError
from hf_toolssm.protocol.special_tokens import add_tool_tokens
from hf_toolssm.tools import Tool, facts_of

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"


def build_task_tokenizer(cells: Sequence[str], tools: Sequence[Tool]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is the task's cells, the tools' tokens and pad, end and unknown.

    Every character of a text is one token; a character that is not a cell becomes the unknown token, which `generate`
    refuses by name. Where a tool reads text there are the 256 bytes too, so that any text can be written. It pads on
    the left, as a recurrent state needs it.

    Args:
        cells: the task's cells, each one character.
        tools: the tools whose tokens are added.

    Raises:
        CellNotOneTokenError: a cell is not one character.
    """
    for cell in cells:
        if len(cell) != 1:
            raise CellNotOneTokenError(f"a cell of the task tokenizer is one character, and {cell!r} is not")
    reads_text = any(facts_of(tool).unit == "text" for tool in tools)
    texts = [PAD, END, UNKNOWN, *cells, *(f"<0x{byte:02X}>" for byte in range(256 * reads_text))]
    vocabulary = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    # Without a decoder the library joins tokens with spaces; fusing gives the text back as it was.
    if reads_text:
        backend = Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN, byte_fallback=True))
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        backend.decoder = decoders.Fuse()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
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
