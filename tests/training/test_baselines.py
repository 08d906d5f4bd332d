"""Every baseline trains on the same rows in the same trainer, runs its tools in the same loop, and can be loaded."""

import pytest
import torch
from datasets import Dataset
from small_models import small_model
from small_run import losses, make_trainer
from transformers import AutoTokenizer

from hf_toolssm.errors import UnknownArchitectureError, UnsafeTrainingError
from hf_toolssm.generation.tool_loop import generate_with_tools
from hf_toolssm.models.architectures import BASELINES, load_model, make_model
from hf_toolssm.models.modeling_rnn import RnnState
from hf_toolssm.training.hidden_states import CarriedStates
from hf_toolssm.training.sft_config import ToolSFTConfig
from hf_toolssm.training.trainer import ToolSFTTrainer

CARRIES_STATE = ("lstm", "gru", "rmt")


def trained(output, architecture, **options):
    trainer = make_trainer(output, 8, 6, architecture=architecture, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("architecture", BASELINES)
def test_a_baseline_trains_calls_tools_and_is_loaded_again(tmp_path, architecture):
    trainer = trained(tmp_path, architecture)
    assert losses(trainer)[-1] < losses(trainer)[0]
    trainer.save_model()
    model, tokenizer = load_model(str(tmp_path)).eval(), AutoTokenizer.from_pretrained(tmp_path)
    prompts = tokenizer(["12+7=", "3+5="], padding=True, return_tensors="pt")
    results = [
        generate_with_tools(m, **prompts, max_new_tokens=12, return_dict_in_generate=True)
        for m in (trainer.model.eval(), model)
    ]
    assert torch.equal(results[0].sequences, results[1].sequences)


@pytest.mark.parametrize("architecture", sorted(set(BASELINES) - set(CARRIES_STATE)))
def test_a_state_that_a_baseline_does_not_have_cannot_be_passed_on(tmp_path, architecture):
    with pytest.raises(UnsafeTrainingError, match="state_passing_share: 0"):
        make_trainer(tmp_path, 8, 1, architecture=architecture, state_passing_share=0.5)


def test_whether_states_are_passed_on_is_settled_by_the_model_and_said(tmp_path, caplog):
    assert make_trainer(tmp_path, 8, 1, architecture="lstm").args.state_passing_share == 0.5
    assert not caplog.records
    trainer = make_trainer(tmp_path, 8, 1, architecture="mamba2")
    assert trainer.args.state_passing_share == 0
    assert trainer.states is None
    assert "a Mamba2ForCausalLM takes no state in training" in caplog.text


@pytest.mark.parametrize("experts", [0, 4])
def test_a_loss_on_routers_that_trl_stops_at_is_off_or_refused(tokenizer, specs, tmp_path, experts):
    """TRL asks a Granite for `num_experts`, which it calls otherwise, and one without experts for their load."""
    rows = Dataset.from_list([{"input_ids": [3, 4, 5, 6], "labels": [-100, 4, 5, 6]}])
    model = small_model("granite_moe_hybrid", tokenizer, specs, num_local_experts=experts, shared_intermediate_size=64)

    def trainer(**options):
        config = ToolSFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1, **options)
        return ToolSFTTrainer(model, config, rows, processing_class=tokenizer)

    with pytest.raises(UnsafeTrainingError, match="TRL finds none in a GraniteMoeHybridForCausalLM"):
        trainer(router_aux_loss_coef=0.1)
    trainer().train()
    assert model.config.output_router_logits is False


def test_an_lstm_resumed_from_a_checkpoint_loses_what_it_would_have_lost(tmp_path):
    whole = trained(tmp_path / "whole", "lstm")
    resumed = make_trainer(tmp_path / "whole", 8, 6, architecture="lstm")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert losses(resumed)[-3:] == pytest.approx(losses(whole)[-3:], rel=1e-6)


def test_noise_has_the_mean_and_the_deviation_of_the_states(tmp_path):
    trainer = trained(tmp_path, "gru")
    state = trainer.states.states
    noise = state.noise(4_000, torch.Generator().manual_seed(0))
    for name, drawn in noise.to_tensors().items():
        rows = state.to_tensors()[name]
        assert (drawn.mean(0) - rows.mean(0)).abs().max() < 0.1 * rows.std(0).max() + 1e-3
        assert (drawn.std(0) - rows.std(0, correction=0)).abs().max() < 0.1 * rows.std(0).max() + 1e-3


def test_training_from_noise_differs_from_training_from_zeros(tmp_path):
    noisy = trained(tmp_path / "noise", "lstm", state_passing_share=0.0, state_noise_share=1.0)
    plain = trained(tmp_path / "zeros", "lstm", state_passing_share=0.0)
    assert losses(noisy)[0] == pytest.approx(losses(plain)[0])  # nothing to fit the noise to yet
    assert losses(noisy)[1:] != pytest.approx(losses(plain)[1:], rel=1e-5)


def test_noise_is_the_same_again_and_every_process_has_its_own(tmp_path):
    trainer = trained(tmp_path, "gru", state_passing_share=0.0, state_noise_share=1.0)

    def drawn(process):
        states = CarriedStates(RnnState, trainer.model.config, trainer.args.seed, process)
        states.states, states.batches = trainer.states.states, trainer.states.batches
        return states.draw(4, passing_share=0.0, noise_share=1.0).layers[0].recurrent_states[0]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_noise_on_a_state_that_holds_tokens_is_refused(tmp_path):
    with pytest.raises(UnsafeTrainingError, match="holds tokens"):
        make_trainer(tmp_path, 8, 1, architecture="rmt", state_noise_share=0.5)


@pytest.mark.parametrize("shares", [(0.7, 0.5), (-0.1, 0.0), (0.0, 1.1)])
def test_shares_that_cannot_be_are_refused(tmp_path, shares):
    with pytest.raises(UnsafeTrainingError, match="together at most 1"):
        make_trainer(tmp_path, 8, 1, state_passing_share=shares[0], state_noise_share=shares[1])


@pytest.mark.parametrize(("architecture", "width"), [("perceptron", 16), ("lstm", 20)])
def test_a_model_that_cannot_be_made_is_named(architecture, width):
    with pytest.raises(UnknownArchitectureError, match="perceptron|multiple of 16"):
        make_model(architecture, 30, width, depth=1, state_size=4, mamba={})


def test_a_lora_on_a_baseline_is_refused(tmp_path):
    with pytest.raises(UnsafeTrainingError, match="train all weights"):
        make_trainer(tmp_path, 8, 1, architecture="lstm", lora_rank=2)
