"""The page that `recipes/trace.py` writes, in a real browser, and the replay behind it."""

import importlib.util
import json
import random
import sys
import warnings
from math import isnan, log, nan
from types import SimpleNamespace

import pytest
from browser import CHROMEDRIVER, Browser
from conftest import ROOT, run_script
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dataset_builders.build import build_folder
from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import evaluation_sets
from hf_toolssm import Session
from hf_toolssm.errors import RecordingError, ToolError, UnknownTaskError, UnknownToolError
from hf_toolssm.generation.recording import read_recording
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import Step, StepKind, Trajectory
from hf_toolssm.tools import make_tool

SENTENCE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>&lt;"
INVISIBLE = "a\u202eb\u0000c\u200bd\u001b[31me\U000e0041f\ufeffg\ud800h\u2028i"


FIGURES = """
const entries = (name) => performance.getEntriesByName(name);
return new Promise((done) => {
  new PerformanceObserver(() => {
    const [paint] = entries("first-contentful-paint"), slowest = Math.max(...entries("search").map((e) => e.duration));
    if (paint) done([paint.startTime, entries("drawn")[0].startTime, slowest]);
  }).observe({ type: "paint", buffered: true });
});
"""
"""Milliseconds until something is painted and until the steps are, and of the slowest search."""


