"""Checks a proof that a small Mamba follows its task's rule at every length, in code that the prover has no part in.

    python recipes/verify_certificate.py --model outputs/palindrome outputs/palindrome/certificate.json

builds every context that the rule allows from the rule alone. From the certificate it takes one box of recurrent
states for each, and shows that one step of the model leads from the boxes before a context into its own, so that no
run ever leaves them; and that in them the right token's logit is the largest.
"""

import argparse
import hashlib
import io
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from float32_steps import LARGEST_WEIGHT, Box, Residual, Step, VerificationError
from safetensors.numpy import load
from transformers import AutoTokenizer

from dataset_builders.catalog import load_task
from hf_toolssm.errors import ToolSSMError
from hf_toolssm.files import escape_unprintable
from hf_toolssm.protocol.rule import END, Rule

FIELDS = {**dict.fromkeys(("task", "variant", "weights", "boxes", "boxes_sha256"), str), "j": int, "margin": float}
SHOWN = 10
"""Reasons that are printed one by one."""


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description="Checks a proof that a model follows its task's rule.")
    parser.add_argument("certificate", type=Path, help="the JSON file, beside which its boxes lie")
    parser.add_argument("--model", type=Path, required=True, help="the folder of the model that it speaks of")
    options = parser.parse_args()
    try:
        result, reasons = verify(options.certificate, options.model)
    except ToolSSMError as error:
        result, reasons = "", [one_line(error)]
    if not reasons:
        print(result)
        return
    more = [f"and {len(reasons) - SHOWN:,} more like these"] if len(reasons) > SHOWN else []
    sys.exit("\n".join([*reasons[:SHOWN], *more]))


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def verify(path: Path, folder: Path) -> tuple[str, list[str]]:
    """What is verified, and all reasons why it is not.

    Raises:
        VerificationError: there is nothing to check.
        ToolSSMError: the task is unknown, or has no rule.
    """
    claim = read_claim(path)
    model, packed = Model(folder), read_bytes(path.parent / claim["boxes"])
    reasons = []
    if model.digest != claim["weights"]:
        reasons.append(f"the weights in {folder} are not those of the certificate")
    if hashlib.sha256(packed).hexdigest() != claim["boxes_sha256"]:
        reasons.append(f"{claim['boxes']} was changed after the certificate was written")
    if reasons:
        return "", reasons
    tokens, right, boxes = model.read_boxes(packed, claim)
    graph = explore(load_task(claim["task"], folder).rule(claim["variant"]), model.ids, claim["j"])
    rows = {(tuple(row), int(one)): at for at, (row, one) in enumerate(zip(tokens.tolist(), right))}
    named = Names(model.ids)
    reasons = differences(graph, rows, len(right), named)
    if reasons:
        return "", reasons
    order = [rows[context] for context in graph.contexts]
    margin = np.nan
    try:
        margin = check(model, graph, [Box(low[order], high[order]) for low, high in boxes], named, reasons)
    except VerificationError:  # where a box is left, what comes behind it may be of any size
        if not reasons:
            raise
    if not reasons and not margin >= claim["margin"]:  # so written, NaN is refused as well
        reasons.append(f"the smallest margin is {margin:.4g}, and not {claim['margin']:.4g} as the certificate says")
    found = f"{len(graph.contexts):,} contexts, {len(graph.sources):,} edges, smallest margin {margin:.3f}"
    return f"verified: {found} (task {claim['task']}, j = {claim['j']})", reasons


@contextmanager
def readable(name: Path | str, advice: str) -> Iterator[None]:
    """Libraries that read files raise errors of their own, and plain ones: any becomes a line with what to do."""
    try:
        yield
    except Exception as error:
        raise VerificationError(f"{name} cannot be read, {advice}: {one_line(error)}") from error


def read_bytes(path: Path) -> bytes:
    with readable(path, "give a certificate with its boxes"):
        return path.read_bytes()


