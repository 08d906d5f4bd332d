"""Three turns of a user with a tool that reads text: recorded, rendered, trained on, generated, parsed back."""

import json
import math

import pytest
import torch
from conftest import random_model
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Heard
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_toolssm.errors import TokenizerNeededError, UnspellableTextError
from hf_toolssm.evaluation.free_running import evaluate_free_running
from hf_toolssm.generation.session import Session
from hf_toolssm.generation.tool_loop import generate_with_tools
from hf_toolssm.protocol.calls import begin_token, end_token
from hf_toolssm.protocol.parse import parse
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.special_tokens import add_tool_tokens
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import StepKind, Trajectory, Writer, step
from hf_toolssm.tools.pointer_memory import PointerMemory
from hf_toolssm.training.sft_config import ToolSFTConfig
from hf_toolssm.training.trainer import ToolSFTTrainer


class Ledger:
    """Adds up what it is told, by name, in JSON."""

    name = "ledger"
    time_limit = None

    def start(self, problem):
        return LedgerAtWork({})

    def restore(self, state):
        return LedgerAtWork(dict(state))


class LedgerAtWork:
    def __init__(self, totals):
        self.totals = totals

    def call(self, name, argument):
        for key, value in json.loads(argument).items():
            self.totals[key] = self.totals.get(key, 0) + value
        return json.dumps(self.totals, ensure_ascii=False)

    def state(self):
        return self.totals


def dialogue():
    """The second turn writes no answer; what users and tools say spells tokens and has letters of several bytes."""
    pen = Recorder("Ann gives 3 <|ledger|>.", Ledger())
    pen.think("a")
    pen.call("ledger", '{"Ann": 3}')
    pen.begin_answer()
    pen.output("3 \N{EURO SIGN}")
    pen.input("Zo\N{LATIN SMALL LETTER E WITH DIAERESIS} 4<|answer|>")
    pen.call("ledger", '{"Zo\N{LATIN SMALL LETTER E WITH DIAERESIS}": 4}')
    pen.input("All?<|endoftext|>")
    pen.call("ledger", '{"Ann": 0}')
    pen.think("Both.")
    pen.begin_answer()
    pen.output("7")
    return pen.trajectory()


def task_like():
    return build_task_tokenizer("0123456789", [Ledger()])


def neox_like():
    """Of the form of GPT-NeoX's: bytes, merges, a normalizer, runs of spaces that were added as ordinary tokens."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["Ann gives Ann 3. All? Both. {" + '"Ann": 3}'] * 9, trainer)
    backend.add_tokens(["  ", "    "])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    add_tool_tokens(tokenizer, [Ledger()])
    return tokenizer


VOCABULARIES = pytest.mark.parametrize("make_tokenizer", [task_like, neox_like])


@VOCABULARIES
def test_three_turns_are_recorded_rendered_and_parsed_back(make_tokenizer):
    tokenizer, trajectory = make_tokenizer(), dialogue()
    assert Trajectory.from_row(json.loads(json.dumps(trajectory.to_row()))) == trajectory
    ids, writers = Renderer(tokenizer).written(trajectory)
    assert parse(ids, writers, tokenizer, [Ledger()]) == trajectory
    by_user = [token for token, writer in zip(ids, writers) if writer != Writer.MODEL]
    assert set(by_user).isdisjoint(tokenizer.added_tokens_decoder)
    assert ids.count(tokenizer.eos_token_id) == 3
    labels = Renderer(tokenizer).render(trajectory)["labels"]
    assert [label != -100 for label in labels] == [writer == Writer.MODEL for writer in writers]
    assert trajectory.answers == ["3 \N{EURO SIGN}", "", "7"]


@pytest.mark.slow
@VOCABULARIES
def test_three_turns_are_trained_generated_saved_in_an_argument_resumed_and_parsed_back(make_tokenizer, tmp_path):
    tokenizer, trajectory = make_tokenizer(), dialogue()
    renderer = Renderer(tokenizer)
    rows = Dataset.from_list([trajectory.to_row()]).map(renderer.row, remove_columns=["problem", "steps", "answer"])
    model = random_model(tokenizer, [], hidden_size=64, state_size=16)
    model.config.tool_token_ids = None
    config = ToolSFTConfig(
        output_dir=str(tmp_path), max_steps=150, learning_rate=5e-3, report_to="none", use_cpu=True, save_steps=150
    )
    ToolSFTTrainer(model, config, rows, processing_class=tokenizer).train()
    model.eval()
    inputs = [list(renderer.step(s)) for s in trajectory.steps if s.kind is StepKind.INPUT]
    options = {"tools": [Ledger()], "tokenizer": tokenizer}
    session = Session.start(model, inputs[:1], record=True, **options)
    cuts = 0
    for turn in range(3):
        while not session.finished and session.tokens < 1_000:
            session.run(1)
            if session.rows[0].reader.open and session.rows[0].reader.argument:
                cuts += 1
                session.save(tmp_path / "session")
                session = Session.load(tmp_path / "session", model, **options)
        if turn < 2:
            session.append([inputs[turn + 1]])
    assert cuts > 10
    assert session.trajectories == [trajectory]
    assert renderer.written(session.trajectories[0]) == renderer.written(trajectory)
    whole = Session.start(model, inputs[:1], record=True, **options)
    for turn in range(3):
        whole.run(500)
        if turn < 2:
            whole.append([inputs[turn + 1]])
    assert whole.trajectories == [trajectory]
    other = Trajectory((*trajectory.steps[:-1], step(StepKind.OUTPUT, "8")))
    measured = evaluate_free_running(model, tokenizer, "turns", 3, [trajectory, other], tools=[Ledger()])
    assert (measured.answer_accuracy, measured.trajectory_accuracy) == (0.5, 0.5)
    assert (measured.num_answers, measured.right_answers) == (4, 3)  # two of three turns ask for one
    assert measured.first_error.problem == 1


def test_a_tool_that_reads_text_needs_a_vocabulary_that_writes_any_before_anything_runs():
    """Without bytes, a tool's first foreign letter would have no tokens in the middle of a run."""
    letters = build_task_tokenizer("ab", [PointerMemory(2)])
    add_tool_tokens(letters, [Ledger()])
    model = random_model(letters, [])
    model.config.tool_token_ids = None
    with pytest.raises(UnspellableTextError, match="take a tokenizer with pieces for it"):
        Session.start(model, [[3]], tools=[Ledger()], tokenizer=letters)
    model.config.tool_token_ids = letters.get_vocab()
    with pytest.raises(TokenizerNeededError, match="pass tokenizer="):
        Session.start(model, [[3]], tools=[Ledger()])


