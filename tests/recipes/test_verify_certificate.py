"""The second opinion on a proof encloses what float32 computes, and names whatever is wrong with a certificate."""

import json
import sys
from hashlib import sha256
from typing import NamedTuple

import numba
import numpy as np
import pytest
import torch
from conftest import import_recipe, random_model

from dataset_builders.catalog import load_task
from hf_toolssm.evaluation.certification.graph import build_graph
from hf_toolssm.evaluation.report import weights_digest
from hf_toolssm.models.architectures import load_model
from hf_toolssm.ops.cpu_kernels import LOG2E, exp2_of_nonpositive, sigmoid, softplus
from hf_toolssm.ops.fused_step import FusedState, FusedStep
from hf_toolssm.ops.memory_arrays import NO_MEMORIES
from hf_toolssm.protocol.rule import END, Place, Rule


@pytest.fixture(scope="module")
def checker():
    """recipes/verify_certificate.py as a module."""
    return import_recipe("verify_certificate")


@pytest.fixture(scope="module")
def bounds(checker):
    return sys.modules["float32_steps"]


@pytest.fixture(scope="module")
def folder(tokenizer, specs, tmp_path_factory):
    """A random model's."""
    path = tmp_path_factory.mktemp("model")
    model = random_model(tokenizer, specs)
    for layer in model.backbone.layers:
        layer.mixer.dt_proj.bias.data += 2  # every state decays by far more than what the kernels round
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def real_step(folder):
    """Feeds one token to a state, in place, as the model decodes."""
    model = load_model(str(folder)).eval()
    fused, one = FusedStep(model), np.ones(1, np.int64)
    config, zeros = model.config, lambda *shape: np.zeros((1, *shape), np.float32)

    def begin():
        layers, d = config.num_hidden_layers, config.intermediate_size
        conv, recurrent = zeros(layers, config.conv_kernel, d), zeros(layers, config.state_size, d)
        return FusedState(conv, recurrent, zeros(config.vocab_size), np.zeros(1, np.int64))

    def feed(state, token):
        fused(np.array([[token]]), np.ones((1, 1), bool), one, one, NO_MEMORIES, state)

    return begin, feed


def layer_weights(model, at):
    prefix = f"layers.{at}."
    return {name.removeprefix(prefix): array for name, array in model.weights.items() if name.startswith(prefix)}


def states_after(step, box):
    """The low and the high ends (N, n, d) of what boxes of all states lead to."""
    after = [step.state(s, type(box)(box.low[:, s], box.high[:, s]))[0] for s in range(step.states)]
    return tuple(np.stack([getattr(each, end) for each in after], 1) for end in ("low", "high"))


def test_boxes_of_functions_enclose_what_the_kernels_compute(bounds):
    @numba.njit(fastmath=True)
    def compute(values, rate, opened, positive, decayed):
        for i in range(values.shape[0]):
            opened[i] = values[i] * sigmoid(values[i])
            positive[i] = softplus(values[i])
            decayed[i] = exp2_of_nonpositive(positive[i] * rate)

    rng = np.random.default_rng(0)
    spread = rng.standard_normal(100_000) * 10 ** rng.uniform(-20, 6, 100_000)
    values = np.concatenate([np.linspace(-100, 100, 100_001), spread, [0.0]]).astype(np.float32)
    a_log = np.float32(0.7)
    opened, positive, decayed = np.empty((3, len(values)), np.float32)
    compute(values, -LOG2E * np.exp(a_log), opened, positive, decayed)
    points = bounds.Box(values.astype(float), values.astype(float))
    of_positive = bounds.Box(positive.astype(float), positive.astype(float))
    found = (bounds.silu(points), bounds.softplus(points), bounds.decay(of_positive, np.exp(float(a_log))))
    for box, computed in zip(found, (opened, positive, decayed)):
        assert ((box.low <= computed) & (computed <= box.high)).all()


def test_a_box_holds_the_function_of_every_value_between_its_ends(bounds):
    rng = np.random.default_rng(0)
    low = rng.uniform(-6, 4, 2000)
    box = bounds.Box(low, low + 10 ** rng.uniform(-4, 1, 2000))
    between = np.clip(np.linspace(box.low, box.high, 50), box.low, box.high)
    opened, positive = bounds.silu(box), bounds.softplus(box)
    assert (opened.low <= between / (1 + np.exp(-between))).all()
    assert (between / (1 + np.exp(-between)) <= opened.high).all()
    assert ((positive.low <= np.logaddexp(0, between)) & (np.logaddexp(0, between) <= positive.high)).all()


