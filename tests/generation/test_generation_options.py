"""Every option of transformers' `generate` is obeyed as transformers obeys it, or refused by name: none is ignored."""

import inspect

import pytest
import torch
from conftest import random_model
from transformers import (
    CompileConfig,
    EosTokenCriteria,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)

from hf_toolssm.errors import PaddingError, UnsupportedGenerationError
from hf_toolssm.generation.options import ARGUMENTS, OBEYED
from hf_toolssm.models.plain_tool_mamba import PlainToolMambaForCausalLM
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.tools.pointer_memory import PointerMemory, right

PROBLEMS = ["12+34=", "9+1=", "555+5="]
LONG, ENDLESS, SAMPLED = {"max_new_tokens": 30}, {"max_new_tokens": 12, "eos_token_id": None}, {"do_sample": True}
ENDING = {"max_new_tokens": 30, "eos_token_id": [8, 12]}

# What lets an option act on these rows.
ACTS = {
    "max_length": {"max_length": 12, "eos_token_id": None},
    "max_new_tokens": {"max_new_tokens": 3, "eos_token_id": None},
    "min_length": {"min_length": 25, **ENDING},
    "min_new_tokens": {"min_new_tokens": 20, **ENDING},
    "max_time": {"max_time": 0.0, **ENDLESS},
    "do_sample": {"do_sample": True, **LONG},
    "temperature": {"temperature": 4.0, **SAMPLED, **LONG},
    "top_k": {"top_k": 2, "temperature": 4.0, **SAMPLED, **LONG},
    "top_p": {"top_p": 0.3, "temperature": 4.0, **SAMPLED, **LONG},
    "min_p": {"min_p": 0.5, "temperature": 4.0, **SAMPLED, **LONG},
    "top_h": {"top_h": 0.1, "temperature": 4.0, **SAMPLED, **LONG},
    "typical_p": {"typical_p": 0.1, "temperature": 4.0, **SAMPLED, **LONG},
    "epsilon_cutoff": {"epsilon_cutoff": 0.06, "temperature": 4.0, **SAMPLED, **LONG},
    "eta_cutoff": {"eta_cutoff": 0.9, "temperature": 4.0, **SAMPLED, **LONG},
    "repetition_penalty": {"repetition_penalty": 5.0, **ENDLESS},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 5.0, **ENDLESS},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1, **ENDLESS},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1, **ENDLESS},
    "bad_words_ids": {"bad_words_ids": [[3], [12, 12]], **ENDLESS},
    "sequence_bias": {"sequence_bias": [[[7], 30.0]], **ENDLESS},
    "suppress_tokens": {"suppress_tokens": [3, 8, 12, 20], **ENDLESS},
    "begin_suppress_tokens": {"begin_suppress_tokens": [0, 2, 5], **ENDLESS},
    "forced_eos_token_id": {"forced_eos_token_id": 9, **ENDLESS},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 3.0), **LONG},
    "renormalize_logits": {"renormalize_logits": True, **LONG},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=20.0), **ENDLESS},
    "num_return_sequences": {"num_return_sequences": 2, **SAMPLED, **LONG},
    "pad_token_id": {"pad_token_id": 11, **ENDING},
    "eos_token_id": {"eos_token_id": [5, 8, 12], **LONG},
}
ACTS_NOT_HERE = {
    "forced_bos_token_id": {"forced_bos_token_id": 9, **LONG},  # behind a first token only
    "remove_invalid_values": {"remove_invalid_values": True, **LONG},  # there are none
    "bos_token_id": {"bos_token_id": 9, **LONG},  # where there is no prompt
    "disable_compile": {"disable_compile": True, **LONG},
    "return_dict_in_generate": {"return_dict_in_generate": True, **LONG},
}
ASKED = {
    "early_stopping": True,
    "use_cache": False,
    "cache_implementation": "static",
    "compile_config": CompileConfig(),
    "assistant_ensemble_weight": 0.5,
    "dola_layers": "high",
    "stop_strings": ["7"],
    "num_assistant_tokens_schedule": "heuristic",
}
ATTRIBUTES = {name for name in vars(GenerationConfig()) if name[0] != "_"} - {"transformers_version"}


@pytest.fixture(scope="module")
def models(tokenizer, specs, tmp_path_factory):
    """The package's model and the published code's, with the same weights."""
    folder = tmp_path_factory.mktemp("model")
    random_model(tokenizer, specs).save_pretrained(folder)
    model = random_model(tokenizer, specs)
    return model, PlainToolMambaForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def inputs(tokenizer):
    return tokenizer(PROBLEMS, padding=True, return_tensors="pt")


def sequences(result):
    return result if torch.is_tensor(result) else result.sequences


