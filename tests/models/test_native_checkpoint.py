"""A checkpoint of mamba_ssm is a ToolMamba like any other, and one that is more than a plain Mamba is refused."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import random_model, relative_distance
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import MambaForCausalLM

from hf_toolssm import ToolMambaConfig, ToolMambaForCausalLM, ToolMambaModel
from hf_toolssm.errors import ArchitectureMismatchError
from hf_toolssm.models.architectures import load_model
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model
from hf_toolssm.training.lora import add_lora

CONFIG = {
    **{"d_model": 16, "n_layer": 2, "vocab_size": 27, "ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True},
    **{"fused_add_norm": True, "pad_vocab_size_multiple": 8},
}
"""As the original checkpoints say it."""

SHAPED = {
    **{"layer": "Mamba1", "d_state": 5, "d_conv": 3, "expand": 3, "dt_rank": 4, "conv_bias": False, "bias": True},
    **{"dt_min": 0.002, "dt_max": 0.3, "dt_init": "constant", "dt_scale": 2.0, "dt_init_floor": 0.001},
    "use_fast_path": False,
}
CONFIGS = [{}, {"tie_embeddings": False, "residual_in_fp32": False, "d_intermediate": 0}, {"ssm_cfg": SHAPED}]


def native_weights(config):
    """Random weights under the names and in the shapes of mamba_ssm."""
    torch.manual_seed(0)
    block = {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto"} | config["ssm_cfg"]
    e, rows, n = config["d_model"], -(-config["vocab_size"] // 8) * 8, block["d_state"]
    d, rank = block["expand"] * e, -(-e // 16) if block["dt_rank"] == "auto" else block["dt_rank"]
    weights = {"backbone.embedding.weight": torch.randn(rows, e), "backbone.norm_f.weight": torch.rand(e) + 0.5}
    tied = config.get("tie_embeddings", True)
    weights["lm_head.weight"] = weights["backbone.embedding.weight"] if tied else torch.randn(rows, e)
    shapes = {"in_proj": (2 * d, e), "x_proj": (rank + 2 * n, d), "dt_proj": (d, rank), "out_proj": (e, d)}
    for layer in range(config["n_layer"]):
        inside = {f"{name}.weight": torch.randn(shape) / shape[1] ** 0.5 for name, shape in shapes.items()}
        inside |= {"conv1d.weight": torch.randn(d, 1, block["d_conv"]), "dt_proj.bias": torch.randn(d) - 2}
        inside |= {"A_log": torch.rand(d, n), "D": torch.randn(d)}
        if block.get("conv_bias", True):
            inside["conv1d.bias"] = torch.randn(d)
        if block.get("bias"):
            inside |= {"in_proj.bias": torch.randn(2 * d), "out_proj.bias": torch.randn(e)}
        weights |= {f"backbone.layers.{layer}.mixer.{name}": value for name, value in inside.items()}
        weights[f"backbone.layers.{layer}.norm.weight"] = torch.rand(e) + 0.5
    return weights


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def native_logits(weights, layers, ids):
    """mamba_ssm's MambaLMHeadModel: Block adds to the residual before its norm; Mamba.forward without a fast path."""
    weights = {name: value.double() for name, value in weights.items()}
    hidden, residual = weights["backbone.embedding.weight"][ids], 0
    for layer in range(layers):
        w = {name.split(f"layers.{layer}.")[-1].removeprefix("mixer."): value for name, value in weights.items()}
        residual = residual + hidden
        xz = F.linear(rms(residual, w["norm.weight"]), w["in_proj.weight"], w.get("in_proj.bias"))
        x, z = xz.transpose(1, 2).chunk(2, dim=1)  # (b, d, l)
        kernel = w["conv1d.weight"].shape[2]
        x = F.conv1d(F.pad(x, (kernel - 1, 0)), w["conv1d.weight"], w.get("conv1d.bias"), groups=x.shape[1])
        x = F.silu(x).transpose(1, 2)
        n = w["A_log"].shape[1]
        dt, B, C = F.linear(x, w["x_proj.weight"]).split([w["dt_proj.weight"].shape[1], n, n], dim=-1)
        dt, A = F.softplus(F.linear(dt, w["dt_proj.weight"], w["dt_proj.bias"])), -w["A_log"].exp()
        state, outputs = 0, []
        for t in range(ids.shape[1]):
            state = (dt[:, t, :, None] * A).exp() * state + (dt * x)[:, t, :, None] * B[:, t, None]
            outputs.append((state * C[:, t, None]).sum(-1) + w["D"] * x[:, t])
        y = torch.stack(outputs, dim=1) * F.silu(z.transpose(1, 2))
        hidden = F.linear(y, w["out_proj.weight"], w.get("out_proj.bias"))
    return F.linear(rms(residual + hidden, weights["backbone.norm_f.weight"]), weights["lm_head.weight"])