@pytest.fixture(scope="module")
def trace():
    """recipes/trace.py as a module; Python's own `trace` has its name."""
    sys.path.insert(0, str(ROOT / "recipes"))
    spec = importlib.util.spec_from_file_location("trace_recipe", ROOT / "recipes" / "trace.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "recipes"))


@pytest.fixture(scope="module")
def chromium():
    if CHROMEDRIVER is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    with Browser() as browser:
        yield browser


@pytest.fixture
def show(trace, chromium, tmp_path):
    """Opens the page of a trajectory; after the test, none of its scripts has failed and it has fetched nothing."""

    def open_page(trajectory, tools=(), **more):
        path = tmp_path / "trace.html"
        path.write_text(trace.page(trajectory, tools, "a title", {"a fact": "its value"}, **more), encoding="utf-8")
        chromium.open(path)
        return chromium

    yield open_page
    assert chromium.errors() == []
    assert chromium.run("return performance.getEntriesByType('resource').length") == 0


class Notes:
    """A tool that reads text and remembers it."""

    calls = {"note": True, "forget": False}
    has_side_effects = False

    def start(self, problem):
        return NotesAtWork(problem)


class NotesAtWork:
    def __init__(self, problem):
        self._notes = [problem]

    def call(self, name, argument):
        if name == "forget":
            self._notes.clear()
        elif argument == "":
            raise ToolError("nothing to note")
        else:
            self._notes.append(argument)
        return f"{len(self._notes)} notes"

    def state(self):
        return {"notes": self._notes}


class Clock:
    name = "clock"

    def call(self, name, argument):
        raise AssertionError("a tool with side effects is not run again")


def solved(task, problem):
    task = load_task(task)
    return task.solve(problem, task.variants[0]), [make_tool(spec) for spec in task.tools(task.variants[0])]


@pytest.fixture(scope="module")
def long_sum():
    return solved("addition", "9876543210+123456789=")


def at_work(trajectory, tool):
    """The real tool at work, behind each step of a trajectory."""
    session = tool.start(trajectory.problem, str)
    yield session
    for each in trajectory.steps[1:]:
        if each.kind is StepKind.CALL:
            session.call(each.name, each.content or ())
        elif each.kind is not StepKind.OBSERVATION:
            for cell in each.content:
                session.write(cell)
        yield session


def go_to(browser, step):
    browser.run("location.hash = arguments[0]; return new Promise((done) => setTimeout(done))", step)


def strips(browser):
    """Of every strip the name of its pointer, and each cell with its place and whether the pointer stands there."""
    return browser.run(
        "return [...document.querySelectorAll('.strip')].map((strip) => [strip.querySelector('b').textContent,"
        " [...strip.querySelectorAll('.place')].map((place) => [Number(place.title.replace(/[^0-9-]/g, '')),"
        " place.lastChild.textContent, place.classList.contains('here')])])"
    )


def expected_strip(session, at, start, stop):
    """A window of 24 cells on either side, with the marks ⊢ and ⊣ beyond memory's ends."""
    places = range(max(start - 1, at - 24), min(stop + 1, at + 25))
    return [[p, "⊢" if p < start else "⊣" if p >= stop else session.cell(p), p == at] for p in places]


def count_of(browser):
    return browser.run("return document.getElementById('count').value")


def find(browser, text):
    """How many matches a text has, in the page's words."""
    browser.run("query.value = arguments[0]; query.dispatchEvent(new Event('input'))", text)
    return count_of(browser).rpartition(" of ")[2]


def chosen(browser):
    return browser.run("return Number(document.querySelector('.chosen').dataset.step)")


def test_stepping_moves_the_pointers_over_the_cells_that_the_real_tool_has_them_over(show, long_sum):
    trajectory, (tool,) = long_sum
    browser = show(trajectory, [tool])
    wanted = {0, 1, 2, len(trajectory.steps) - 1, *random.Random(0).sample(range(len(trajectory.steps)), 20)}
    for step, session in enumerate(at_work(trajectory, tool)):
        if step in wanted and session.pointers:
            go_to(browser, step)
            size = len(session.memory)
            assert strips(browser) == [
                [f"pointer {n}", expected_strip(session, at, 0, size)] for n, at in enumerate(session.pointers, 1)
            ]


def test_a_tape_shows_its_head_and_every_cell_as_it_was_at_that_step(show):
    trajectory, (tool,) = solved("binary_increment", "11")
    browser = show(trajectory, [tool])
    lefts = 0
    for step, session in enumerate(at_work(trajectory, tool)):
        go_to(browser, step)
        start = session.view().start
        lefts = min(lefts, start)
        assert strips(browser) == [["head", expected_strip(session, session.head, start, len(session.memory) + start)]]
    assert lefts < 0, "the tape grew to the left"


def test_a_search_memory_shows_its_lines_and_what_the_last_search_matched(show):
    problem = "1:gni\n1:dbn\n0:mjm\ngni-&=fsp\ndbn-/fsp\ngni+==yak\ngni-==vum\n>vum\n"
    trajectory, (tool,) = solved("logical_graph", problem)
    browser = show(trajectory, [tool])
    for step, session in enumerate(at_work(trajectory, tool)):
        browser.press("j") if step else None
        memory, marks = "".join(session.memory), session.view().marks.values()
        *found, all_lines = browser.run(
            "return [...document.querySelectorAll('.strip pre')].map((pre) => pre.textContent.replaceAll('⏎', ''))"
        )
        assert found == [memory[m.start : m.stop] for m in marks]
        assert all_lines == memory
        assert all("\n" not in line and line in memory.split("\n") for line in found)


def test_the_state_of_any_other_tool_is_there_at_every_step(show):
    recorder = Recorder("remember", Notes())
    for note in ("one", "two <b>", "", "three"):
        recorder.call("note", note)
    recorder.call("forget")
    recorder.call("note", "four")
    recorder.begin_answer()
    recorder.output("done")
    browser = show(recorder.trajectory(), [Notes()])
    steps = [recorder.trajectory().steps.index(s) for s in recorder.trajectory().steps if s.kind is StepKind.CALL]
    states = [["remember", "one"], ["remember", "one", "two <b>"], ["remember", "one", "two <b>"]]
    states += [["remember", "one", "two <b>", "three"], [], ["four"]]
    order = [*range(6), 1, 5, 0]  # back and forth
    for at in order:
        go_to(browser, steps[at])
        shown = browser.run("return document.querySelector('#tools pre').textContent")
        assert json.loads(shown) == {"notes": states[at]}
    assert browser.run("return document.querySelector('.wrong')") is None


def test_hostile_text_stays_text(show, trace):
    recorder = Recorder(SENTENCE, Notes())
    recorder.think(INVISIBLE)
    recorder.call("note", SENTENCE + "\n" + "\u05d0\u05d1" + "@SCRIPT@ @DATA@")
    recorder.begin_answer()
    recorder.output("ok")
    browser = show(recorder.trajectory(), [Notes()])
    assert browser.run("return [window.pwned ?? null, document.scripts.length, document.images.length]") == [
        None,
        2,
        0,
    ]
    text = browser.run("return document.getElementById('lines').textContent")
    for found in (SENTENCE, "\u05d0\u05d1@SCRIPT@ @DATA@"):
        assert found in text
    assert "aU+202EbU+0000cU+200BdU+001B[31meU+E0041fU+FEFFgU+D800hU+2028i" in text
    assert find(browser, SENTENCE.upper()) == "no match"  # capitals are not small letters
    assert find(browser, SENTENCE) == "2"
    assert find(browser, ".*") == "no match"


def test_an_observation_that_the_tool_does_not_show_again_is_marked(show, long_sum):
    trajectory, (tool,) = long_sum
    steps = list(trajectory.steps)
    wrong = [n for n, s in enumerate(steps) if s.kind is StepKind.OBSERVATION][3:9:5]
    for number in wrong:
        steps[number] = Step(StepKind.OBSERVATION, ("?",))
    browser = show(Trajectory(tuple(steps)), [tool])
    browser.click("button.wrong")
    assert count_of(browser) == "1 of 2"
    for number in wrong:
        assert chosen(browser) == number
        shown = "".join(trajectory.steps[number].content)
        assert browser.run("return document.querySelector('#step .wrong').textContent").endswith(f"'{shown}' here")
        assert browser.run("return document.querySelectorAll('.differs').length") > 0
        browser.press("n")


def test_the_keyboard_does_it_all(show, long_sum):
    trajectory, tools = long_sum
    browser, last = show(trajectory, tools), len(trajectory.steps) - 1
    browser.press("j", "j", "Down", "k", "j", "Left")
    assert chosen(browser) == 2
    browser.press("End")
    assert chosen(browser) == last
    browser.press("j", "Home", "k", "g", *"17", "Enter", "j")
    assert chosen(browser) == 18
    reads = [n for n, s in enumerate(trajectory.steps) if s.name == "read_2"]
    behind = next(at for at, n in enumerate(reads) if n >= 18)
    browser.press("/", *"read_2")
    assert count_of(browser) == f"{behind + 1} of {len(reads)}"
    browser.press("Enter", "Escape", "n", "n", "N")
    assert (chosen(browser), count_of(browser)) == (reads[behind + 2], f"{behind + 3} of {len(reads)}")
    browser.press("?")
    assert browser.run("return document.getElementById('about').open")
    browser.press("Escape", "k")
    assert chosen(browser) == reads[behind + 2] - 1


def test_a_page_opens_at_the_step_that_its_address_names(show, chromium, long_sum, tmp_path):
    show(*long_sum)
    for step in (300, 2):
        chromium.open(tmp_path / "trace.html", f"#{step}")
        chromium.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box, view = chromium.run(
            "return ['.chosen', 'main'].map((each) => document.querySelector(each).getBoundingClientRect().toJSON())"
        )
        assert chosen(chromium) == step
        assert view["top"] <= box["top"] < box["bottom"] <= view["bottom"]


def test_text_is_shown_in_the_pieces_of_its_tokens(trace):
    every_byte = {byte: at for at, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(every_byte, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    text = "a né 語 🎉"
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    pieces = trace.units(Step(StepKind.OBSERVATION, text, ids=ids), tokenizer)
    assert (len(pieces), "".join(pieces)) == (len(ids), text)
    assert trace.units(Step(StepKind.OBSERVATION, text, ids=ids)) == [text]


def test_kinds_are_searched_alone_or_with_a_text(show, long_sum):
    trajectory, tools = long_sum
    browser = show(trajectory, tools)
    browser.click("button.thought")
    thoughts = [s for s in trajectory.steps if s.kind is StepKind.THOUGHT]
    assert count_of(browser) == f"1 of {len(thoughts)}"
    browser.click("button.input")
    digit = sum("".join(s.content).count("1") for s in (*thoughts, trajectory.steps[0]))
    assert find(browser, "1") == str(digit)


def test_the_least_likely_tokens_come_first(show, trace, long_sum):
    trajectory, tools = long_sum
    tokens = [(n, s) for n, s in enumerate(trajectory.steps) for _ in trace.units(s)]
    rng = random.Random(0)
    own = [nan if s.kind in (StepKind.INPUT, StepKind.OBSERVATION) else -rng.random() * 0.75 for _, s in tokens]
    own[20], own[-1] = float("-inf"), -5.0
    number = sum(value < log(0.5) for value in own)  # a surprise is what the model thought less likely than not
    assert 10 < number < 100
    browser = show(trajectory, tools, log_probabilities=[(value, value) for value in own])
    browser.press("s")
    assert (chosen(browser), count_of(browser)) == (tokens[20][0], f"surprise 1 of {number}")
    browser.press("s")
    assert chosen(browser) == len(trajectory.steps) - 1
    browser.press("n")
    assert count_of(browser) == f"1 of {number}"  # by place, the first of them follows the last
    browser.press("S", "S", "s")
    assert (chosen(browser), count_of(browser)) == (tokens[20][0], f"surprise 1 of {number}")
    browser.press("s")
    assert "probability 0.00674 (log -5.000)" in browser.run("return document.getElementById('step').textContent")
    with pytest.raises(trace.TraceError, match="1 log-probabilities for"):
        trace.page(trajectory, tools, "", {}, log_probabilities=[(0.0, 0.0)])


def test_a_tool_with_side_effects_is_not_run_again_and_neither_is_one_that_was_not_given(show):
    steps = [Step(StepKind.INPUT, "when?"), Step(StepKind.CALL, "", "clock"), Step(StepKind.OBSERVATION, "noon")]
    steps += [Step(StepKind.CALL, "ls", "bash"), Step(StepKind.THOUGHT, ("<|answer|>",)), Step(StepKind.OUTPUT, "now")]
    browser = show(Trajectory(tuple(steps)), [Clock()])
    text = browser.run("return document.getElementById('tools').innerText.split(/\\n+/)")
    assert text == ["Clock", "not run again: it has side effects", "bash", "not run again: its tool was not given"]


def test_what_was_cut_off_is_no_difference_and_what_broke_off_is_said(trace, long_sum):
    trajectory, tools = long_sum
    called = next(n for n, s in enumerate(trajectory.steps) if s.kind is StepKind.OBSERVATION)
    cut = Trajectory(trajectory.steps[:called])
    assert trace.Replay(cut, tools, trace.Strings(), None).problems == []
    for tool, name, unit in ((make_tool({"name": "search_memory"}), "find", tuple), (Notes(), "note", str)):
        tokenizer = build_task_tokenizer("a\n", [tool])
        ids = tokenizer(f"<|{name}|>a<|/{name}|>")["input_ids"]
        for kept, said in (
            (ids[:2], ["the call breaks off, and was not carried out"]),
            (ids[2:], ["the call breaks off, and was not carried out"]),
            (ids, []),
        ):
            steps = (Step(StepKind.INPUT, unit("a")), Step(StepKind.CALL, unit("a"), name, ids=tuple(kept)))
            replay = trace.Replay(Trajectory(steps), [tool], trace.Strings(), tokenizer)
            assert [problem for _, problem in replay.problems] == said
    refused = (Step(StepKind.INPUT, ("a",)), Step(StepKind.CALL, None, "read_1"))
    ((step, said),) = trace.Replay(Trajectory(refused), tools, trace.Strings(), None).problems
    assert (step, said.split(":")[1]) == (1, " UnknownPointerError")


class Strange(Notes):
    """Remembers what JSON has no form for, or cannot be started."""

    def __init__(self, kept):
        self.kept = kept

    def start(self, problem):
        if self.kept is None:
            raise RuntimeError("no")
        return SimpleNamespace(call=lambda name, argument: argument, state=lambda: self.kept)


@pytest.mark.parametrize("kept", [{"a": float("nan")}, {"a": b"x"}, {"a": {1}}, {(1, 2): 3}, None])
def test_a_state_that_json_does_not_know_is_shown_as_python_shows_it(show, kept):
    steps = (Step(StepKind.INPUT, "a"), Step(StepKind.CALL, "b", "note"), Step(StepKind.OBSERVATION, "b"))
    browser = show(Trajectory(steps), [Strange(kept)])
    go_to(browser, 2)
    shown = browser.run("return document.getElementById('tools').innerText")
    assert ("not run again: ToolFaultError" if kept is None else repr(next(iter(kept)))[:2].strip("'(")) in shown


@pytest.mark.parametrize("text", ["a" * 200_000, "\ufffd" * 20_000, "\u202e" * 100_000])
def test_a_long_text_without_a_space_is_shown_too(show, text):
    browser = show(Trajectory((Step(StepKind.INPUT, text),)), [])
    assert browser.run("return document.querySelectorAll('.line').length") > 5


def test_the_command_shows_a_row_of_a_dataset_and_names_what_is_not_there(trace, chromium, tmp_path):
    build_folder(evaluation_sets(load_task("addition"), "local", [4], [], 3), tmp_path / "rows")
    words = [
        "--dataset",
        tmp_path / "rows",
        "--config",
        "length_4",
        "--split",
        "test",
        "--output",
        tmp_path / "t.html",
    ]
    assert "open it in a browser" in run_script("recipes/trace.py", *words, "--row", 2)
    chromium.open(tmp_path / "t.html")
    assert chromium.run("return [document.title, tools.length]") == ["addition/length_4/0/test/2", 1]
    with pytest.raises(ValueError, match="has no row 3: its rows are 0 to 2"):
        run_script("recipes/trace.py", *words, "--row", 3)
    with pytest.raises(ValueError, match="give --dataset, --config and --split"):
        run_script("recipes/trace.py", "--dataset", tmp_path / "none")
    with pytest.raises(UnknownToolError, match="no tool is named 'abacus'"):
        run_script("recipes/trace.py", *words, "--tools", '[{"name": "abacus"}]')
    with pytest.raises(UnknownTaskError, match="no task is named 'chess'"):
        trace.task_specs("org/data", "chess/length_4/0/test/2", None)


def test_the_command_shows_a_row_of_a_recorded_session(trace, chromium, tmp_path, tokenizer, model):
    """Of a model that has learned nothing, so that its tool ends the row by an error, or the row is cut."""
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    file, prompts = (
        tmp_path / "session.jsonl",
        [Renderer(tokenizer).problem(text) for text in ("12+3=", "98765+4321=")],
    )
    session = Session.start(model, prompts, tokenizer=tokenizer, temperature=1.0, record=file)
    session.run(300, log_probs=True)
    words = ["--recording", file, "--model", tmp_path / "model", "--output", tmp_path / "r.html"]
    recording = read_recording(file)
    for row, (ids, own) in enumerate(zip(recording.ids, recording.log_probs)):
        run_script("recipes/trace.py", *words, "--row", row)
        chromium.open(tmp_path / "r.html")
        shown, scores, problems, last = chromium.run("return [data.ids, data.own, data.problems, count - 1]")
        inside = [at for at, token in enumerate(ids) if token != tokenizer.eos_token_id]
        assert shown == [ids[at] for at in inside]
        assert scores == [None if isnan(own[at]) else round(own[at], 3) for at in inside]
        error = session.rows[row].error
        assert [said.partition(": ")[2] for _, said in problems] == ([] if error is None else [error])
        assert {step for step, _ in problems} <= {last}
    with pytest.raises(ValueError, match="has no row 2: its rows are 0 to 1"):
        run_script("recipes/trace.py", *words, "--row", 2)
    with pytest.raises(RecordingError, match="is no recording"):
        run_script("recipes/trace.py", *words[2:], "--recording", tmp_path / "model" / "config.json")


@pytest.mark.slow
def test_a_hundred_thousand_steps_are_one_small_page_that_draws_only_what_is_seen(show, trace, tmp_path):
    """What the clock says is shown, and never asserted."""
    trajectory, tools = solved("addition", "9" * 2900 + "+" + "4" * 2900 + "=")
    assert len(trajectory.steps) > 100_000
    rng = random.Random(0)
    own = [
        nan if s.kind in (StepKind.INPUT, StepKind.OBSERVATION) else -rng.expovariate(20)
        for s in trajectory.steps
        for _ in trace.units(s)
    ]
    browser = show(trajectory, tools, log_probabilities=[(value, value) for value in own])
    size = (tmp_path / "trace.html").stat().st_size
    assert size <= 30_000_000
    reads = [n for n, s in enumerate(trajectory.steps) if s.name == "read_2"]
    searches = {"read_2": len(reads), "9": sum(s.text.count("9") for s in trajectory.steps), "nowhere": 0}
    for text, number in searches.items():
        assert find(browser, text) == (f"{number:,}" if number else "no match")
    for step in (0, 50_000, len(trajectory.steps) - 1):
        go_to(browser, step)
        assert chosen(browser) == step
        assert browser.run("return document.querySelectorAll('*').length") < 8_000
    paint, drawn, searched = browser.run(FIGURES)
    warnings.warn(  # which pytest shows in its summary, in whatever process the test ran
        f"{len(trajectory.steps):,} steps: {size / 1e6:.1f} MB, first paint after {paint:.0f} ms, steps drawn after "
        f"{drawn:.0f} ms, slowest search {searched:.0f} ms",
        stacklevel=1,
    )
    wanted = set(random.Random(1).sample(range(len(trajectory.steps)), 20))
    for step, session in enumerate(at_work(trajectory, tools[0])):
        if step in wanted:
            go_to(browser, step)
            captions = browser.run(
                "return [...document.querySelectorAll('.strip figcaption')].map((caption) => caption.textContent)"
            )
            ends = {-1: "before the first cell", session.view().stop: "behind the last cell"}
            assert captions == [
                f"pointer {n} at place {at:,}, {ends.get(at) or f'over {session.cell(at)}'}"
                for n, at in enumerate(session.pointers, 1)
            ]