def by_transformers(model, inputs, **options):
    torch.manual_seed(0)
    return sequences(GenerationMixin.generate(model, **inputs, **options))


def in_the_loop(model, inputs, way, **options):
    """With no tool that could be called, and the options set in one of the three ways."""
    torch.manual_seed(0)
    if way == "by keyword":
        return sequences(model.generate(**inputs, tools=[], **options))
    if way == "in generation_config":
        # "No end" is said by a keyword: what this configuration leaves out is taken from the model's own.
        unsaid = {name: value for name, value in options.items() if value is None}
        given = GenerationConfig(**options)
        return sequences(model.generate(**inputs, tools=[], generation_config=given, **unsaid))
    before = model.generation_config
    try:
        model.generation_config = GenerationConfig(**{**before.to_diff_dict(), **options})
        return sequences(model.generate(**inputs, tools=[]))
    finally:
        model.generation_config = before


WAYS = ["by keyword", "in generation_config", "on model.generation_config"]


def test_every_option_that_is_obeyed_has_an_example():
    assert set(ACTS) | set(ACTS_NOT_HERE) == OBEYED
    assert OBEYED <= ATTRIBUTES


@pytest.mark.parametrize("name", [*ACTS, *ACTS_NOT_HERE])
def test_an_option_that_is_obeyed_gives_the_tokens_of_transformers(models, inputs, name):
    model, plain = models
    options = {**ACTS, **ACTS_NOT_HERE}[name]
    expected = by_transformers(model, inputs, **options)
    for way in WAYS:
        assert torch.equal(in_the_loop(model, inputs, way, **options), expected), way
    assert torch.equal(in_the_loop(plain, inputs, "by keyword", **options), expected)


@pytest.mark.parametrize("name", sorted(set(ACTS) - {"max_new_tokens", "max_length", "renormalize_logits"}))
def test_the_examples_act(models, inputs, name):
    without = {key: value for key, value in ACTS[name].items() if key != name}
    assert (
        by_transformers(models[0], inputs, **ACTS[name]).tolist()
        != by_transformers(models[0], inputs, **without).tolist()
    )


@pytest.mark.parametrize("name", sorted(ATTRIBUTES - OBEYED))
def test_any_other_option_is_refused_wherever_it_is_set(models, inputs, name):
    value = ASKED.get(name, 3)
    for model in models:
        for way in WAYS:
            with pytest.raises(UnsupportedGenerationError, match=f"{name} is not supported while tools run: "):
                in_the_loop(model, inputs, way, **{name: value})
    # A call says that it does not want what the model's own configuration asks for.
    model.generation_config, before = GenerationConfig(**{name: value}), model.generation_config
    neutral = {**GenerationConfig._get_default_generation_params(), "use_cache": True}.get(name)
    model.generate(**inputs, **{name: neutral}, max_new_tokens=2)
    model.generation_config = before


def test_an_option_that_no_version_knows_yet_is_refused(models, inputs):
    model, _ = models
    with pytest.raises(UnsupportedGenerationError, match="sample_backwards"):
        model.generate(**inputs, sample_backwards=True)
    later = GenerationConfig()
    later.sample_backwards = True
    with pytest.raises(UnsupportedGenerationError, match="sample_backwards"):
        model.generate(**inputs, generation_config=later)
    model.generation_config.sample_backwards = True
    with pytest.raises(UnsupportedGenerationError, match="sample_backwards"):
        model.generate(**inputs)
    del model.generation_config.sample_backwards


def test_options_that_ask_for_nothing_are_taken(models, inputs):
    neutral = {"num_beams": 1, "use_cache": True, "output_scores": False, "guidance_scale": 1.0, "use_mtp": False}
    neutral |= {"penalty_alpha": 0.0, "dola_layers": None, "synced_gpus": False, "assistant_model": None}
    for model in models:
        result = model.generate(**inputs, **neutral, **LONG)
        assert torch.equal(result, model.generate(**inputs, **LONG))


PARAMETERS = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "inputs", "kwargs"}
OF_GENERATE = [*PARAMETERS - ARGUMENTS, "assistant_tokenizer", "trust_remote_code", "use_model_defaults"]
OF_FORWARD = ["past_key_values", "inputs_embeds", "position_ids", "logits_to_keep", "labels", "output_attentions"]


@pytest.mark.parametrize("name", sorted([*OF_GENERATE, *OF_FORWARD]))
def test_other_arguments_are_refused_whatever_takes_them(models, inputs, name):
    value = torch.ones(3, 1) if name.startswith("negative") else object() if name != "custom_generate" else print
    for model in models:
        with pytest.raises(UnsupportedGenerationError, match=f"{name} is not supported while tools run: "):
            model.generate(**inputs, **{name: value})