def write(folder, **changes):
    """A checkpoint as mamba_ssm's `save_pretrained` leaves it, and its weights."""
    config = CONFIG | changes
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = native_weights(config)
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def ids():
    return torch.randint(3, 27, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("changes", CONFIGS)
@torch.no_grad()
def test_it_gives_the_logits_that_mamba_ssm_gives(tmp_path, changes):
    expected = native_logits(write(tmp_path, **changes), 2, ids())
    assert expected.abs().max() > 3
    for load in (ToolMambaForCausalLM.from_pretrained, load_model):
        model = load(str(tmp_path))
        assert type(model) is ToolMambaForCausalLM
        assert relative_distance(model(ids()).logits, expected) < 1e-5


def test_every_field_of_its_config_is_carried_over(tmp_path):
    write(tmp_path, ssm_cfg=SHAPED, residual_in_fp32=False, tie_embeddings=False)
    config = ToolMambaConfig.from_pretrained(tmp_path)
    for name, value in {
        **{
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "vocab_size": 32,
            "state_size": 5,
            "conv_kernel": 3,
            "expand": 3,
        },
        **{"intermediate_size": 48, "time_step_rank": 4, "use_conv_bias": False, "use_bias": True},
        **{"time_step_min": 0.002, "time_step_max": 0.3, "time_step_init_scheme": "constant", "time_step_scale": 2.0},
        **{"time_step_floor": 0.001, "residual_in_fp32": False, "tie_word_embeddings": False},
        **{"model_type": "tool_mamba", "layer_norm_epsilon": 1e-5, "hidden_act": "silu"},
    }.items():
        assert getattr(config, name) == value, name


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_saved_again_it_is_in_transformers_format(tmp_path, tied):
    write(tmp_path / "native", tie_embeddings=tied)
    model = ToolMambaForCausalLM.from_pretrained(tmp_path / "native")
    assert (model.lm_head.weight.data_ptr() == model.backbone.embeddings.weight.data_ptr()) is tied
    model.save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as opened:
        names = set(opened.keys())
    assert "backbone.embeddings.weight" in names
    assert not any("embedding." in name for name in names)
    assert "d_model" not in json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    for kind in (ToolMambaForCausalLM, MambaForCausalLM):
        assert relative_distance(kind.from_pretrained(tmp_path / "saved")(ids()).logits, model(ids()).logits) < 1e-5


def in_shards(folder, weights):
    files = {name: f"pytorch_model-{index % 2 + 1:05}-of-00002.bin" for index, name in enumerate(weights)}
    for file in set(files.values()):
        torch.save({name: weights[name] for name in weights if files[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def as_safetensors(folder, weights):
    save_file({name: value.clone() for name, value in weights.items()}, folder / "model.safetensors")


def in_half_precision(folder, weights):
    torch.save({name: value.half() for name, value in weights.items()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize("store", [in_shards, as_safetensors, in_half_precision])
@torch.no_grad()
def test_its_weights_are_read_by_transformers_own_loading(tmp_path, store):
    weights = write(tmp_path)
    expected = native_logits(weights, 2, ids())
    (tmp_path / "pytorch_model.bin").unlink()
    store(tmp_path, weights)
    tolerance = 0.02 if store is in_half_precision else 1e-5
    model = ToolMambaForCausalLM.from_pretrained(tmp_path)  # in the dtype that the weights are stored in
    assert model.dtype == (torch.float16 if store is in_half_precision else torch.float32)
    assert relative_distance(model(ids()).logits, expected) < tolerance
    model, info = ToolMambaForCausalLM.from_pretrained(
        *(tmp_path,),
        dtype=torch.float32,
        device_map={"": "disk"},
        offload_folder=tmp_path / "offload",
        output_loading_info=True,
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert relative_distance(model(ids()).logits, expected) < tolerance
    backbone, info = ToolMambaModel.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    hidden = backbone(ids()).last_hidden_state
    assert relative_distance(hidden @ weights["lm_head.weight"].T, expected) < tolerance


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ssm_cfg": {"layer": "Mamba2", "d_state": 128}}, "its layers are Mamba2"),
        ({"attn_layer_idx": [1], "attn_cfg": {"num_heads": 4}}, r"its layers \[1\] are attention"),
        ({"d_intermediate": 64}, "MLPs between its Mamba layers"),
        ({"rms_norm": False}, r"LayerNorm \(rms_norm: false\)"),
        ({"ssm_cfg": {"expand": 1.5}}, "expand: 1.5"),
        ({"ssm_cfg": {"headdim": 64}, "shared_embedding": 1}, "ssm_cfg.headdim, shared_embedding"),
    ],
)
def test_one_that_is_more_than_a_plain_mamba_is_refused(tmp_path, changes, why):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    for load in (ToolMambaForCausalLM.from_pretrained, ToolMambaConfig.from_pretrained, load_model):
        with pytest.raises(ArchitectureMismatchError, match=f"checkpoint of mamba_ssm.*{why}"):
            load(str(tmp_path))


def test_it_learns_tools_with_a_lora(tmp_path, tokenizer, specs):
    write(tmp_path, vocab_size=len(tokenizer) - 10)
    model = ToolMambaForCausalLM.from_pretrained(tmp_path)
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=len(tokenizer) - 10)
    adapted = add_lora(model, rank=2)
    optimizer = torch.optim.Adam([weight for weight in adapted.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(ids(), labels=ids()).loss.backward()
        optimizer.step()
    adapted.eval()
    problem = tokenizer(["7+5="], return_tensors="pt")
    with torch.no_grad():
        expected = adapted(**problem).logits
        merged = adapted.merge_and_unload()
        merged.save_pretrained(tmp_path / "saved")
        again = ToolMambaForCausalLM.from_pretrained(tmp_path / "saved")
        assert relative_distance(again(**problem).logits, expected) < 1e-5
    assert torch.equal(*(each.generate(**problem, max_new_tokens=20) for each in (again, merged)))


def test_other_models_are_saved_as_before(tmp_path, tokenizer, specs):
    model = random_model(tokenizer, specs)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert set(opened.keys()) == set(model.state_dict()) - {"lm_head.weight"}