def test_a_matrix_times_a_box_holds_every_product(bounds):
    rng = np.random.default_rng(0)
    matrix, middle = rng.standard_normal((5, 7)), rng.standard_normal((3, 7))
    radius = rng.uniform(0, 1, (3, 7))
    box = bounds.matrix_times(matrix, bounds.Box(middle - radius, middle + radius))
    products = (middle + radius * rng.choice([-1, 1], (500, 3, 7))) @ matrix.T
    assert ((products >= box.low - 1e-12) & (products <= box.high + 1e-12)).all()


@pytest.mark.parametrize("more", [0.0, 1e9])
def test_what_may_overflow_is_not_bounded(bounds, more):
    values = np.array([1.0, np.nan if more == 0 else more * 1e9])
    with pytest.raises(bounds.VerificationError, match="larger than 1e10"):
        bounds.widened(values, values, 0)


@pytest.mark.parametrize("j", [5, 60])
def test_steps_of_a_real_run_stay_inside_the_bounds(checker, bounds, folder, real_step, j):
    """A run that goes round in seven tokens. With j = 5 it comes into each context again and again; with j = 60 every
    token is a context of its own, and the bounds are those of float32 alone."""
    model, rng = checker.Model(folder), np.random.default_rng(j)
    begin, feed = real_step
    state, last, contexts, edges, visits = begin(), (-1,) * j, {}, set(), []
    at = contexts.setdefault(last, 0)
    visits.append((at, state.recurrent[0].copy(), state.logits[0].copy()))
    for token in np.tile(rng.integers(0, 12, 7), 7):
        feed(state, token)
        last = (*last, int(token))[-j:]
        to = contexts.setdefault(last, len(contexts))
        edges.add((to, at))
        at = to
        visits.append((at, state.recurrent[0].copy(), state.logits[0].copy()))
    targets, sources = np.array(sorted(edges)).T
    firsts = np.flatnonzero(np.diff(targets, prepend=0))
    graph = checker.Graph([(context, -1) for context in contexts], sources, targets, firsts)

    embedded = model.weights["embeddings.weight"][[context[-1] for context in contexts]]
    embedded[0] = 0
    residual = bounds.Residual(embedded, model.epsilon)
    for layer in range(model.layers):
        states = [[recurrent[layer] for at, recurrent, _ in visits if at == one] for one in range(len(contexts))]
        box = bounds.Box(*(np.stack([end(each, axis=0) for each in states]).astype(float) for end in (np.min, np.max)))
        step = bounds.Step(layer_weights(model, layer), residual, graph.before)
        low, high = states_after(step, box)
        for one in range(1, len(contexts)):
            for each in states[one]:
                assert (low[one] <= each).all()
                assert (each <= high[one]).all()
        if j == 60:  # nor are they loose
            assert np.median(high - low) < 1e-3 * abs(box.high).max()
        residual.add(layer_weights(model, layer)["mixer.out_proj.weight"], step.output())
    head, norm = model.weights["lm_head.weight"], model.weights["norm_f.weight"]
    margins = residual.normed_times((head[3] - head) * norm, (abs(head[3]) + abs(head)) * abs(norm))
    for at, _, logits in visits[1:]:
        real = logits[3].astype(float) - logits
        assert ((margins.low[at] <= real) & (real <= margins.high[at])).all()


class SmallRule(Rule):
    """Two prompts of one token, behind each of which the tokens are right that a model writes of itself."""

    start = ()

    def __init__(self, written):
        self.written = written

    def place(self, state):
        if state == ():
            return Place(None, {prompt: ((prompt,),) for prompt in self.written})
        prompt, *before = state
        right = self.written[prompt][len(before)]
        return Place(right, {right: () if right == END or len(before) == 2 else ((*state, right),)})


class Proved(NamedTuple):
    """A certificate in memory, and what it takes to write it."""

    claim: dict
    arrays: dict
    rule: SmallRule


