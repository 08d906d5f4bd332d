"""An evaluation by Inspect AI finds what our own of the same conversations finds, and no token is read twice."""

import random
from collections import deque

import pytest
from conftest import import_recipe
from test_sft_messages import dataset, trained  # noqa: F401 - fixtures

from hf_toolssm import Chat
from hf_toolssm.errors import MessageError, UnsupportedGenerationError

inspect_ai = pytest.importorskip("inspect_ai", reason="inspect-ai is not installed: pip install -e '.[inspect]'")
from inspect_ai.model import (  # noqa: E402
    ChatMessageAssistant,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)
from inspect_ai.tool import ToolFunction, ToolInfo  # noqa: E402

FOLDER = "recipes/function_calling"
COUNT = 12


class Policy:
    """A sampler that knows the answers, and makes a mistake of each kind now and then."""

    def __init__(self, chat, recipes):
        self.chat = chat
        self.conversations, self.functions = recipes
        self.script = deque()

    def choose(self, rows, logits):
        if self.chat.session.rows[0].pending:
            return [0]
        if not self.script:
            self.script.extend(self.chat.template.turn(self.turn()))
        return [self.script.popleft()]

    def sampled_from(self):
        return None

    def stop(self, rows):
        return [False] * len(rows)

    def turn(self):
        """The assistant's turn behind what was said; the request and the schemas tell which problem it is."""
        said = self.chat.messages + self.chat.session.rows[0].messages
        results = [message["content"] for message in said if message["role"] == "tool"]
        if results:
            is_right = all(result.startswith("{") for result in results) and len(said[0]["content"]) % 3
            return {"role": "assistant", "content": self.functions.said(results) if is_right else "Done."}
        name, arguments = self.problem(said[0]["content"])
        kind = random.Random(said[0]["content"]).randrange(6)
        if kind == 0:
            return {"role": "assistant", "content": "I would rather not."}
        if kind == 1:
            name = "cancel_everything"
        if kind == 2:
            arguments = dict.fromkeys(arguments, "Atlantis")
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [call] * (2 if kind == 3 else 1)}

    def problem(self, request):
        return self.problems[request]


@pytest.fixture
def recipes(monkeypatch, trained):  # noqa: F811
    """The recipes' modules; whatever chat says a message, the policy chooses what its model writes."""
    names = ("conversations", "functions", "measure_calls", "inspect_task")
    conversations, functions, measuring, task = (import_recipe(name, FOLDER) for name in names)
    problems = {}
    for group in measuring.GROUPS.values():
        for index in range(COUNT):
            name = list(group)[index % len(group)]
            problem = conversations.test_problem(name, index)
            problems[problem.request] = (name, problem.arguments)
    monkeypatch.setattr(Policy, "problems", problems, raising=False)
    for method in ("send", "answer"):
        whole = getattr(Chat, method)

        def chosen(self, said, *, whole=whole, **options):
            return whole(self, said, **{**options, "sampler": Policy(self, (conversations, functions))})

        monkeypatch.setattr(Chat, method, chosen)
    return measuring, task


def note(prompts, ids):
    """Keeps what is longer than a result or a turn: a conversation's first prompt."""
    if ids.shape[1] > 100:
        prompts.add(tuple(ids[0].tolist()))


def test_inspect_finds_what_our_own_evaluation_finds(recipes, trained, tmp_path, monkeypatch):  # noqa: F811
    measuring, task = recipes
    model, tokenizer = measuring.load_model(str(trained)), measuring.AutoTokenizer.from_pretrained(trained)
    fed, prompts, theirs = [], set(), set()
    model.register_forward_pre_hook(lambda _, __, given: note(prompts, given["input_ids"]), with_kwargs=True)
    ours = [
        measuring.measure(name, problems, model, tokenizer)
        for name, problems in measuring.problems_of(None, COUNT).items()
    ]
    first = measuring.load_model

    def counted(*arguments, **options):
        loaded = first(*arguments, **options)
        loaded.register_forward_pre_hook(lambda _, __, given: fed.append(given["input_ids"].numel()), with_kwargs=True)
        loaded.register_forward_pre_hook(lambda _, __, given: note(theirs, given["input_ids"]), with_kwargs=True)
        return loaded

    monkeypatch.setattr("hf_toolssm.evaluation.inspect_provider.load_model", counted)
    (log,) = inspect_ai.eval(
        task.function_calling(COUNT), model=f"toolssm/{trained}", log_dir=str(tmp_path), display="none"
    )
    assert log.status == "success", log.error
    found = {sample.id: sample.scores["calls"].value for sample in log.samples}
    for group in ours:
        values = [value for name, value in found.items() if name.startswith(group["group"] + ", ")]
        assert len(values) == COUNT
        for figure in measuring.FIGURES:
            assert round(sum(value[figure] for value in values) / COUNT, 4) == group[figure]
    shares = [group[figure] for group in ours for figure in measuring.FIGURES]
    assert len({*shares}) > 3
    (usage,) = log.stats.model_usage.values()
    assert usage.input_tokens + usage.output_tokens == sum(fed)  # nothing was read twice
    assert usage.input_tokens_cache_read > 0
    begin = tokenizer.convert_tokens_to_ids("<|im_start|>")
    prompts, theirs = ({each for each in heard if each[0] == begin} for heard in (prompts, theirs))
    assert len(prompts) == 3 * COUNT
    assert theirs == prompts  # the model is asked in the same words


@pytest.fixture
def provider(trained):  # noqa: F811
    return get_model(f"toolssm/{trained}", memoize=False).api


async def generate(provider, *messages, tools=(), choice="auto", **config):
    return await provider.generate([*messages], [*tools], choice, GenerateConfig(max_tokens=3, **config))


@pytest.mark.anyio
async def test_a_setting_is_obeyed_or_refused(provider):
    user = ChatMessageUser(content="please order the taxi in Oslo")
    output = await generate(provider, user, temperature=1.0, seed=1, max_retries=3)
    assert (output.stop_reason, output.usage.output_tokens) == ("max_tokens", 3)
    for settings in ({"top_p": 0.9}, {"stop_seqs": ["a"]}, {"num_choices": 2}):
        with pytest.raises(UnsupportedGenerationError, match=next(iter(settings))):
            await generate(provider, user, **settings)
    for choice in ("any", ToolFunction(name="weather")):
        with pytest.raises(UnsupportedGenerationError, match="tool_choice"):
            await generate(provider, user, tools=[ToolInfo(name="weather", description="")], choice=choice)


@pytest.mark.anyio
async def test_what_is_no_text_is_refused_by_name(provider):
    with pytest.raises(MessageError, match="ContentImage"):
        await generate(provider, ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA")]))


def test_messages_are_those_of_a_chat():
    from hf_toolssm.evaluation.inspect_provider import message_of

    call = {"id": "1", "function": "weather", "arguments": {"city": "Oslo"}}
    assert message_of(ChatMessageAssistant(content="", tool_calls=[call])) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
    }
    error = {"type": "unknown", "message": "It rains."}
    assert message_of(ChatMessageTool(content="", function="weather", error=error)) == {
        "role": "tool",
        "content": "It rains.",
        "name": "weather",
    }


@pytest.fixture
def anyio_backend():
    return "asyncio"
