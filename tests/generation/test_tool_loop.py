"""`generate` runs the tools, row by row, and never lets an observation act."""

import pytest
import torch
from conftest import written
from small_models import Script
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

from hf_toolssm import ToolMambaForCausalLM
from hf_toolssm.errors import (
    EmptyProblemError,
    InvalidProblemError,
    MissingToolTokensError,
    PaddingError,
    StateMismatchError,
    TokenizerNeededError,
    UnknownToolError,
    UnsupportedGenerationError,
)
from hf_toolssm.generation.decoder import ModelDecoder
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.trajectory import ANSWER, StepKind
from hf_toolssm.tools import pointer_memory
from hf_toolssm.tools.pointer_memory import PointerSession

NEW_POINTER = begin_token(pointer_memory.NEW_POINTER)
PROBLEMS = ["7+5=", "98765+4321=", "1+1=", "500+500="]


def read(pointer):
    return begin_token(pointer_memory.read(pointer))


def left(pointer):
    return begin_token(pointer_memory.left(pointer))


def right(pointer):
    return begin_token(pointer_memory.right(pointer))


def scripted(tokenizer, addition, problems):
    """Prompts, references and the processor that makes a model follow them."""
    renderer = Renderer(tokenizer)
    trajectories = [addition.solve(problem, "local") for problem in problems]
    references = [renderer.render(t)["input_ids"] for t in trajectories]
    wrong = renderer.token("0")
    scripts = []
    for trajectory, ids in zip(trajectories, references):
        silent = [kind is StepKind.OBSERVATION for kind, _ in written(trajectory)] + [False]
        behind = ids[len(trajectory.problem) :]
        scripts.append([wrong if hidden else token for token, hidden in zip(behind, silent, strict=True)])
    script = Script([renderer.problem(p) for p in problems], scripts)
    return trajectories, references, LogitsProcessorList([script])


def script_of(tokenizer, problem, *texts):
    """A processor that makes the model write exactly these tokens after one problem."""
    renderer = Renderer(tokenizer)
    prompt = [renderer.token(cell) for cell in problem]
    return LogitsProcessorList([Script([prompt], [[renderer.token(text) for text in texts]])])


def run(model, tokenizer, problems, **options):
    inputs = tokenizer(problems, padding=True, return_tensors="pt")
    return model.generate(**inputs, **{"tokenizer": tokenizer, "return_dict_in_generate": True} | options)


def unpadded(ids, tokenizer):
    return [token for token in ids.tolist() if token != tokenizer.pad_token_id]


def test_tools_answer_and_the_trajectory_is_the_datasets(model, tokenizer, addition):
    trajectories, references, script = scripted(tokenizer, addition, PROBLEMS)
    result = run(model, tokenizer, PROBLEMS, logits_processor=script, max_new_tokens=1_000)
    assert result.answers == ["12", "103086", "2", "1000"]
    assert result.complete == [True] * 4
    assert result.errors == [None] * 4
    width = max(map(len, PROBLEMS))
    for row, (trajectory, reference) in enumerate(zip(trajectories, references)):
        assert unpadded(result.sequences[row], tokenizer) == reference
        calls = [s for s in trajectory.steps if s.kind is StepKind.CALL]
        assert result.tool_calls[row] == len(calls)
        silent = [kind is StepKind.OBSERVATION for kind, _ in written(trajectory)]
        assert result.observation_mask[row, width : width + len(silent)].tolist() == silent
        assert not result.observation_mask[row, :width].any()


@pytest.mark.parametrize("decoder", ["fused", "streamed", "model"])
def test_a_batch_equals_its_rows_alone_token_for_token(model, tokenizer, addition, decoder, monkeypatch):
    """Unscripted: random weights wander through commands, thoughts and errors; each row as it would alone."""
    if decoder == "streamed":
        monkeypatch.setattr("hf_toolssm.ops.compiled_step.FUSED_PARAMETERS", 0)
    elif decoder == "model":
        monkeypatch.setattr("hf_toolssm.generation.session.make_decoder", lambda runner, _: ModelDecoder(runner))
    problems = [*PROBLEMS, "31+4=", "2+99999="]
    together = run(model, tokenizer, problems, max_new_tokens=80)
    assert len({len(unpadded(row, tokenizer)) for row in together.sequences}) > 1
    for row, problem in enumerate(problems):
        alone = run(model, tokenizer, [problem], max_new_tokens=80)
        assert unpadded(alone.sequences[0], tokenizer) == unpadded(together.sequences[row], tokenizer)
        for field in ("tool_calls", "complete", "errors", "answer_ids"):
            assert alone[field][0] == together[field][row]
        state, solo = together.session.state.cache.select([row]), alone.session.state.cache
        for layer in range(2):
            for a, b in zip(state.read(layer), solo.read(layer)):
                assert (a - b).abs().max() < 1e-4