@pytest.fixture(scope="module")
def proved(checker, bounds, folder, tokenizer, real_step):
    """What a proof of the small rule holds: with no loop, the boxes follow each other from the beginning."""
    model, (begin, feed), written = checker.Model(folder), real_step, {}
    for prompt in "12":
        state, written[prompt] = begin(), []
        token = model.ids[prompt]
        for _ in range(3):
            feed(state, token)
            token = int(state.best[0])
            written[prompt].append(END if token == tokenizer.eos_token_id else tokenizer.convert_ids_to_tokens(token))
    graph = checker.explore(SmallRule(written), model.ids, 3)
    embedded = model.weights["embeddings.weight"][[tokens[-1] for tokens, _ in graph.contexts]]
    embedded[0] = 0
    d, n = model.weights["layers.0.mixer.A_log"].shape
    boxes = [bounds.Box(*np.zeros((2, len(graph.contexts), n, d))) for _ in range(model.layers)]
    for _ in range(10):  # more than layers and tokens: nothing changes any more
        residual = bounds.Residual(embedded, model.epsilon)
        for at, box in enumerate(boxes):
            weights = layer_weights(model, at)
            step = bounds.Step(weights, residual, graph.before)
            ends = zip(states_after(step, box), (-np.inf, np.inf))
            low, high = (
                np.nextafter(end.astype(np.float32), np.float32(beyond)).astype(float) for end, beyond in ends
            )
            residual.add(weights["mixer.out_proj.weight"], step.output())
            low[0] = high[0] = 0
            boxes[at] = bounds.Box(low, high)
    arrays = {f"low_{at}": box.low.astype(np.float32) for at, box in enumerate(boxes)}
    arrays |= {f"high_{at}": box.high.astype(np.float32) for at, box in enumerate(boxes)}
    arrays["tokens"] = np.array([tokens for tokens, _ in graph.contexts], np.int32)
    arrays["right"] = np.array([right for _, right in graph.contexts], np.int32)
    claim = {"task": "small", "variant": "", "j": 3, "weights": model.digest, "boxes": "boxes.npz", "margin": 1e-6}
    return Proved(claim, arrays, SmallRule(written))


@pytest.fixture
def said(checker, folder, tmp_path, monkeypatch, capsys):
    """What the command says of a certificate, and its exit status."""

    def run(claim, arrays, rule, model=folder, sha=None):
        np.savez(tmp_path / "boxes.npz", **arrays)
        found = sha256((tmp_path / "boxes.npz").read_bytes()).hexdigest()
        path = tmp_path / "certificate.json"
        path.write_text(json.dumps({**claim, "boxes_sha256": sha or found}), encoding="utf-8")
        task = type("Task", (), {"rule": lambda self, variant: rule})()
        monkeypatch.setattr(checker, "load_task", lambda name, beside: task)
        return command(checker, monkeypatch, capsys, path, model)

    return run


def command(checker, monkeypatch, capsys, path, model):
    monkeypatch.setattr(sys, "argv", ["verify_certificate.py", "--model", str(model), str(path)])
    try:
        checker.main()
    except SystemExit as end:  # a text is printed, and the status is 1
        return int(end.code != 0), str(end.code)
    return 0, capsys.readouterr().out


def test_a_proof_is_verified(said, proved):
    status, text = said(*proved)
    assert (status, text[:37]) == (0, "verified: 7 contexts, 6 edges, smalle")
    assert "(task small, j = 3)" in text


def test_the_digest_is_that_of_the_weights_as_they_are_loaded(checker, folder):
    assert checker.Model(folder).digest == weights_digest(load_model(str(folder)))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"weights": "0" * 64}, "are not those of the certificate"),
        ({"margin": 1e3}, "and not 1000 as the certificate says"),
        ({"margin": float("nan")}, "and not nan as the certificate says"),
        ({"j": 2}, "arrays of another size"),
        ({"j": 0}, "j is at least 1"),
        ({"j": "3"}, "no right 'j'"),
        ({"margin": None}, "no right 'margin'"),
        ({"boxes": "../boxes.npz"}, "the name of a file beside it"),
        ({"boxes": "none.npz"}, "cannot be read"),
        ({"boxes": "no\0ne.npz"}, "cannot be read"),
    ],
)
def test_a_wrong_claim_is_named(said, proved, fields, reason):
    status, text = said({**proved.claim, **fields}, proved.arrays, proved.rule)
    assert status == 1
    assert reason in text
    assert len(text.splitlines()) == 1


def test_boxes_that_were_changed_are_named(said, proved):
    status, text = said(*proved, sha="0" * 64)
    assert (status, text) == (1, "boxes.npz was changed after the certificate was written")


