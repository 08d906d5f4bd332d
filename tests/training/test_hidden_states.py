"""Every forward of a batch starts from the batch's own state, however often a loss or a backward runs it."""

import copy
import dataclasses
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from peft import (
    AutoPeftModelForCausalLM,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from small_run import make_trainer

from hf_toolssm import ToolMambaForCausalLM
from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.training.lora import add_lora, complete_lora
from hf_toolssm.training.trainer import ToolSFTTrainer


def after_two_steps(trainer):
    """The loss and the gradients of the second of two steps on one batch, and the state that is passed on."""
    trainer.create_optimizer()
    batch = next(iter(trainer.get_train_dataloader()))
    labelled = (batch["labels"][:, 1:] != -100).sum()
    for _ in range(2):
        trainer.model.zero_grad()
        loss = trainer.training_step(trainer.model, dict(batch), labelled)
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, trainer.states.states.to_tensors()


def assert_same(found, expected, tolerance=1e-5):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * max(1, value.abs().max()), name


@pytest.fixture
def passed_on(tmp_path):
    return after_two_steps(make_trainer(tmp_path / "plain", 4, 1, state_passing_share=1.0))


def test_label_smoothing_passes_the_same_state_on(tmp_path, passed_on):
    smooth = make_trainer(tmp_path / "smooth", 4, 1, state_passing_share=1.0, label_smoothing_factor=0.1)
    assert_same(after_two_steps(smooth)[2], passed_on[2])


def mean_loss(output, labels, num_items_in_batch=None):
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class RunsEverythingThreeTimes(ToolSFTTrainer):
    """A loss of a user's own: on the batch, again on the batch, and on other tokens."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        model(input_ids=torch.full((2, 3), 5))
        with torch.no_grad():
            model(**{**inputs, "labels": None})
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class RunsNothing(ToolSFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(input_ids=inputs["input_ids"] * 0 + 3).logits.sum()


def test_any_loss_of_the_users_passes_the_same_state_on(tmp_path, passed_on):
    trainer = make_trainer(tmp_path / "function", 4, 1, state_passing_share=1.0)
    trainer.compute_loss_func = mean_loss
    assert_same(after_two_steps(trainer)[2], passed_on[2])
    trainer = make_trainer(tmp_path / "class", 4, 1, state_passing_share=1.0)
    trainer.__class__ = RunsEverythingThreeTimes
    loss, gradients, state = after_two_steps(trainer)
    assert loss == pytest.approx(passed_on[0], rel=1e-5)
    assert_same(gradients, passed_on[1])
    assert_same(state, passed_on[2])


def test_a_loss_that_never_runs_the_batch_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    trainer.__class__ = RunsNothing
    with pytest.raises(UnsafeTrainingError, match="no forward over the batch's input_ids"):
        after_two_steps(trainer)


@pytest.mark.parametrize("option", ["label_smoothing_factor", "compute_loss_func"])
def test_a_loss_that_misses_the_token_behind_every_cut_is_refused(tmp_path, option):
    trainer = make_trainer(tmp_path, 4, 1, bptt_length=16)
    args, own = copy.copy(trainer.args), {}
    if option == "label_smoothing_factor":
        args.label_smoothing_factor = 0.1
    else:
        own = {"compute_loss_func": mean_loss}
    with pytest.raises(UnsafeTrainingError, match=f"{option} with bptt_length is refused"):
        ToolSFTTrainer(trainer.model, args, trainer.train_dataset, processing_class=trainer.processing_class, **own)


class OwnLoss(ToolSFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return mean_loss(model(input_ids=inputs["input_ids"]), inputs["labels"])


def test_a_loss_of_the_users_that_comes_later_is_refused_before_a_row_is_cut(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1, bptt_length=16)
    with pytest.raises(UnsafeTrainingError, match="OwnLoss.compute_loss with bptt_length is refused"):
        OwnLoss(trainer.model, trainer.args, trainer.train_dataset, processing_class=trainer.processing_class)
    trainer.compute_loss_func = mean_loss
    with pytest.raises(UnsafeTrainingError, match="compute_loss_func with bptt_length is refused"):
        after_two_steps(trainer)


@pytest.mark.parametrize("reference_first", [True, False])
def test_the_state_that_goes_on_is_of_the_weights_that_are_trained(tmp_path, reference_first):
    """A reference to stay near is the same model with other weights: PEFT's adapters switched off."""

    class StaysNear(ToolSFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if reference_first:
                self.run_reference(model, inputs)
            loss = super().compute_loss(model, dict(inputs), return_outputs, num_items_in_batch)
            if not reference_first:
                self.run_reference(model, inputs)
            return loss

        def run_reference(self, model, inputs):
            with torch.no_grad(), model.disable_adapter():
                model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])

    def make(name):
        trainer = make_trainer(tmp_path / name, 4, 1, lora_rank=4, state_passing_share=1.0)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in (p for p in trainer.model.parameters() if p.requires_grad):
                weight += 0.1 * torch.randn(weight.shape, generator=random)
        return trainer

    trainer = make("near")
    trainer.__class__ = StaysNear
    assert_same(after_two_steps(trainer)[2], after_two_steps(make("plain"))[2])