def test_the_final_state_has_seen_every_token(model, tokenizer, addition):
    _, references, script = scripted(tokenizer, addition, PROBLEMS)
    result = run(model, tokenizer, PROBLEMS, logits_processor=script, max_new_tokens=1_000)
    for row, reference in enumerate(references):
        with torch.no_grad():
            expected = model(torch.tensor([reference]), use_cache=True).cache_params
        for layer in range(2):
            for a, b in zip(result.session.state.cache.select([row]).read(layer), expected.read(layer)):
                assert (a - b).abs().max() < 1e-4


def test_going_on_from_a_state_equals_one_long_prompt(model, tokenizer):
    first, second = "12+34=", "56+7="
    with torch.no_grad():
        state = model(tokenizer(first, return_tensors="pt")["input_ids"], use_cache=True).cache_params
    snapshot = state.clone()
    resumed = [run(model, tokenizer, [second], cache_params=state, max_new_tokens=30) for _ in range(2)]
    whole = run(model, tokenizer, [first + second], max_new_tokens=30)
    # The tool's memory is the prompt of the call, so only what comes before the first command must agree.
    assert torch.equal(resumed[0].sequences, resumed[1].sequences)
    assert resumed[0].sequences[0, len(second)] == whole.sequences[0, len(first + second)]
    for a, b in zip(state.read(0), snapshot.read(0)):
        assert torch.equal(a, b)  # the caller's state is not moved


def test_the_prompt_may_be_longer_than_one_piece(model, tokenizer, monkeypatch):
    problems = ["123456+7890123=", "1+2="]
    whole = run(model, tokenizer, problems, max_new_tokens=20)
    monkeypatch.setattr("hf_toolssm.generation.model_runner.PIECE", 4)
    assert torch.equal(run(model, tokenizer, problems, max_new_tokens=20).sequences, whole.sequences)


def test_too_few_new_tokens_end_cleanly_and_are_marked(model, tokenizer, addition, caplog):
    _, references, script = scripted(tokenizer, addition, PROBLEMS)
    result = run(model, tokenizer, PROBLEMS, logits_processor=script, max_new_tokens=100)
    assert result.complete == [True, False, True, False]
    assert result.sequences.shape[1] == max(map(len, PROBLEMS)) + 100
    assert unpadded(result.sequences[1], tokenizer) == references[1][: len(PROBLEMS[1]) + 100]
    run(model, tokenizer, PROBLEMS, logits_processor=script, max_new_tokens=100, return_dict_in_generate=False)
    assert "2 of 4 rows" in caplog.text
    assert "raise max_new_tokens" in caplog.text


def test_a_command_for_a_pointer_that_does_not_exist_ends_its_row_only(model, tokenizer, addition):
    renderer = Renderer(tokenizer)
    _, references, good = scripted(tokenizer, addition, ["1+1="])
    bad = script_of(tokenizer, "7+5=", NEW_POINTER, read(2))
    both = Script([], [])
    both.by_prompt = {**good[0].by_prompt, **bad[0].by_prompt}
    result = run(model, tokenizer, ["7+5=", "1+1="], logits_processor=LogitsProcessorList([both]), max_new_tokens=99)
    assert "UnknownPointerError" in result.errors[0]
    assert "pointer 2, but 1 exist" in result.errors[0]
    assert result.complete == [False, True]
    assert result.tool_calls[0] == 1
    assert unpadded(result.sequences[0], tokenizer) == renderer.problem("7+5=") + [
        renderer.token(NEW_POINTER),
        renderer.token(read(2)),
    ]
    assert unpadded(result.sequences[1], tokenizer) == references[1 - 1]


@pytest.mark.parametrize("cell", [read(1), NEW_POINTER, "<|end|>", ANSWER])
def test_an_observed_command_or_end_does_not_act(model, tokenizer, cell, monkeypatch):
    """A tool may show anything, a command too; reading it is an observation and nothing more."""
    call, token = PointerSession.call, Renderer(tokenizer).token(cell)

    def show(self, name, argument):
        return (token,) if name == pointer_memory.read(1) else call(self, name, argument)

    monkeypatch.setattr(PointerSession, "call", show)
    script = script_of(tokenizer, "7+", NEW_POINTER, read(1), "0", "5", ANSWER, "6", "<|end|>")
    result = run(model, tokenizer, ["7+"], logits_processor=script, max_new_tokens=50)
    written = tokenizer.convert_ids_to_tokens(result.sequences[0, 2:].tolist())
    assert written == [NEW_POINTER, read(1), cell, "5", ANSWER, "6", "<|end|>"]
    assert (result.answers, result.tool_calls, result.complete) == (["6"], [2], [True])


