"""What a saved model carries runs its tools as the package does, without it, and switches nothing on by itself."""

import ast
import json
import subprocess
import sys

import pytest
import torch
from conftest import WITHOUT_PACKAGE, random_model
from small_models import Script
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from dataset_builders.catalog import load_task
from dataset_builders.task import example_rng
from hf_toolssm import ToolMambaConfig, ToolMambaForCausalLM
from hf_toolssm.errors import UnsafeToolError, UnsupportedGenerationError
from hf_toolssm.generation.session import Session
from hf_toolssm.models.plain_tool_mamba import PlainToolMambaForCausalLM
from hf_toolssm.models.remote_code import write_remote_code
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.tools import available_tools, make_tool
from hf_toolssm.tools.pointer_memory import PointerMemory

TASKS = [
    ("addition", "local"),
    ("logical_graph", "depth_first"),
    ("addition", "calculator"),
    ("copy", "tape"),
]


def save(name, variant, folder):
    """A task's tokenizer, some of its problems, and a random model for it, loaded from its saved folder."""
    task = load_task(name)
    specs = task.tools(variant)
    tokenizer = build_task_tokenizer(task.cells(variant), [make_tool(spec) for spec in specs])
    problems = [task.sample_test(example_rng("plain", n), n) for n in (2, 4, 3)]
    random_model(tokenizer, specs, seed=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer, problems, ToolMambaForCausalLM.from_pretrained(folder), folder


@pytest.fixture(params=TASKS, ids=lambda pair: pair[1])
def saved(request, tmp_path):
    return save(*request.param, tmp_path)


@pytest.fixture
def saved_addition(tmp_path):
    return save("addition", "local", tmp_path)


def run(model, tokenizer, problems, **options):
    inputs = tokenizer(problems, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    return model.generate(**inputs, **{"max_new_tokens": 50, "return_dict_in_generate": True} | options)


@pytest.mark.parametrize("by", ["its weights", "a script"])
def test_every_row_is_the_packages_token_for_token(saved, request, by):
    """The weights wander about; the script is the solutions, and calls the tools all the time."""
    tokenizer, problems, model, folder = saved
    options = {}
    if by == "a script":
        name, variant = request.node.callspec.params["saved"]
        solutions = [load_task(name).solve(problem, variant) for problem in problems]
        written = [Renderer(tokenizer).render(s)["input_ids"][len(s.problem) :] for s in solutions]
        prompts = [tokenizer(problem)["input_ids"] for problem in problems]
        options = {"logits_processor": LogitsProcessorList([Script(prompts, written)]), "max_new_tokens": 2_000}
    plain = PlainToolMambaForCausalLM.from_pretrained(folder)
    expected, found = run(model, tokenizer, problems, **options), run(plain, tokenizer, problems, **options)
    for field in ("lengths", "answer_ids", "tool_calls", "complete", "errors"):
        assert found[field] == expected[field], field
    for field in ("sequences", "writers"):
        assert torch.equal(found[field], expected[field]), field
    assert found.answers == expected.answers
    if by == "a script":
        assert min(found.tool_calls) >= 1
        assert found.answers == [solution.answer for solution in solutions]


class AfterSeven(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -7:].sum(-1) % 5 == 0


def test_options_of_generate_steer_it_as_they_steer_the_package(saved_addition, capsys):
    tokenizer, problems, model, folder = saved_addition
    plain = PlainToolMambaForCausalLM.from_pretrained(folder)
    for options in (
        {"stopping_criteria": StoppingCriteriaList([AfterSeven()])},
        {"repetition_penalty": 1.3, "max_new_tokens": 40},
        {"return_dict_in_generate": False},
    ):
        a, b = (run(m, tokenizer, problems, **options) for m in (model, plain))
        same = [x if torch.is_tensor(x) else x.sequences for x in (a, b)]
        assert torch.equal(*same), options
    one = problems[:1]
    sampled = [run(m, tokenizer, one, do_sample=True, streamer=TextStreamer(tokenizer)) for m in (model, plain)]
    assert torch.equal(sampled[0].sequences, sampled[1].sequences)
    assert capsys.readouterr().out.split("\n")[0] in tokenizer.decode(sampled[0].sequences[0])
    with pytest.raises(UnsupportedGenerationError, match="pip install"):
        run(plain, tokenizer, one, step_weights="int8")


def test_the_code_beside_a_model_is_its_own_tools_and_imports_nothing_of_the_package(saved):
    _, _, model, folder = saved
    (spec,) = model.config.tools
    code = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    assert {name for name in available_tools() if f"hf_toolssm_{name}" in code} == {spec["name"]}
    for name, text in code.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (node.level, node.module in code) == (1, True), f"{name} imports {node.module}"
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                roots = {module.split(".")[0] for module in modules} - sys.stdlib_module_names
                assert roots <= {"torch", "transformers", "huggingface_hub", "tokenizers", "numpy"}, name


def test_a_fresh_process_without_the_package_runs_the_tools(tmp_path):
    models = [save(name, variant, tmp_path / variant) for name, variant in TASKS]
    code = f"""{WITHOUT_PACKAGE}
import json
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder, problems in {[(str(folder), problems) for _, problems, _, folder in models]!r}:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(problems, padding=True, return_tensors="pt")
    print(json.dumps(model.generate(**inputs, max_new_tokens=50).tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for line, (tokenizer, problems, model, _) in zip(done.stdout.splitlines(), models, strict=True):
        assert json.loads(line) == run(model, tokenizer, problems).sequences.tolist()


@pytest.mark.parametrize("first", ["hf_toolssm", "transformers"])
def test_auto_classes_know_a_tool_mamba_once_the_package_is_imported(saved_addition, first):
    *_, folder = saved_addition
    imports = ["import hf_toolssm", "from transformers import AutoModelForCausalLM, MambaForCausalLM"]
    imports = imports if first == "hf_toolssm" else imports[::-1]
    code = f"""
model = AutoModelForCausalLM.from_pretrained({str(folder)!r})
again = AutoModelForCausalLM.from_pretrained({str(folder)!r}, config=model.config)
print(type(model).__module__, type(model) is type(again) is type(AutoModelForCausalLM.from_config(model.config)))
"""
    done = subprocess.run([sys.executable, "-c", "\n".join([*imports, code])], capture_output=True, encoding="utf-8")
    assert done.stdout == "hf_toolssm.models.modeling_tool_mamba True\n", done.stderr[-2000:]


def test_a_model_that_was_loaded_is_saved_with_its_code_again(saved_addition, tmp_path):
    tokenizer, problems, model, folder = saved_addition
    again = tmp_path / "again"
    ToolMambaForCausalLM.from_pretrained(folder).save_pretrained(again)
    assert {p.name for p in again.glob("*.py")} == {p.name for p in folder.glob("*.py")}
    found = run(AutoModelForCausalLM.from_pretrained(again), tokenizer, problems)
    assert torch.equal(found.sequences, run(model, tokenizer, problems).sequences)


def test_a_saved_session_loads_after_its_model_was_saved_elsewhere(model, tokenizer, tmp_path):
    session = Session.start(model, [tokenizer("1+1=")["input_ids"]])
    session.save(tmp_path / "session.safetensors")
    model.save_pretrained(tmp_path / "model")
    Session.load(tmp_path / "session.safetensors", model)
    Session.load(tmp_path / "session.safetensors", ToolMambaForCausalLM.from_pretrained(tmp_path / "model"))


def test_saving_leaves_the_users_own_modules_alone(model, tmp_path):
    (tmp_path / "tools.py").write_text("MINE = True\n", encoding="utf-8")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "tools.py").read_text(encoding="utf-8") == "MINE = True\n"
    assert {path.name for path in tmp_path.glob("*.py") if not path.name.startswith("hf_toolssm_")} == {"tools.py"}


def test_a_batch_that_padding_would_change_is_refused_without_the_package(tokenizer, specs, tmp_path):
    random_model(tokenizer, specs, use_bias=True).save_pretrained(tmp_path)
    loaded = PlainToolMambaForCausalLM.from_pretrained(tmp_path)
    run(loaded, tokenizer, ["1+1=", "2+2="])
    with pytest.raises(UnsupportedGenerationError, match="one length"):
        run(loaded, tokenizer, ["1+1=", "12+1="])


def test_a_model_without_tools_carries_no_code(tmp_path):
    ToolMambaForCausalLM(ToolMambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1)).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))


def test_writing_the_code_again_gives_the_same_files(tmp_path):
    specs = [{"name": name} for name in available_tools()]
    first = {path: path.read_text(encoding="utf-8") for path in write_remote_code(tmp_path, specs)}
    assert {path: path.read_text(encoding="utf-8") for path in write_remote_code(tmp_path, specs[::-1])} == first


def test_a_tool_that_has_side_effects_runs_only_where_the_caller_passes_it(model, tokenizer, monkeypatch, tmp_path):
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(PointerMemory, "has_side_effects", True)
    for loaded in (
        ToolMambaForCausalLM.from_pretrained(tmp_path),
        PlainToolMambaForCausalLM.from_pretrained(tmp_path),
    ):
        with pytest.raises(UnsafeToolError, match="pass tools="):
            run(loaded, tokenizer, ["1+1="])
        passed = run(loaded, tokenizer, ["1+1="], tools=loaded.config.tools)
        assert passed.sequences.shape[1] > 4
