"""A tokenizer for models trained from scratch on texts: byte pairs, learned from the texts themselves."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_toolssm.protocol.task_tokenizer import PAD

_PARTS = Regex(r"\p{L}+|\p{N}|[^\p{L}\p{N}]+")
"""Words, digits, and what stands between them. So a word is the same tokens behind a space, a quote or nothing:
what is copied from a user's text into an argument stays the same tokens. A number is its digits."""


def build_text_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, which writes any text. It pads on the left, as a recurrent state needs it;
    what ends a turn is a chat's (see `add_chat_tokens`).

    Args:
        texts: to learn the pairs from.
        vocabulary_size: tokens, the 256 bytes included; fewer where the texts have no more pairs.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PARTS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