def test_contexts_that_are_missing_or_too_many_are_named(said, proved):
    fewer = {name: array[:-1] for name, array in proved.arrays.items()}
    status, text = said(proved.claim, fewer, proved.rule)
    assert status == 1
    assert "a context that the rule allows is missing: after " in text
    again = {name: np.concatenate([array, array[-1:]]) for name, array in proved.arrays.items()}
    status, text = said(proved.claim, again, proved.rule)
    assert (status, text) == (1, "1 contexts are there more than once")
    again["tokens"][-1] = 2
    status, text = said(proved.claim, again, proved.rule)
    assert status == 1
    assert "a context that the rule does not allow: after " in text


@pytest.mark.parametrize(
    ("end", "at", "value", "reason"),
    [
        ("high_0", 2, -1e3, "the boxes of layer 0 hold NaN, infinity or a low end above the high one"),
        ("high_1", 3, np.inf, "the boxes of layer 1 hold NaN, infinity"),
        ("low_1", 3, np.nan, "the boxes of layer 1 hold NaN, infinity"),
        ("high_1", 3, 1e30, "larger than 1e10"),
        ("high_0", 0, 0.1, "does not hold the zero state"),
    ],
)
def test_boxes_that_say_nothing_are_named(said, proved, end, at, value, reason):
    arrays = {name: array.copy() for name, array in proved.arrays.items()}
    arrays[end][at, 2, 5] = value
    if at == 0:
        arrays["low_0"][at, 2, 5] = value
    status, text = said(proved.claim, arrays, proved.rule)
    assert status == 1
    assert reason in text


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_box_that_a_step_leaves_is_named(said, proved, layer, end):
    arrays = {name: array.copy() for name, array in proved.arrays.items()}
    middle = (arrays[f"low_{layer}"][4, 0, 0] + arrays[f"high_{layer}"][4, 0, 0]) / 2
    arrays[f"{end}_{layer}"][4, 0, 0] = middle
    status, text = said(proved.claim, arrays, proved.rule)
    assert status == 1
    assert f"a box of layer {layer} is left by " in text
    assert " in one step: after " in text


def test_at_most_ten_reasons_are_said_one_by_one(said, proved):
    arrays = {name: np.zeros_like(array) if "_" in name else array for name, array in proved.arrays.items()}
    status, text = said(proved.claim, arrays, proved.rule)
    assert status == 1
    assert len(text.splitlines()) == 11
    assert "more like these" in text.splitlines()[-1]


def test_a_token_that_is_not_chosen_is_no_right_one(said, proved):
    prompt = min(proved.rule.written)
    wrong = "7" if proved.rule.written[prompt][2] == "0" else "0"
    written = {**proved.rule.written, prompt: [*proved.rule.written[prompt][:2], wrong]}
    status, text = said(proved.claim, proved.arrays, SmallRule(written))
    assert status == 1
    assert f"where {wrong} is right" in text


def test_a_margin_that_is_not_positive_is_named(said, proved, checker, folder):
    prompt = min(proved.rule.written)
    was = proved.rule.written[prompt][2]
    wrong, ids = ("7" if was == "0" else "0"), checker.Model(folder).ids
    rule = SmallRule({**proved.rule.written, prompt: [*proved.rule.written[prompt][:2], wrong]})
    before = [ids[token] for token in (prompt, *proved.rule.written[prompt][:2])]
    arrays = {**proved.arrays, "right": proved.arrays["right"].copy()}
    arrays["right"][(arrays["tokens"] == before).all(1)] = ids[wrong]
    status, text = said(proved.claim, arrays, rule)
    assert status == 1
    assert " may be chosen, with a margin of -" in text
    assert f"where {wrong} is right" in text


def test_two_right_tokens_are_named(said, proved):
    class Torn(SmallRule):
        def place(self, state):
            if state == ():
                return Place(None, {"1": (("1",), ("one",))})
            return Place("0" if state == ("one",) else "7", {"0": (), "7": ()})

    status, text = said(proved.claim, proved.arrays, Torn({}))
    assert status == 1
    assert "7 and 0 are both right after 1" in text or "0 and 7 are both right after 1" in text


def test_a_context_is_as_short_as_its_place_keeps(checker):
    class Loop(Rule):
        start = 0

        def place(self, state):
            return Place("b" if state == 2 else None, {"a": (1,), "b": (2,)}, keeps=1 if state == 1 else None)

    graph = checker.explore(Loop(), {"a": 7, "b": 8}, 3)
    beginnings = {((-1, -1, -1), -1), ((-1, -1, 7), -1), ((-1, -1, 8), 8)}
    assert graph.contexts[0] == ((-1, -1, -1), -1)
    assert {*graph.contexts} == beginnings | {((-1, 7, 8), 8), ((-1, 8, 8), 8), ((7, 8, 8), 8), ((8, 8, 8), 8)}
    assert len(graph.sources) == 14  # two from each