def test_pointers_reach_what_the_model_wrote(model, tokenizer):
    moves = [right(1)] * 4
    script = script_of(
        tokenizer, "1+2=", "9", NEW_POINTER, *moves, read(1), "0", left(1), read(1), "0", ANSWER, "<|end|>"
    )
    result = run(model, tokenizer, ["1+2="], logits_processor=script, max_new_tokens=50)
    observed = result.sequences[0][result.observation_mask[0]]
    assert tokenizer.convert_ids_to_tokens(observed.tolist()) == ["9", "="]


def test_an_end_without_an_answer_is_not_complete(model, tokenizer):
    result = run(model, tokenizer, ["1+2="], logits_processor=script_of(tokenizer, "1+2=", "3", "<|end|>"))
    assert (result.complete, result.answers) == ([False], [""])


def test_sampling_follows_the_seed_and_the_temperature(model, tokenizer):
    def sample(seed, **options):
        torch.manual_seed(seed)
        return run(model, tokenizer, PROBLEMS, do_sample=True, max_new_tokens=40, **options).sequences.tolist()

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    greedy = run(model, tokenizer, PROBLEMS, max_new_tokens=40).sequences.tolist()
    assert sample(3, temperature=1e-4) == greedy
    assert sample(3, top_k=1) == greedy


def test_several_samples_of_one_prompt_are_rows_of_their_own(model, tokenizer):
    torch.manual_seed(0)
    result = run(model, tokenizer, ["12+3="], do_sample=True, num_return_sequences=3, max_new_tokens=30)
    assert result.sequences.shape[0] == len(result.complete) == 3
    assert len({tuple(row) for row in result.sequences.tolist()}) > 1


