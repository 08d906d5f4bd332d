"""Rows of trajectories as what a trainer takes."""

from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from hf_toolssm.protocol.render import Renderer
from hf_toolssm.sources import digest


def render_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int) -> Dataset:
    """The rows as `input_ids` and `labels`, from the cache if the same source rendered them before."""
    renderer = Renderer(tokenizer)
    # `datasets` would know the renderer by its name only, and take what an earlier version of its source wrote.
    source = digest(Renderer.__module__)
    return rows.map(
        renderer.row,
        remove_columns=rows.column_names,
        num_proc=num_proc,
        desc="rendering rows",
        new_fingerprint=Hasher.hash([rows._fingerprint, source, tokenizer]),
    )