def test_tokens_that_are_alike_are_told_apart_only_where_they_are_new(checker):
    class Digits(Rule):
        start, alike, exact = 0, {"2": "1"}, 2

        def place(self, state):
            return Place(None, {"1": (0,), "2": (0,)})

    graph = checker.explore(Digits(), {"1": 1, "2": 2}, 3)
    full = {((1, *new), -1) for new in ((1, 1), (1, 2), (2, 1), (2, 2))}
    assert {context for context in graph.contexts if context[0][0] != -1} == full
    assert len(graph.contexts) == 1 + 2 + 4 + 4


@pytest.mark.parametrize(("name", "variant"), [("addition", "local"), ("unary_addition", "tape")])
def test_the_prover_and_the_second_opinion_explore_the_same_graph(checker, name, variant):
    rule = load_task(name).rule(variant)
    proved = build_graph(rule, 8)
    ids = {
        token: at for at, token in enumerate({token for node in proved.nodes for token in (*node.tokens, node.right)})
    }

    def numbered(node):
        tokens = [-1] * (8 - len(node.tokens)) + [ids[token] for token in node.tokens]
        return tuple(tokens), -1 if node.right is None else ids[node.right]

    graph = checker.explore(rule, ids, 8)
    assert {*graph.contexts} == {numbered(node) for node in proved.nodes}
    between = {(graph.contexts[a], graph.contexts[b]) for a, b in zip(graph.sources, graph.targets)}
    assert between == {(numbered(proved.nodes[a]), numbered(proved.nodes[b])) for a, b in proved.edges}


def test_a_rule_of_other_tokens_is_named(said, proved):
    status, text = said(proved.claim, proved.arrays, SmallRule({"unheard of": ["0"] * 3}))
    assert (status, "no token 'unheard of' of the rule" in text) == (1, True)


def test_a_state_that_need_not_decay_is_named(said, proved, checker, folder, tokenizer, tmp_path):
    model = load_model(str(folder))
    with torch.no_grad():
        model.backbone.layers[1].mixer.A_log[3, 2] = -20
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    claim = {**proved.claim, "weights": checker.Model(tmp_path / "model").digest}
    status, text = said(claim, proved.arrays, proved.rule, model=tmp_path / "model")
    assert status == 1
    assert "a state of layer 1 need not decay: after " in text


@pytest.mark.parametrize("content", ["", "[1]", '{"task": "palindrome"}', "[" * 100_000, "\0"])
def test_what_is_no_certificate_is_said_in_a_line(checker, folder, tmp_path, monkeypatch, capsys, content):
    path = tmp_path / "certificate.json"
    path.write_text(content, encoding="utf-8")
    for each in (path, tmp_path / "none.json", tmp_path):
        status, text = command(checker, monkeypatch, capsys, each, folder)
        assert (status, len(text.splitlines())) == (1, 1)


def test_a_folder_without_a_plain_mamba_is_said_in_a_line(said, proved, folder, tmp_path):
    status, text = said(*proved, model=tmp_path)
    assert (status, "holds no config.json" in text) == (1, True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for fields, reason in (
        ({"use_bias": True}, "no plain Mamba"),
        ({"model_type": "falcon_mamba"}, "no plain Mamba"),
        ({"num_hidden_layers": 3}, "is missing, unknown or of another size"),
        ({"num_hidden_layers": "many"}, "save the model again"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")
        status, text = said(*proved, model=tmp_path)
        assert (status, len(text.splitlines())) == (1, 1)
        assert reason in text
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    status, text = said(*proved, model=tmp_path)
    assert (status, "save the model again" in text) == (1, True)


def test_a_file_that_is_no_archive_is_said_in_a_line(checker, proved, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "boxes.npz").write_bytes(b"PK\3\4 nothing")
    claim = {**proved.claim, "boxes_sha256": sha256(b"PK\3\4 nothing").hexdigest()}
    (tmp_path / "certificate.json").write_text(json.dumps(claim), encoding="utf-8")
    status, text = command(checker, monkeypatch, capsys, tmp_path / "certificate.json", folder)
    assert (status, "cannot be read, certify the model again" in text) == (1, True)
    assert len(text.splitlines()) == 1
