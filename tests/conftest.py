"""Tiny real models, tokenizers and trajectories that many tests share."""

import os

# Both before any library reads them. No test leaves the machine; and models this small only wait for a second thread.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import atexit
import contextlib
import importlib
import io
import runpy
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dataset_builders.catalog import available_tasks, load_task
from dataset_builders.problem_sets import ReferenceTrajectories, evaluation_sets
from hf_toolssm import ToolMambaConfig, ToolMambaForCausalLM
from hf_toolssm.errors import SandboxUnavailableError
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import StepKind, Trajectory, canonical, step
from hf_toolssm.tools import make_tool
from hf_toolssm.tools.sandbox import check_sandbox

# The same examples on every machine; a failure is reported as found, because shrinking one takes minutes here.
settings.register_profile(
    "ours",
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ours")


WITHOUT_PACKAGE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"hf_toolssm", "dataset_builders", "numba", "trl", "wrapt"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
"""
"""What a process runs first to be one where only torch and transformers are installed."""


ROOT = Path(__file__).parents[1]

ASKED = {
    "ABBR:exp": "What does {} stand for ?",
    "DESC:def": "What is a {} ?",
    "ENTY:food": "Which {} do people eat ?",
    "HUM:ind": "Who found the {} ?",
    "LOC:city": "Where is the {} ?",
    "NUM:count": "How many {}s are there ?",
}


def labelled_texts_folder():
    """Our own questions in the form of TREC's, for tasks over labelled texts; it stays as long as the process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    words = [a + b for a in ("bar", "mel", "tor", "sin", "quo") for b in ("ba", "ko", "rim", "sel", "tu")]
    for split, part in (("train", words[:18]), ("test", words[18:])):
        lines = [f"{label} {question.format(word)}" for word in part for label, question in ASKED.items()]
        Path(folder.name, f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="latin-1")
    return folder.name


os.environ["LABELLED_TEXTS"] = labelled_texts_folder()

COMPARED_TASKS = tuple(name for name in available_tasks() if load_task(name).most_tokens is None)
"""Tasks whose answer is compared; those that a check decides on have tests of their own."""

CELL_TASKS = tuple(name for name in COMPARED_TASKS if load_task(name).cells(load_task(name).variants[0]))
"""Those of them that are made of cells."""


def _no_sandbox() -> str:
    """Why no command runs in a sandbox here; "" where one does."""
    try:
        check_sandbox()
    except SandboxUnavailableError as error:
        return str(error)
    return ""


in_sandbox = pytest.mark.skipif(bool(reason := _no_sandbox()), reason=reason or "a sandbox runs here")


def run_script(script, *words):
    """Runs a script of recipes/ in this process as its command does, and returns what it printed.

    For tests in which the process is not what matters: a new one takes seconds to import trl.
    """
    path, before, printed = ROOT / script, set(sys.modules), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(ROOT)
        patch.setenv("ACCELERATE_USE_CPU", "true")  # as recipes/accelerate/cpu.yaml has it
        patch.setattr(sys, "argv", [str(path), *map(str, words)])
        patch.setattr(sys, "path", [str(path.parent), *sys.path])  # scripts import their neighbours by name
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            neighbours = {neighbour.stem for neighbour in path.parent.glob("*.py")}
            for name in neighbours & (sys.modules.keys() - before):
                del sys.modules[name]
    return printed.getvalue()


def import_recipe(name, folder="recipes"):
    """A script as a module; the files of its folder import each other by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / folder), *sys.path])
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def sft():
    """recipes/sft.py as a module."""
    return import_recipe("sft")


@pytest.fixture
def two_threads():
    """For what is shared out among threads; see the top of this file for all other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def addition():
    return load_task("addition")


@pytest.fixture(scope="session")
def specs(addition):
    return addition.tools("local")


@pytest.fixture(scope="session")
def tokenizer(addition, specs):
    return build_task_tokenizer(addition.cells("local"), [make_tool(spec) for spec in specs])


@pytest.fixture(scope="module")
def byte_tokenizer():
    """A real byte-level BPE tokenizer that merges digits, as large models' tokenizers do."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["12345 98765 12 34 the sum of the numbers"] * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def written(trajectory):
    """The kind and the text of every token behind the problem but the end."""
    return [(kind, cell) for kind, cell in trajectory.cells() if kind is not StepKind.INPUT]


def remembered(trajectory):
    """The kind and the text of every token behind the problem that enters memory: thoughts and outputs."""
    return [(kind, cell) for kind, cell in written(trajectory) if kind in (StepKind.THOUGHT, StepKind.OUTPUT)]


def thinking(trajectory, cells):
    """The same problem with other thoughts and outputs behind it."""
    return Trajectory(canonical([trajectory.steps[0], *(step(kind, (cell,)) for kind, cell in cells)]))


@pytest.fixture
def model(tokenizer, specs):
    return random_model(tokenizer, specs)


def random_model(tokenizer, specs, seed=0, **shape):
    """A ToolMamba whose random weights give logits of order 10: default initialisation would hide errors."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8} | shape
    model = ToolMambaForCausalLM(ToolMambaConfig(vocab_size=len(tokenizer), **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=0)
    return model


def by_heart(model, rows, until):
    """The model, once it knows rendered rows by heart: their loss, all together, is below `until`."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(400):
        loss = sum(model(**{name: torch.tensor([ids]) for name, ids in row.items()}).loss for row in rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < until:
            break
    return model.eval()


@pytest.fixture(scope="session")
def memorised(tokenizer, specs):
    """A model that knows two problems by heart, and their references."""
    (problems,) = evaluation_sets(load_task("addition"), "local", [1], [], 2)
    references = ReferenceTrajectories(problems)
    rows = [Renderer(tokenizer).render(reference) for reference in references]
    model = random_model(tokenizer, specs, hidden_size=48, state_size=16)
    return by_heart(model, rows, 0.02), references


def relative_distance(found, expected):
    """The largest difference, as a share of the largest value, or of 1 where all values are small."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
