"""Checkpoints as mamba_ssm writes them: the original 130M to 2.8B, and whatever was trained with that package.

Their `config.json` names no `model_type`, and one of their weights has another name than in transformers.
"""

from collections.abc import Mapping
from typing import Any

from transformers.core_model_loading import WeightRenaming

from hf_toolssm.errors import ArchitectureMismatchError

_BLOCK_FIELDS = {
    "d_state": "state_size",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "dt_rank": "time_step_rank",
    "dt_min": "time_step_min",
    "dt_max": "time_step_max",
    "dt_init": "time_step_init_scheme",
    "dt_scale": "time_step_scale",
    "dt_init_floor": "time_step_floor",
    "conv_bias": "use_conv_bias",
    "bias": "use_bias",
}
"""What `ssm_cfg` may hold, as `MambaConfig` calls it; both packages have the same defaults."""

_KNOWN = {
    *("d_model", "d_intermediate", "n_layer", "vocab_size", "ssm_cfg", "attn_layer_idx", "attn_cfg", "rms_norm"),
    *("residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings"),
}

_OF_ANY_CHECKPOINT = {"architectures", "dtype", "torch_dtype", "transformers_version"}


class NativeName(WeightRenaming):
    """The new name of a weight, under which it is also saved again."""

    def reverse_transform(self) -> WeightRenaming:
        """Nothing to undo."""
        return WeightRenaming(self.target_patterns, self.target_patterns)


NATIVE_NAMES = (NativeName(r"embedding\.weight", "embeddings.weight"),)


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's config.json is mamba_ssm's."""
    return "model_type" not in config and {"d_model", "n_layer"} <= config.keys()


def from_native(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `MambaConfig` that describe the same model.

    Raises:
        ArchitectureMismatchError: it is more than a plain Mamba, or has a field whose meaning is not known.
    """
    block = dict(config.get("ssm_cfg") or {})
    layer = block.pop("layer", "Mamba1")
    block.pop("use_fast_path", None)  # which of two equal kernels
    unknown = [f"ssm_cfg.{name}" for name in block if name not in _BLOCK_FIELDS]
    unknown += [name for name in config if not name.startswith("_") and name not in _KNOWN | _OF_ANY_CHECKPOINT]
    expand = block.get("expand", 2)
    vocabulary, multiple = config.get("vocab_size", 50277), config.get("pad_vocab_size_multiple", 8)
    reasons = {
        f"its layers are {layer}": layer != "Mamba1",
        f"its layers {config.get('attn_layer_idx')} are attention": config.get("attn_layer_idx"),
        "it has MLPs between its Mamba layers (d_intermediate)": config.get("d_intermediate"),
        "it normalizes by LayerNorm (rms_norm: false)": not config.get("rms_norm", True),
        f"its inner width is no whole multiple of its width (expand: {expand})": expand != int(expand),
        f"its vocabulary is padded to a multiple of {multiple}": multiple < 1,
        f"it has fields that are not known here ({', '.join(unknown)})": unknown,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ArchitectureMismatchError(
                f"this is a checkpoint of mamba_ssm, and {reason}: ToolMamba computes only plain Mamba layers with "
                "RMS norms, so choose such a checkpoint"
            )
    return {
        **{name: value for name, value in config.items() if name.startswith("_") or name in ("dtype", "torch_dtype")},
        **{_BLOCK_FIELDS[name]: value for name, value in block.items()},
        "expand": int(expand),
        "hidden_size": config["d_model"],
        "num_hidden_layers": config["n_layer"],
        "vocab_size": -(-vocabulary // multiple) * multiple,
        "residual_in_fp32": config.get("residual_in_fp32", True),
        "tie_word_embeddings": config.get("tie_embeddings", True),
    }