@pytest.mark.parametrize("where", ["option", "model", "reentrant"])
@pytest.mark.parametrize("bptt_length", [None, 16])
def test_recomputed_activations_give_the_same_gradients_and_states(tmp_path, where, bptt_length):
    """However recomputation was switched on: it reads the state that the forward started from."""
    options = {"state_passing_share": 1.0, "bptt_length": bptt_length}
    plain = after_two_steps(make_trainer(tmp_path / "plain", 4, 1, **options))
    options |= {"gradient_checkpointing": True} if where == "option" else {}
    trainer = make_trainer(tmp_path / "recomputed", 4, 1, **options)
    if where == "option":  # Trainer.train switches it on
        trainer.model.gradient_checkpointing_enable()
    else:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": where == "reentrant"})
        trainer.model.enable_input_require_grads()
    assert trainer.model.is_gradient_checkpointing
    found = after_two_steps(trainer)
    assert found[0] == pytest.approx(plain[0], rel=1e-5)
    assert_same(found[1], plain[1])
    assert_same(found[2], plain[2])


def test_a_compiled_model_is_refused(tmp_path):
    with pytest.raises(UnsafeTrainingError, match=r"torch\.compile is refused"):
        make_trainer(tmp_path, 4, 1, torch_compile=True)


def test_the_trainer_leaves_nothing_on_the_model(tmp_path):
    model = make_trainer(tmp_path, 4, 1).model
    assert "forward" not in vars(model)
    ids = torch.arange(3, 9)[None]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(ids).logits, model(ids).logits)