def read_claim(path: Path) -> dict[str, Any]:
    """What a certificate says."""
    try:
        claim = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{path} is no JSON: give the certificate that recipes/certify.py wrote") from error
    for name, kind in FIELDS.items():
        value = claim.get(name) if isinstance(claim, dict) else None
        if type(value) not in (kind, int if kind is float else kind):
            raise VerificationError(f"{path} has no right {name!r}: certify the model again with recipes/certify.py")
    if claim["j"] < 1 or Path(claim["boxes"]).name != claim["boxes"]:
        raise VerificationError(f"{path}: j is at least 1, and boxes the name of a file beside it; certify again")
    return claim


class Names:
    """Contexts and tokens, as a reason names them."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._texts = {at: text for text, at in ids.items()}

    def token(self, token: int) -> str:
        return self._texts.get(token, f"token {token}")

    def context(self, context: tuple[tuple[int, ...], int]) -> str:
        tokens, right = context
        said = [self.token(token) for token in tokens if token != -1]
        asked = f", where {self.token(right)} is right" if right != -1 else ""
        return (f"after {' '.join(said)}" if said else "at the beginning") + asked


def differences(
    graph: "Graph", rows: Mapping[tuple[tuple[int, ...], int], int], count: int, named: Names
) -> list[str]:
    """Why the certificate's contexts are not the rule's, or the rule contradicts itself within the last tokens."""
    missing, more = [context for context in graph.contexts if context not in rows], rows.keys() - set(graph.contexts)
    found = [f"a context that the rule allows is missing: {named.context(context)}" for context in missing]
    found += [f"a context that the rule does not allow: {named.context(context)}" for context in sorted(more)]
    if count != len(rows):
        found.append(f"{count - len(rows):,} contexts are there more than once")
    right = defaultdict[tuple[int, ...], list[str]](list)
    for tokens, one in graph.contexts:
        if one != -1:
            right[tokens].append(named.token(one))
    for tokens, several in right.items():
        if len(several) > 1:
            found.append(f"{' and '.join(several)} are both right {named.context((tokens, -1))}")
    if graph.contexts[0][1] != -1:
        found.append("the rule asks for a token before the first of a prompt, of which nothing can be proved")
    return found


def check(model: "Model", graph: "Graph", boxes: Sequence[Box], named: Names, reasons: list[str]) -> float:
    """The smallest margin.

    Args:
        boxes: of each layer, those of all contexts (N, n, d) in their order.
        reasons: to these is added why boxes and margins are not what they have to be.
    """
    last, right = np.array([tokens[-1] for tokens, _ in graph.contexts]), np.array([one for _, one in graph.contexts])
    embedded = model.weights["embeddings.weight"][last]
    embedded[0] = 0  # no token
    residual = Residual(embedded, model.epsilon)
    for at, box in enumerate(boxes):
        # A NaN would make none of these true.
        if not (np.isfinite(box.low) & np.isfinite(box.high) & (box.low <= box.high)).all():
            reasons.append(f"the boxes of layer {at} hold NaN, infinity or a low end above the high one")
            return np.nan
        if not ((box.low[0] <= 0) & (box.high[0] >= 0)).all():
            reasons.append(f"the box of layer {at} does not hold the zero state at the beginning")
        prefix = f"layers.{at}."
        weights = {
            name.removeprefix(prefix): array for name, array in model.weights.items() if name.startswith(prefix)
        }
        step, beyond, factor = Step(weights, residual, graph.before), np.zeros(len(last)), np.zeros(len(last))
        for s in range(step.states):
            held = Box(box.low[:, s].astype(float), box.high[:, s].astype(float))
            after, kept = step.state(s, held)
            beyond = np.maximum(beyond, np.maximum(held.low - after.low, after.high - held.high).max(1))
            factor = np.maximum(factor, kept.max(1))
        # A NaN would make none of these true.
        for context in np.flatnonzero(~(beyond[1:] <= 0)) + 1:
            by, where = beyond[context], named.context(graph.contexts[context])
            reasons.append(f"a box of layer {at} is left by {by:.2g} in one step: {where}")
        for context in np.flatnonzero(~(factor[1:] < 1)) + 1:
            reasons.append(f"a state of layer {at} need not decay: {named.context(graph.contexts[context])}")
        residual.add(weights["mixer.out_proj.weight"], step.output())

    head, norm, smallest = model.weights["lm_head.weight"], model.weights["norm_f.weight"], np.inf
    for one in np.unique(right[right >= 0]):
        # Both logits are rounded, each by what it sums.
        margins = residual.normed_times((head[one] - head) * norm, (abs(head[one]) + abs(head)) * abs(norm)).low
        margins[:, one] = np.inf
        asked = np.flatnonzero(right == one)
        smallest = min(smallest, margins[asked].min())
        for context in asked[~(margins[asked] > 0).all(1)]:
            margin, other = margins[context].min(), named.token(int(margins[context].argmin()))
            reasons.append(
                f"{other} may be chosen, with a margin of {margin:.4g}: {named.context(graph.contexts[context])}"
            )
    return float(smallest)


class Graph(NamedTuple):
    """The contexts, from the beginning on, as their last tokens and what is right there; and the edges, sorted by
    where they lead, with the place of the first into each context but the beginning."""

    contexts: list[tuple[tuple[int, ...], int]]
    sources: np.ndarray
    targets: np.ndarray
    firsts: np.ndarray

    def before(self, box: Box) -> Box:
        """What holds at any context that may stand before one (N, ...); at the beginning it is zero."""
        low, high = np.zeros_like(box.low), np.zeros_like(box.high)
        low[1:] = np.minimum.reduceat(box.low[self.sources], self.firsts)
        high[1:] = np.maximum.reduceat(box.high[self.sources], self.firsts)
        return Box(low, high)


def explore(rule: Rule, ids: Mapping[str, int], j: int) -> Graph:
    """Every context of j tokens that a rule allows; -1 where there is no token, or nothing is asked."""

    def number(token: str | None) -> int:
        if token is not None and token not in ids:
            raise VerificationError(f"the tokenizer has no token {token!r} of the rule: is it another task's model?")
        return -1 if token is None else ids[token]

    if rule.exact < 1:
        raise VerificationError("the rule does not tell the last token from others, and so no step can be bounded")
    alike = {number(token): number(other) for token, other in rule.alike.items()}

    def kept(tokens: tuple[int, ...], last: int | None) -> tuple[int, ...]:
        # What is forgotten is nothing that is proved: a context stands for every run that comes into it.
        tokens = (*(alike.get(token, token) for token in tokens[: -rule.exact]), *tokens[-rule.exact :])
        if last is None or last >= j:
            return tokens
        if last < 1:
            raise VerificationError("the rule forgets the last token, without which no step can be bounded")
        return (*(-1,) * (j - last), *tokens[-last:])

    place = cache(rule.place)
    contexts, edges = dict[tuple[tuple[int, ...], int], int](), set[tuple[int, int]]()
    start = (rule.start, (-1,) * j)
    waiting, seen = [start], {start}
    while waiting:
        state, tokens = waiting.pop()
        here = place(state)
        at = contexts.setdefault((tokens, number(here.right)), len(contexts))
        for token, ends in here.follows.items():
            longest = (*tokens, number(token))[-j:]
            for end in ends:
                after = kept(longest, place(end).keeps)
                to = contexts.setdefault((after, number(place(end).right)), len(contexts))
                edges.add((to, at))
                if (end, after) not in seen:
                    seen.add((end, after))
                    waiting.append((end, after))
    targets, sources = np.array(sorted(edges), int).reshape(-1, 2).T
    return Graph(list(contexts), sources, targets, np.flatnonzero(np.diff(targets, prepend=0)))


class Model:
    """A model's folder: weights in float64, by their names without what all share, and what text each token has."""

    def __init__(self, folder: Path) -> None:
        needed = {name: folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")}
        for name, path in needed.items():
            if not path.is_file():
                raise VerificationError(f"{folder} holds no {name}: give the folder of the model that was certified")
        with readable(folder, "save the model again"):
            config = json.loads(needed["config.json"].read_text(encoding="utf-8"))
            weights = load(needed["model.safetensors"].read_bytes())
            self.layers, self.epsilon = int(config["num_hidden_layers"]), float(config["layer_norm_epsilon"])
        plain = {"hidden_act": "silu", "use_bias": False, "use_conv_bias": True}
        plain |= dict.fromkeys(("dtype", "torch_dtype"), "float32")
        other = any(config.get(name, value) != value for name, value in plain.items())
        if config.get("model_type") not in ("mamba", "tool_mamba") or other or not self.epsilon >= 1e-12:
            raise VerificationError(f"{folder} is no plain Mamba in float32, of which alone is known how it steps")
        with readable(folder, "save the tokenizer again"):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            self.ids = {**tokenizer.get_vocab(), END: tokenizer.eos_token_id}
        if config.get("tie_word_embeddings", True) and "backbone.embeddings.weight" in weights:
            weights["lm_head.weight"] = weights["backbone.embeddings.weight"]
        self._check(weights, folder)
        found = hashlib.sha256()
        for name, array in sorted(weights.items()):  # as `hf_toolssm.evaluation.report.weights_digest` does
            found.update(name.encode() + array.tobytes())
        self.digest = found.hexdigest()
        self.weights = {name.removeprefix("backbone."): array.astype(float) for name, array in weights.items()}

    def _check(self, weights: Mapping[str, np.ndarray], folder: Path) -> None:
        shapes = {name: array.shape for name, array in weights.items()}
        one = "backbone.layers.0.mixer."
        try:
            (v, e), (d, n) = shapes["backbone.embeddings.weight"], shapes[f"{one}A_log"]
            (_, r), (_, _, k) = shapes[f"{one}dt_proj.weight"], shapes[f"{one}conv1d.weight"]
        except (KeyError, ValueError) as error:
            raise VerificationError(f"{folder} has not a Mamba's weights: {error}") from error
        mixer = {"in_proj.weight": (2 * d, e), "conv1d.weight": (d, 1, k), "conv1d.bias": (d,), "A_log": (d, n)}
        mixer |= {"x_proj.weight": (r + 2 * n, d), "dt_proj.weight": (d, r), "dt_proj.bias": (d,), "D": (d,)}
        layer = {"norm.weight": (e,), **{f"mixer.{name}": shape for name, shape in mixer.items()}}
        layer["mixer.out_proj.weight"] = (e, d)
        needed = {f"backbone.layers.{at}.{name}": shape for at in range(self.layers) for name, shape in layer.items()}
        ends = {"backbone.embeddings.weight": (v, e), "backbone.norm_f.weight": (e,), "lm_head.weight": (v, e)}
        if shapes != needed | ends:
            name = min(name for name, _ in shapes.items() ^ (needed | ends).items())
            raise VerificationError(
                f"{folder} has not a Mamba's weights: {name} is missing, unknown or of another size"
            )
        for name, array in weights.items():
            if array.dtype != np.float32 or not (abs(array) <= LARGEST_WEIGHT).all():
                raise VerificationError(f"{folder}: {name} is not all float32 numbers of at most 1e6")
        if any(token is None or not 0 <= token < v for token in self.ids.values()):
            raise VerificationError(f"{folder}: the tokenizer has tokens that the model has not, or no end token")

    def read_boxes(
        self, packed: bytes, claim: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Tokens, right tokens, and of each layer the low and the high ends of the boxes."""
        name = claim["boxes"]
        with readable(name, "certify the model again"), np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            tokens, right = arrays["tokens"], arrays["right"]
            boxes = [(arrays[f"low_{at}"], arrays[f"high_{at}"]) for at in range(self.layers)]
        d, n = self.weights["layers.0.mixer.A_log"].shape
        fits = right.ndim == 1 and tokens.shape == (len(right), claim["j"]) and tokens.dtype == right.dtype == np.int32
        for array in (array for pair in boxes for array in pair):
            fits = fits and array.shape == (len(right), n, d) and array.dtype == np.float32
        if not fits:
            raise VerificationError(f"{name} has arrays of another size or type: certify the model again")
        return tokens, right, boxes


if __name__ == "__main__":
    main()