class StopAfterSeven(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == 10  # the id of "7"


def test_a_stopping_criterion_stops_its_row(model, tokenizer, addition):
    _, references, script = scripted(tokenizer, addition, ["1+1=", "5+2="])
    options = {"logits_processor": script, "max_new_tokens": 300}
    assert tokenizer.convert_ids_to_tokens(10) == "7"
    result = run(
        model, tokenizer, ["1+1=", "5+2="], stopping_criteria=StoppingCriteriaList([StopAfterSeven()]), **options
    )
    assert result.complete == [True, False]
    assert unpadded(result.sequences[1], tokenizer)[-1] == 10
    result = run(model, tokenizer, ["1+1="], max_time=0.0, **options)
    assert result.complete == [False]
    assert result.sequences.shape[1] == 4 + 1


class Collector(BaseStreamer):
    def __init__(self):
        self.seen, self.ended = [], False

    def put(self, value):
        self.seen.append(value.tolist())

    def end(self):
        self.ended = True


def test_a_streamer_sees_every_token_observations_included(model, tokenizer, addition, capsys):
    _, references, script = scripted(tokenizer, addition, ["7+5="])
    collector = Collector()
    result = run(model, tokenizer, ["7+5="], logits_processor=script, max_new_tokens=300, streamer=collector)
    assert [token for put in collector.seen[1:] for token in put] == result.sequences[0, 4:].tolist()
    assert collector.ended
    run(model, tokenizer, ["7+5="], logits_processor=script, max_new_tokens=300, streamer=TextStreamer(tokenizer))
    assert "7+5=<|new_pointer|><|read_1|>7" in capsys.readouterr().out


def test_a_loaded_checkpoint_needs_no_further_argument(model, tokenizer, tmp_path):
    model.generation_config.max_new_tokens = 30
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = ToolMambaForCausalLM.from_pretrained(tmp_path)
    result = again.generate(**tokenizer("12+34=", return_tensors="pt"), return_dict_in_generate=True)
    assert torch.equal(result.sequences, run(model, tokenizer, ["12+34="]).sequences)
    assert isinstance(result.answers[0], str)


def test_tools_can_come_from_the_argument(model, tokenizer):
    script = script_of(tokenizer, "1+2=", NEW_POINTER, NEW_POINTER)
    one_pointer = [{"name": "pointer_memory", "max_pointers": 1}]
    result = run(model, tokenizer, ["1+2="], logits_processor=script, max_new_tokens=9, tools=one_pointer)
    assert "TooManyPointersError" in result.errors[0]
    with pytest.raises(UnknownToolError, match="no tool is named"):
        run(model, tokenizer, ["1+2="], tools=[{"name": "shell"}])
    with pytest.raises(MissingToolTokensError, match="add_tool_tokens_to_model"):
        run(model, tokenizer, ["1+2="], tools=[{"name": "pointer_memory", "max_pointers": 9}])


def test_what_knows_the_rows_of_a_batch_goes_on_knowing_them(model, tokenizer):
    """Row 0 ends at once; what may follow in row 1 is still decided as for row 1."""
    allowed = {0: ["<|end|>"], 1: ["1"]}
    ids = {row: tokenizer.convert_tokens_to_ids(texts) for row, texts in allowed.items()}
    options = {"prefix_allowed_tokens_fn": lambda row, _: ids[row], "max_new_tokens": 4}
    result = run(model, tokenizer, ["1+1=", "2+2="], **options)
    assert result.lengths == [5, 8]
    assert tokenizer.convert_ids_to_tokens(result.sequences[1, 4:].tolist()) == ["1"] * 4


def test_padding_that_is_also_the_end_token_hides_nothing(model, tokenizer, addition):
    """Large tokenizers often pad with their end token; lengths then say where a row ended."""
    _, references, script = scripted(tokenizer, addition, PROBLEMS)
    end = tokenizer.eos_token_id
    result = run(model, tokenizer, PROBLEMS, logits_processor=script, max_new_tokens=999, pad_token_id=end)
    for row, reference in enumerate(references):
        assert result.sequences[row, : result.lengths[row]].tolist()[-len(reference) :] == reference
        assert (result.sequences[row, result.lengths[row] :] == end).all()


def test_special_tokens_in_an_answer_are_shown(model, tokenizer):
    script = script_of(tokenizer, "1+2=", ANSWER, "3", "<|memory_begin|>", "<|end|>")
    result = run(model, tokenizer, ["1+2="], logits_processor=script, max_new_tokens=9)
    assert result.answers == ["3<|memory_begin|>"]


def test_a_state_that_does_not_fit_is_named(model, tokenizer):
    with torch.no_grad():
        state = model(tokenizer("1+2=", return_tensors="pt")["input_ids"], use_cache=True).cache_params
    with pytest.raises(StateMismatchError, match="1 rows and there are 2 rows of tokens"):
        run(model, tokenizer, ["1+2=", "3+4="], cache_params=state)
    with pytest.raises(StateMismatchError, match="DynamicCache: pass a MambaState"):
        run(model, tokenizer, ["1+2="], cache_params=DynamicCache(config=model.config))
    sampled = run(
        model, tokenizer, ["1+2="], cache_params=state, do_sample=True, num_return_sequences=3, max_new_tokens=5
    )
    assert sampled.session.state.cache.batch_size == 3


@pytest.mark.parametrize(
    ("problems", "options", "error", "message"),
    [
        ([""], {}, EmptyProblemError, "no token"),
        (["12a+5="], {}, InvalidProblemError, "row 0.*does not know"),
        (["1+2=", "1+x="], {}, InvalidProblemError, "row 1"),
        (["1+2="], {"num_beams": 2}, UnsupportedGenerationError, "num_beams"),
        (["1+2="], {"output_scores": True}, UnsupportedGenerationError, "output_scores"),
        (["1+2="], {"use_cache": False}, UnsupportedGenerationError, "use_cache"),
        (["1+2="], {"custom_generate": print}, UnsupportedGenerationError, "custom_generate"),
        (["1+2="], {"stop_strings": ["7"]}, UnsupportedGenerationError, "stop_strings.*StoppingCriteria"),
    ],
)
def test_bad_input_is_named_before_anything_is_generated(model, tokenizer, problems, options, error, message):
    with pytest.raises(error, match=message):
        run(model, tokenizer, problems, **options)


def test_no_prompt_at_all_is_named(model):
    with pytest.raises(EmptyProblemError, match="input_ids"):
        model.generate(max_new_tokens=3)


def test_right_padding_is_refused_with_and_without_a_mask(model, tokenizer):
    inputs = tokenizer(["1+2=", "10+20="], padding=True, padding_side="right", return_tensors="pt")
    with pytest.raises(PaddingError, match="padding_side = 'left'"):
        model.generate(**inputs)
    with pytest.raises(PaddingError, match="padding_side = 'left'"):
        model.generate(inputs["input_ids"])


def test_left_padding_without_a_mask_is_refused(model, tokenizer):
    inputs = tokenizer(["1+2=", "10+20="], padding=True, return_tensors="pt")
    with pytest.raises(PaddingError, match="attention_mask"):
        model.generate(inputs["input_ids"])


def test_answers_without_a_tokenizer_are_a_named_error(model, tokenizer):
    inputs = tokenizer("1+2=", return_tensors="pt")
    result = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    assert result.answer_ids is not None
    with pytest.raises(TokenizerNeededError, match="answer_ids"):
        _ = result.answers