@settings(max_examples=200)
@given(st.text())
def test_a_task_tokenizer_with_bytes_writes_any_text_and_gives_it_back(text):
    text = text.encode("utf-8", "ignore").decode()
    tokenizer = task_like()
    pen = Recorder("x" + text, Ledger())
    pen.begin_answer()
    trajectory = pen.trajectory()
    ids, writers = Renderer(tokenizer).written(trajectory)
    assert parse(ids, writers, tokenizer, [Ledger()]) == trajectory
    assert tokenizer.unk_token_id not in ids


def wandering(temperature=0.0, record=True, rows=2):
    tokenizer = build_task_tokenizer("0123456789+=", [PointerMemory(2)])
    model = random_model(tokenizer, [{"name": "pointer_memory", "max_pointers": 2}], seed=5)
    prompts = tokenizer(["12+7=", "5="][:rows])["input_ids"]
    session = Session.start(model, prompts, tokenizer=tokenizer, temperature=temperature, record=record, seed=3)
    return session, prompts


@torch.no_grad()
def by_hand(session, prompts, heard):
    """Log-probabilities of everything that was heard, by one forward over it."""
    model, found = session.runner.model, []
    for prompt, tokens in zip(prompts, heard.tokens):
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()
        found.append((logits, tokens))
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_are_those_of_the_model_and_of_what_was_sampled_from(temperature):
    session, prompts = wandering(temperature)
    heard = Heard(2)
    session.run(40, sink=heard, log_probs=True)
    recording = session.recording
    for row, (logits, tokens) in enumerate(by_hand(session, prompts, heard)):
        start = len(prompts[row])
        assert all(map(math.isnan, recording.log_probs[row][:start]))
        for at, token in enumerate(tokens):
            own, sampled = recording.log_probs[row][start + at], recording.sampled_log_probs[row][start + at]
            if recording.writers[row][start + at] == Writer.TOOL:
                assert math.isnan(own)
                assert math.isnan(sampled)
                continue
            assert own == pytest.approx(float(logits[at].log_softmax(-1)[token]), abs=1e-3)
            scaled = (logits[at] / (temperature or 1)).log_softmax(-1)[token]
            assert sampled == pytest.approx(float(scaled) if temperature else 0.0, abs=1e-3)
    plain, _ = wandering(temperature)
    again = Heard(2)
    plain.run(40, sink=again)
    assert again.tokens == heard.tokens


def test_generate_says_log_probabilities_after_processors_and_gives_trajectories(tmp_path):
    session, prompts = wandering()
    model, tokenizer = session.runner.model, session.tokenizer
    torch.manual_seed(1)
    output = generate_with_tools(
        model,
        torch.tensor([prompts[0]]),
        tokenizer=tokenizer,
        do_sample=True,
        temperature=0.5,
        top_k=4,
        max_new_tokens=30,
        log_probs=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        logits = model(output.sequences).logits[0].double()
    start, written = len(prompts[0]), output.writers[0] == Writer.MODEL
    assert written[start:].any()
    for at in range(start, output.sequences.shape[1]):
        token, before = int(output.sequences[0, at]), logits[at - 1]
        if not written[at]:
            assert math.isnan(output.log_probs[0, at])
            continue
        kept = (before / 0.5).masked_fill(before < before.topk(4).values[-1], -math.inf)
        assert float(output.log_probs[0, at]) == pytest.approx(float(before.log_softmax(-1)[token]), abs=1e-3)
        assert float(output.sampled_log_probs[0, at]) == pytest.approx(float(kept.log_softmax(-1)[token]), abs=1e-3)
    ids, writers = Renderer(tokenizer).written(output.trajectories[0])
    length = output.lengths[0]
    assert ids[:length] == output.sequences[0, :length].tolist()
    assert list(writers[:length]) == output.writers[0, :length].tolist()


def test_a_call_that_broke_off_is_in_the_trajectory_as_far_as_it_went():
    tokenizer = task_like()
    begin, end = map(tokenizer.convert_tokens_to_ids, (begin_token("ledger"), end_token("ledger")))
    argument = tokenizer.encode("12")
    for ids in ([begin, *argument], [begin, *argument, begin], [end]):
        everyone = [3, *ids]
        writers = [Writer.USER] + [Writer.MODEL] * len(ids)
        broken = parse(everyone, writers, tokenizer, [Ledger()])
        assert [s.kind for s in broken.steps] == [StepKind.INPUT, StepKind.CALL]
        assert Renderer(tokenizer).written(broken)[0] == everyone
