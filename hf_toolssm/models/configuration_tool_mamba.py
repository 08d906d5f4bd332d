"""The configuration of a Mamba that works through tools."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import MambaConfig

from hf_toolssm.errors import ArchitectureMismatchError
from hf_toolssm.models.native_checkpoint import from_native, is_native
from hf_toolssm.models.remote_code import AUTO_MAP, write_remote_code
from hf_toolssm.models.tool_config import ToolFields

_LOADABLE = ("mamba", "tool_mamba")


@strict
class ToolMambaConfig(ToolFields, MambaConfig):
    """A `MambaConfig` that names its tools; see `ToolFields` for what it adds and what it refuses."""

    model_type = "tool_mamba"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("hidden_size", "intermediate_size", "state_size", "conv_kernel", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ArchitectureMismatchError(f"{name} is at least 1, and not {getattr(self, name)}")

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint's config; a plain Mamba's is taken over, any other architecture's is refused.

        Raises:
            ArchitectureMismatchError: the checkpoint is of another architecture; see also `native_checkpoint`.
        """
        config_dict, remaining = super().get_config_dict(*args, **kwargs)
        if is_native(config_dict):
            config_dict = {**from_native(config_dict), "model_type": cls.model_type}
        found = config_dict.get("model_type")
        if found not in _LOADABLE:
            raise ArchitectureMismatchError(
                f"this checkpoint's model_type is {found!r}, and ToolMamba loads only Mamba checkpoints, in "
                f"transformers' format ({' or '.join(_LOADABLE)}) or mamba_ssm's: choose such a one, or load this "
                "with its own class"
            )
        return {**config_dict, "model_type": cls.model_type}, remaining

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes `config.json`, and beside it the code that runs the tools where this package is not installed.

        A model's `save_pretrained` and `push_to_hub` come here too, so every copy of the model carries that code.
        """
        self.__dict__.pop("auto_map", None)  # of the folder that this was loaded from
        if self.tools is not None:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            write_remote_code(Path(save_directory), self.tools)
            self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
