"""A proof that a model does what a rule says, at every length, as two files."""

import hashlib
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_toolssm.evaluation.certification.bounds import Context, Recurrence, bound_states, margins, model_weights
from hf_toolssm.evaluation.certification.graph import Graph, Node, TokenIds, build_graph
from hf_toolssm.evaluation.certification.intervals import Box
from hf_toolssm.files import atomic_write
from hf_toolssm.protocol.rule import Rule

THEOREM = """\
Let a run begin with zero states and any prompt that the rule allows, of any length, and go on greedily: the model \
writes a token with the largest logit, and the tool answers what the rule allows there. Then every token that the \
model writes is the rule's, at any length, and its logit exceeds every other by at least the margin below. This holds \
for these weights in float32 on the kernels of ops/fused_step.py, whatever the order of their sums, where operations \
round to nearest. That the rule is the task's algorithm, and that the tool does what it says, is not part of the \
proof."""


@dataclass(frozen=True)
class Proof:
    """What was found of a model on a graph.

    Attributes:
        graph: of contexts.
        margins: by node, at least; infinite where the model is not asked.
        at_most: by node, what the margin may be at most.
        boxes: by layer, of the states (N, n, d), float32, rounded outward.
        tokens, right: the nodes in token ids, (N, j) and (N,), -1 where there is none.
    """

    graph: Graph
    margins: np.ndarray
    at_most: np.ndarray
    boxes: tuple[Box, ...]
    tokens: np.ndarray
    right: np.ndarray

    @property
    def failing(self) -> list[tuple[Node, float, float]]:
        """The contexts that are not proved, each with its margin at least and at most, the worst first."""
        every = zip(self.graph.nodes, self.margins, self.at_most)
        return sorted([(node, float(low), float(high)) for node, low, high in every if not low > 0], key=itemgetter(1))


def prove(model: Any, tokenizer: PreTrainedTokenizerBase, rule: Rule, j: int) -> Proof:
    """Tries to prove that a model follows a rule, with contexts of j tokens.

    Raises:
        CertificationError: the model is none that a proof knows, or lacks a token of the rule; j is too small; or a
            state may not decay.
    """
    ids, weights, graph = TokenIds(tokenizer), model_weights(model), build_graph(rule, j)
    context = Context(graph, ids)
    shape = (context.count, *weights.layers[0].rates.shape)
    boxes = tuple(Box(np.empty(shape, np.float32), np.empty(shape, np.float32)) for _ in weights.layers)
    with tqdm(total=len(weights.layers) * shape[1], desc="bounding states", unit="state") as progress:

        def states(layer: int, s: int, step: Recurrence) -> Box:
            box = outward(bound_states(step, context))
            boxes[layer].low[:, s], boxes[layer].high[:, s] = box.low, box.high
            progress.update()
            return Box(box.low.astype(np.float64), box.high.astype(np.float64))

        found = margins(weights, context, states)
    tokens = np.full((context.count, j), -1, np.int32)
    for at, node in enumerate(graph.nodes):
        tokens[at, j - len(node.tokens) :] = [ids[token] for token in node.tokens]
    return Proof(graph, found.low, found.high, boxes, tokens, context.right.astype(np.int32))


def plot_margins(proof: Proof, path: Path) -> None:
    """Draws the margins of all contexts in which the model is asked, in a row for each token that is right there.

    Args:
        proof: proved or not; what is not has a margin of at most 0.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure  # no global state, no display

    found: dict[str, list[float]] = {}
    for node, margin in zip(proof.graph.nodes, proof.margins):
        if node.right is not None:
            found.setdefault(node.right, []).append(float(margin))
    rows = sorted(found, key=lambda token: -min(found[token]))
    figure = Figure(figsize=(7, 1 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    noise = np.random.default_rng(0)
    for at, token in enumerate(rows):
        heights = at + noise.uniform(-0.3, 0.3, len(found[token]))
        axes.scatter(found[token], heights, s=4, alpha=0.4, linewidths=0, color="#1f77b4")
        axes.plot([min(found[token])] * 2, [at - 0.4, at + 0.4], color="#d62728", linewidth=1.5)
    axes.axvline(0, color="0.3", linewidth=1)
    if proof.failing:  # by how much is of any size
        axes.set_xscale("symlog", linthresh=1)
    axes.set_yticks(range(len(rows)), [token.strip("<|>") for token in rows])
    axes.set_xlabel("margin over every other token, in logits, at least; red: the smallest")
    axes.set_title(f"{int(np.isfinite(proof.margins).sum()):,} contexts of {proof.graph.j} tokens, by the right token")
    figure.savefig(path, dpi=150)


def outward(box: Box) -> Box:
    """In float32, no narrower."""
    low, high = box.low.astype(np.float32), box.high.astype(np.float32)
    low = np.where(low > box.low, np.nextafter(low, np.float32(-np.inf)), low)
    return Box(low, np.where(high < box.high, np.nextafter(high, np.float32(np.inf)), high))


def write_boxes(path: Path, proof: Proof) -> str:
    """Writes what a certificate carries into an .npz file; returns the file's SHA-256."""
    arrays: dict[str, Any] = {"tokens": proof.tokens, "right": proof.right}
    arrays["margins"] = proof.margins.astype(np.float32)
    for number, box in enumerate(proof.boxes):
        arrays |= {f"low_{number}": box.low, f"high_{number}": box.high}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return hashlib.sha256(path.read_bytes()).hexdigest()