def test_arguments_may_come_by_position(models, inputs):
    model, _ = models
    processors = LogitsProcessorList([Wants([(row, 7, 1_000) for row in range(3)])])
    named = model.generate(**inputs, generation_config=GenerationConfig(**LONG), logits_processor=processors)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert torch.equal(model.generate(ids, GenerationConfig(**LONG), processors, attention_mask=mask), named)
    with pytest.raises(UnsupportedGenerationError, match="num_beams"):
        model.generate(ids, GenerationConfig(num_beams=2), attention_mask=mask)
    with pytest.raises(TypeError, match="multiple values"):
        model.generate(ids, GenerationConfig(), attention_mask=mask, generation_config=GenerationConfig())


def test_prompts_given_twice_are_refused(models, inputs):
    for model in models:
        with pytest.raises(UnsupportedGenerationError, match="pass one of them"):
            model.generate(inputs["input_ids"], **inputs)


def test_a_watermark_that_counts_by_itself_is_refused(models, inputs):
    counting = SynthIDTextWatermarkingConfig(ngram_len=5, keys=[1, 2, 3])
    with pytest.raises(UnsupportedGenerationError, match="pass a WatermarkingConfig"):
        models[0].generate(**inputs, watermarking_config=counting)


@pytest.mark.parametrize("end", [5, [5, 8], (5, 8), torch.tensor([5, 8]), torch.tensor(5)])
def test_the_end_token_may_be_given_as_transformers_takes_it(models, inputs, end):
    for model in models:
        expected = by_transformers(model, inputs, eos_token_id=end, **LONG)
        assert torch.equal(in_the_loop(model, inputs, "by keyword", eos_token_id=end, **LONG), expected)


@pytest.mark.parametrize(
    "criteria",
    [
        [MaxLengthCriteria(9)],
        [MaxLengthCriteria(15), MaxLengthCriteria(11)],
        [EosTokenCriteria(8)],
        [MaxLengthCriteria(40)],
    ],
)
def test_a_callers_own_length_and_end_take_the_place_of_the_options(models, inputs, criteria):
    options = {"stopping_criteria": StoppingCriteriaList(criteria), "max_new_tokens": 20}
    expected = by_transformers(models[0], inputs, **options)
    for model in models:
        assert torch.equal(in_the_loop(model, inputs, "by keyword", **options), expected)


class SeesNoScores(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        assert scores is None  # as transformers without output_scores
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_a_criterion_is_asked_as_transformers_asks_it(models, inputs):
    for model in models:
        model.generate(**inputs, stopping_criteria=StoppingCriteriaList([SeesNoScores()]), max_new_tokens=3)


def test_padding_inside_a_prompt_is_refused_where_transformers_would_guess_it(models, inputs, tokenizer):
    ids = inputs["input_ids"][:1].clone()
    ids[0, 3] = tokenizer.pad_token_id
    for model in models:
        with pytest.raises(PaddingError, match="between its tokens"):
            model.generate(ids)


class Wants(LogitsProcessor):
    """Makes every row want certain tokens more than any other, the first time only if so said."""

    def __init__(self, wishes, once=()):
        self.wishes, self.once = wishes, once

    def __call__(self, input_ids, scores):
        for row, token, strength in self.wishes:
            if token not in self.once or token not in input_ids[row]:
                scores[row, token] += strength
        return scores


class Wordy(PointerMemory):
    """Answers one command with so much that the row reads it apart from the others."""

    def start(self, problem, marker):
        return WordySession(super().start(problem, marker))


class WordySession:
    def __init__(self, session):
        self.write, self.session = session.write, session

    def call(self, name, argument):
        return [3] * 100 if name == right(1) else self.session.call(name, argument)

    def clone(self):
        return WordySession(self.session.clone())


def test_an_option_that_counts_counts_the_tokens_of_each_row(models, tokenizer):
    """While one row is a hundred tokens ahead, the other must still write its own fifty before it may end."""
    inputs = tokenizer(["12+3=", "1+5="], padding=True, return_tensors="pt")
    call, end, seven = tokenizer.convert_tokens_to_ids([begin_token(right(1)), "<|end|>", "7"])
    wishes = [(0, call, 3_000), *((row, end, 2_000) for row in (0, 1)), *((row, seven, 1_000) for row in (0, 1))]
    for model in models:
        result = model.generate(
            **inputs,
            tools=[Wordy(max_pointers=3)],
            logits_processor=LogitsProcessorList([Wants(wishes, once=[call])]),
            min_new_tokens=50,
            max_new_tokens=250,
            return_dict_in_generate=True,
        )
        assert result.tool_calls == [1, 0]
        assert result.lengths == [5 + 102, 5 + 51]
