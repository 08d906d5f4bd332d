"""A chat whose model is tiny and real, and whose choices are a script's: what is fed and carried out is the loop's."""

import sys
from pathlib import Path

import torch

from hf_toolssm import Chat, ToolMambaConfig, ToolMambaForCausalLM

sys.path.append(str(Path(__file__).parents[1] / "protocol"))
from template_families import family_tokenizer


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def says(content, *calls, **more):
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {}), **more}


SCHEMA = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
FAMILIES = ("toolssm", "granite_4", "qwen3_5_think")
"""Templates of which the last takes thoughts away."""

ASKS = says("", call("weather", city="Paris"), call("weather", city="Rome"))


def weather(city):
    return f"{city}: fine"


def told(*cities):
    return [{"role": "tool", "name": "weather", "content": weather(city)} for city in cities]


class RowScript:
    """A sampler that lets the rows of a session write given tokens."""

    def __init__(self, session, tokens):
        self.session = session
        self.tokens = [list(each) for each in tokens]

    def choose(self, rows, logits):
        return [0 if self.session.rows[row].pending else self.tokens[row].pop(0) for row in rows]

    def sampled_from(self):
        return None

    def stop(self, rows):
        return [False] * len(rows)


class Script(RowScript):
    """Lets the model of a chat write given turns: messages, or tokens."""

    def __init__(self, chat, *turns):
        self.chat = chat
        self.tokens = [[]]
        for turn in turns:
            self.tokens[0] += turn if isinstance(turn, list) else chat.template.turn(turn)

    @property
    def session(self):
        return self.chat.session


def tiny_model(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = ToolMambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=8, eos_token_id=None
    )
    model = ToolMambaForCausalLM(config).eval()
    with torch.no_grad():  # so that what was read matters to what comes
        model.get_input_embeddings().weight.mul_(30)
    return model


def start(tools=(), *, family="toolssm", split=False, model=None, **options):
    tokenizer = family_tokenizer(family, split=split)
    model = tiny_model(tokenizer) if model is None else model(tokenizer)
    return Chat.start(model, tokenizer, tools=tools, **options)


def send(chat, content, *turns, **options):
    """Says something; the model writes these turns."""
    script = Script(chat, *turns)
    reply = chat.send(content, sampler=script, **options)
    assert not script.tokens[0] or options
    return reply


def whole_logits(chat, ids):
    with torch.no_grad():
        return chat.model(input_ids=torch.tensor([ids])).logits[0, -1]
