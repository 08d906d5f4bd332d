"""A long conversation with calls, every token fed once, beside stock that is given the whole of it every turn."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GraniteMoeHybridConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Mamba2Config,
    MambaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from decode import Greedy
from hf_toolssm import Chat, ToolMambaConfig, ToolMambaForCausalLM, add_chat_tokens
from measure import relative_difference
from models import Scale
from results import Result, Target

MAMBA_2 = {"num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 32}
HYBRID = {"layer_types": ["mamba", "attention"], "num_attention_heads": 4, "num_key_value_heads": 2}
HYBRID |= {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 32}
HYBRID |= {"num_local_experts": 0, "shared_intermediate_size": 128, "intermediate_size": 128}
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2}


def look_up(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name.
    """
    return f"In {city} it is {17 + len(city)} degrees, and it will be so until tomorrow."


def conversation(scale: Scale, path: str | None) -> Iterator[Result]:
    """User's turns, each with calls one after the other, for Mamba, Mamba-2 and a hybrid."""
    del path
    tokenizer = byte_tokenizer()
    for name, model, stock in _models(tokenizer):
        yield _converse(name, model, stock, tokenizer, scale)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and our chat template."""
    vocabulary = {piece: at for at, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    add_chat_tokens(tokenizer)
    return tokenizer


def _models(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, Any, Any]]:
    """Ours and stock on the same weights; of those that are not ours, stock itself in both places."""
    shape = {"vocab_size": len(tokenizer), **SHAPE, "eos_token_id": None}
    torch.manual_seed(0)
    mamba = _lively(ToolMambaForCausalLM(ToolMambaConfig(**shape)))
    stock = AutoModelForCausalLM.from_config(MambaConfig(**shape))
    stock.load_state_dict(mamba.state_dict())
    yield "Mamba", mamba, stock.eval()
    for name, config in (
        ("Mamba-2", Mamba2Config(**shape, **MAMBA_2, state_size=16)),
        ("GraniteMoeHybrid", GraniteMoeHybridConfig(**shape, **HYBRID)),
    ):
        model = _lively(AutoModelForCausalLM.from_config(config))
        yield name, model, model


def _lively(model: Any) -> Any:
    """What was read long ago matters to the logits, as it does not in a model as it is initialised."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = None
    return model.eval()


class _Turns(Greedy):
    """Lets the model of a chat write given tokens."""

    def __init__(self, chat: Chat, tokens: Sequence[int]) -> None:
        self._chat = chat
        self._tokens = iter(tokens)

    def choose(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        assert self._chat.session is not None
        return [0 if self._chat.session.rows[0].pending else next(self._tokens)]


def _converse(name: str, model: Any, stock: Any, tokenizer: PreTrainedTokenizerBase, scale: Scale) -> Result:
    turns, calls = scale.conversation
    _talk(Chat.start(model, tokenizer, tools=[look_up]), 1, 1)  # compiles kernels
    chat = Chat.start(model, tokenizer, tools=[look_up], record=True)
    seconds = _talk(chat, turns, calls)
    assert chat.session is not None
    ids, (row,) = list(chat.session.recording.ids[0]), chat.session.rows
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([ids])).logits[:, -1]
    refed = _prompt_lengths(chat, ids)
    timed = 1 if turns < 5 else 5
    stock_seconds = _refeed(stock, ids, refed[: timed * (calls + 1)])
    return Result(
        f"{name}: {turns} turns of {calls} calls",
        "turns/s",
        timed / sum(seconds[:timed]),
        stock=timed / stock_seconds,
        difference=relative_difference(chat.session.state.logits, whole),
        repetitions={"ours": 1, "stock": 1},
        targets=[
            Target("tokens fed over tokens of the conversation", row.length / len(ids), "<=", 1.0),
            Target("difference of the logits", (chat.session.state.logits - whole).abs().max().item(), "<=", 1e-4),
        ],
        details={
            "tokens": len(ids),
            "turns_of_the_model": len(refed),
            "tokens_refed_by_stock": sum(start for start, _ in refed) + sum(stop - start for start, stop in refed),
            "seconds_by_turn": seconds,
            "timed_turns": timed,
        },
    )


def _talk(chat: Chat, turns: int, calls: int) -> list[float]:
    """A whole conversation; seconds of each of the user's turns."""
    seconds = []
    for turn in range(turns):
        tokens = [token for message in _turn(turn, calls) for token in chat.template.turn(message)]
        start = time.perf_counter()
        reply = chat.send(f"What is it like in the cities of list {turn}?", sampler=_Turns(chat, tokens))
        seconds.append(time.perf_counter() - start)
        assert len(reply.tool_calls) == calls, reply
    return seconds


def _turn(turn: int, calls: int) -> list[dict[str, Any]]:
    """What the model says to one message of the user: calls, each behind the result of the one before, and an end."""
    messages = []
    for number in range(calls):
        function = {"name": "look_up", "arguments": {"city": f"city {turn}-{number}"}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [{"function": function}]})
    return [*messages, {"role": "assistant", "content": f"All {calls} are fine."}]


def _prompt_lengths(chat: Chat, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Of every turn of the model, where it begins and ends: what stands before it is what stock reads again."""
    assert chat.session is not None
    by_model = [writer == 1 for writer in chat.session.recording.writers[0]]
    starts = [at for at in range(1, len(ids)) if by_model[at] and not by_model[at - 1]]
    stops = [at for at in range(1, len(ids) + 1) if by_model[at - 1] and (at == len(ids) or not by_model[at])]
    return list(zip(starts, stops))


class _Forced(LogitsProcessor):
    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._ids[input_ids.shape[1]]] = 0
        return forced


def _refeed(stock: Any, ids: Sequence[int], turns: Sequence[tuple[int, int]]) -> float:
    """Seconds in which stock writes these turns, each behind the whole conversation before it."""
    begin = time.perf_counter()
    for start, stop in turns:
        stock.generate(
            torch.tensor([ids[:start]]),
            max_new_tokens=stop - start,
            do_sample=False,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([_Forced(ids)]),
        )
    return time.perf_counter() - begin