def test_the_forward_that_stood_on_a_model_stands_there_again(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    model, calls = trainer.model, []

    def watched(*args, **kwargs):
        calls.append(kwargs)
        return type(model).forward(model, *args, **kwargs)

    model.forward = watched
    again = ToolSFTTrainer(model, trainer.args, trainer.train_dataset, processing_class=trainer.processing_class)
    assert model.forward is watched
    again.train()
    assert calls


def test_what_is_measured_for_the_choice_of_a_checkpoint_is_the_model_that_is_saved(tmp_path):
    ids, found = torch.arange(3, 9)[None], []

    def accuracy(model):
        found.append(model(ids).logits.detach())
        return 1.0

    first = make_trainer(tmp_path / "float32", 4, 1)
    trainer = ToolSFTTrainer(
        first.model,
        dataclasses.replace(first.args, output_dir=str(tmp_path / "bf16"), bf16=True),
        first.train_dataset,
        processing_class=first.processing_class,
        eval_dataset=first.train_dataset,
        accuracy=accuracy,
    )
    trainer.train()
    trainer.evaluate()
    in_training = trainer.model(ids).logits
    trainer.save_model()
    saved = ToolMambaForCausalLM.from_pretrained(tmp_path / "bf16")(ids).logits
    assert torch.equal(found[-1], saved)
    assert not torch.equal(in_training, saved)


def test_several_evaluation_sets_are_checked_and_choose_no_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    rows = trainer.train_dataset
    labelled = rows.map(lambda row: {"labels": row["input_ids"]})
    options = {"processing_class": trainer.processing_class}
    with pytest.raises(UnsafeTrainingError, match="every token of row 0 carries loss"):
        ToolSFTTrainer(trainer.model, trainer.args, rows, eval_dataset={"a": rows, "b": labelled}, **options)
    with pytest.raises(UnsafeTrainingError, match="accuracy chooses by one evaluation set"):
        ToolSFTTrainer(
            trainer.model, trainer.args, rows, eval_dataset={"a": rows}, accuracy=lambda model: 1.0, **options
        )


def tool_rows(model):
    return model.get_input_embeddings(), sorted(model.config.tool_token_ids.values())


def test_a_peft_config_trains_the_rows_of_the_tool_tokens_and_every_projection(tmp_path):
    trainer = make_trainer(tmp_path, 4, 3, adapter=LoraConfig(r=4), learning_rate=1e-1)
    embeddings, ids = tool_rows(trainer.model.get_base_model())
    before = embeddings.weight.detach().clone()
    trainer.train()
    changed = (trainer.model.merge_and_unload().get_input_embeddings().weight != before).any(1).nonzero()[:, 0]
    assert set(changed.tolist()) <= set(ids)
    assert len(changed) > len(ids) // 2
    with pytest.raises(UnsafeTrainingError, match="new tokens must be trained"):
        make_trainer(tmp_path, 4, 1, adapter=LoraConfig(trainable_token_indices=[0]))
    with pytest.raises(UnsafeTrainingError, match="leave out modules_to_save"):
        make_trainer(tmp_path, 4, 1, adapter=LoraConfig(modules_to_save=["embeddings"]))


def test_a_peft_config_for_what_cannot_take_it_is_refused_with_the_reason(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1, adapter=LoraConfig(r=4))
    options = {"processing_class": trainer.processing_class, "peft_config": LoraConfig(r=4)}
    with pytest.raises(UnsafeTrainingError, match="pass hf_toolssm.models.architectures.load_model"):
        ToolSFTTrainer("some/folder", trainer.args, trainer.train_dataset, **options)
    with pytest.raises(UnsafeTrainingError, match="has an adapter already"):
        ToolSFTTrainer(trainer.model, trainer.args, trainer.train_dataset, **options)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["in_proj"]),
        LoHaConfig(target_modules=["in_proj"]),
        IA3Config(target_modules=["in_proj"], feedforward_modules=[]),
    ],
)
def test_an_adapter_that_leaves_the_tool_tokens_frozen_is_said(tmp_path, caplog, config):
    trainer = make_trainer(tmp_path, 4, 1)
    adapted = get_peft_model(trainer.model, config)
    with caplog.at_level(logging.WARNING):
        ToolSFTTrainer(adapted, trainer.args, trainer.train_dataset, processing_class=trainer.processing_class)
    assert "the embeddings of the tool tokens are frozen" in caplog.text


def test_an_adapter_of_virtual_tokens_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    sizes = {"task_type": "CAUSAL_LM", "num_layers": 2, "token_dim": 16, "num_attention_heads": 1}
    adapted = get_peft_model(trainer.model, PromptTuningConfig(num_virtual_tokens=2, **sizes))
    with pytest.raises(UnsafeTrainingError, match="an adapter of virtual tokens shifts every label"):
        ToolSFTTrainer(adapted, trainer.args, trainer.train_dataset, processing_class=trainer.processing_class)


def test_a_saved_adapter_generates_and_trains_on(tmp_path, model, tokenizer):
    base = copy.deepcopy(model)
    add_lora(model, 4).save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    problem = tokenizer(["12+3="], return_tensors="pt")
    found = loaded.generate(**problem, max_new_tokens=20)
    assert torch.equal(found, base.generate(**problem, max_new_tokens=20))
    trainer = make_trainer(tmp_path, 4, 1)
    ToolSFTTrainer(loaded, trainer.args, trainer.train_dataset, processing_class=trainer.processing_class).train()


def test_an_adapter_of_a_peft_config_loads_by_itself(tmp_path, model):
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        ToolMambaForCausalLM.from_pretrained(tmp_path / "base"), complete_lora(model, LoraConfig(r=4))
    )
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(3, 9)[None]
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(loaded(ids).logits, adapted(ids).logits)


def give_head_a_bias(model):
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-3, 3, len(model.lm_head.weight)))


def hook_head(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)


def no_change(model):
    pass


@pytest.mark.parametrize("change", [no_change, give_head_a_bias, hook_head])
def test_the_loss_of_the_trainer_is_that_of_the_model(tmp_path, change):
    """Whatever its head is: TRL's call scores only the labelled tokens, past the head's own call."""
    trainer = make_trainer(tmp_path, 4, 1, state_passing_share=0.0)
    change(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    labelled = (batch["labels"][:, 1:] != -100).sum()
    loss = trainer.training_step(trainer.model, dict(batch), labelled)
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    expected = trainer.model(**batch).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same(gradients, {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
