"""Which options of transformers' `generate` hold while tools run.

Only those that are listed here do. Any other is refused where it would change something, so that none is accepted and
ignored, also none that a later transformers brings.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import GenerationConfig, GenerationMixin, WatermarkingConfig

from hf_toolssm.errors import UnsupportedGenerationError

OBEYED = frozenset(
    {
        *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time"),
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
        *("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens"),
        *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"),
        *("renormalize_logits", "remove_invalid_values", "watermarking_config"),
        *("num_return_sequences", "return_dict_in_generate", "pad_token_id", "bos_token_id", "eos_token_id"),
        "disable_compile",  # nothing is compiled that it could switch off
    }
)
"""The attributes of a `GenerationConfig` that act as they do in transformers."""

ARGUMENTS = frozenset(
    {"generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"}
)
"""The arguments of `generate` itself that do."""

_NEUTRAL = {**GenerationConfig._get_default_generation_params(), "guidance_scale": 1}
"""The values of other options that ask for nothing, as None and, where nothing stands here, False do."""

_INSTEAD = {
    "stop_strings": "pass a StoppingCriteria, which sees tokens whatever their texts are",
    "output_scores": "pass a LogitsProcessor, which sees the scores of every token",
    "output_logits": "pass a LogitsProcessor, which sees the logits of every token",
    "inputs_embeds": "pass input_ids, which the tools work on",
    "past_key_values": "pass the whole prompt as input_ids",
    "custom_generate": "leave it out, because it would replace the loop that runs them",
}


def named_options(model: Any, inputs: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `generate` by their names, without the inputs.

    Args:
        model, inputs: of the call.
        args: what follows them by position.
        kwargs: by name.
    """
    bound = inspect.signature(GenerationMixin.generate).bind(model, inputs, *args, **kwargs).arguments
    named = bound.pop("kwargs", {}) | bound
    return {name: value for name, value in named.items() if name not in ("self", "inputs")}


def check_options(model: Any, options: Mapping[str, Any]) -> GenerationConfig:
    """What the call, its `generation_config` and the model's own come to.

    Args:
        model: of the call.
        options: from `named_options`.

    Raises:
        UnsupportedGenerationError: one of them asks for something that does not hold while tools run.
    """
    arguments = set(inspect.signature(GenerationMixin.generate).parameters)
    by_name = {name: value for name, value in options.items() if name not in arguments}
    config, unknown = model._prepare_generation_config(options.get("generation_config"), **by_name)
    asked = {name: value for name, value in options.items() if name in arguments - ARGUMENTS} | unknown
    others = vars(config).keys() - OBEYED - {"transformers_version"}
    asked |= {name: getattr(config, name) for name in sorted(others) if not name.startswith("_")}
    for name, value in asked.items():
        neutral = _NEUTRAL.get(name, False)
        if value is not None and not (isinstance(value, bool | int | float | str) and value == neutral):
            otherwise = f"leave it out, or pass {name}={neutral or None} where model.generation_config sets it"
            raise UnsupportedGenerationError(
                f"{name} is not supported while tools run: {_INSTEAD.get(name, otherwise)}"
            )
    if type(config.watermarking_config) not in (type(None), WatermarkingConfig):
        raise UnsupportedGenerationError(
            f"watermarking_config is a {type(config.watermarking_config).__name__}, which counts tokens by itself and "
            "would miss those that tools write: pass a WatermarkingConfig"
        )
    return config
