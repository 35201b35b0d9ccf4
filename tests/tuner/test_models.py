"""Whole models of kinds that the paper leaves open, and training libraries on top of PEFT."""

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

from lrlora import InputError, LRLoraConfig, param_groups
from lrlora.method.nonlinearity import phi_slope
from lrlora.tuner import deltas
from tests.conftest import disturb, tiny_llama, token_ids


def mamba() -> nn.Module:
    """A state-space model of two blocks."""
    torch.manual_seed(1)
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2, conv_kernel=4, expand=2, time_step_rank=4,
        use_mambapy=False,
    )  # fmt: skip
    return transformers.MambaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    """A model of Conv1D layers with tied embeddings."""
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def llava() -> nn.Module:
    """A vision tower, a projector and a language model."""
    torch.manual_seed(1)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = tiny_llama().config
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=63, vision_feature_select_strategy="full",
        image_seq_length=5,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config).eval()


def inputs_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tokens, and an image where the model looks at one."""
    ids = token_ids(2, 9).clamp(max=62)
    if model.config.model_type != "llava":
        return {"input_ids": ids, "labels": ids}
    ids[:, :5] = 63
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "pixel_values": pixels, "labels": ids.clone()}


# model, target modules, how many layers that makes
MODELS = {
    "mamba": (mamba, ["in_proj"], 2),
    "gpt2": (gpt2, ["c_attn", "c_proj", "c_fc"], 8),
    "llava": (llava, ["q_proj", "v_proj", "linear_1", "patch_embedding"], 10),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_saves_loads_and_merges(name, tmp_path):
    make, targets, layers = MODELS[name]
    model = get_peft_model(make(), LRLoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    assert len(deltas(model)) == layers
    given = inputs_of(model)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2))
    losses = []
    for _ in range(5):
        loss = model(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        logits = model(**given).logits
        again = PeftModel.from_pretrained(make(), tmp_path).eval()
        assert torch.equal(again(**given).logits, logits)
        torch.testing.assert_close(model.merge_and_unload()(**given).logits, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["dt_proj", "x_proj", "out_proj", "conv1d"])
def test_a_layer_whose_weight_a_kernel_reads_is_refused(name):
    # an adapter there would do nothing, and say nothing
    with pytest.raises(InputError, match=f"cannot adapt .*{name}.*MambaMixer hands its weight to a fused kernel"):
        get_peft_model(mamba(), LRLoraConfig(r=2, target_modules=[name], task_type="CAUSAL_LM"))


@pytest.mark.filterwarnings("ignore:Model with .tie_word_embeddings:UserWarning")
def test_a_weight_that_is_shared_is_not_merged(tmp_path):
    model = get_peft_model(gpt2(), LRLoraConfig(r=2, target_modules=["wte"], task_type="CAUSAL_LM")).eval()
    ids = token_ids()
    base = model(ids).logits
    disturb(model)
    logits = model(ids).logits
    assert not torch.allclose(logits, base), "the embedding is adapted, the head that shares its weight is not"
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(InputError, match=r"merging transformer\.wte would change lm_head as well"):
            merge()
    torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(gpt2(), tmp_path).eval()(ids).logits, logits)


def test_weighted_combinations_are_refused_by_name():
    model = get_peft_model(tiny_llama(), LRLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(InputError, match=r"add_weighted_adapter .* phi"):
        model.add_weighted_adapter(["default"], [1.0], "sum")


class TestTRL:
    """trl.SFTTrainer with peft_config=LRLoraConfig(...)."""

    @pytest.fixture(autouse=True)
    def _trl(self):
        pytest.importorskip("trl", reason="trl is not installed")

    def trainer(self, tiny_decoder, tmp_path, model, make_optimizer=None, **fields):
        import datasets
        import trl

        tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_decoder)
        rows = datasets.Dataset.from_list([{"text": f"the number {n} is a number"} for n in range(12)])
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, report_to=[], disable_tqdm=True,
            use_cpu=True, bf16=False, save_strategy="no", learning_rate=1e-2, gradient_checkpointing=False, **fields,
        )  # fmt: skip
        config = LRLoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        trainer = trl.SFTTrainer(
            model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=config
        )
        trainer.optimizer = None if make_optimizer is None else make_optimizer(trainer.model)
        return trainer

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
    def test_c_moves_as_far_without_groups_of_its_own_and_decay_leaves_the_slope(self, tiny_decoder, tmp_path):
        found = {}
        grouped = lambda model: torch.optim.AdamW(param_groups(model, lr=1e-2))  # noqa: E731
        for name, make_optimizer, decay in (("plain", None, 0.0), ("groups", grouped, 0.0), ("decay", None, 0.1)):
            transformers.set_seed(0)
            model = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder)
            trainer = self.trainer(tiny_decoder, tmp_path, model, make_optimizer, weight_decay=decay)
            trainer.train()
            moved = [(delta.c - delta.c_start).detach() for *_, delta in deltas(trainer.model)]
            slopes = [phi_slope(torch.zeros(1), delta.c.detach(), 1.0, "sinc") for *_, delta in deltas(trainer.model)]
            found[name] = torch.stack(moved), torch.cat(slopes)
        far = found["groups"][0].norm()
        assert far > 0.1
        assert found["plain"][0].norm() == pytest.approx(far.item(), rel=0.1)
        torch.testing.assert_close(found["decay"][1], found["plain"][1], rtol=0.01, atol=0.01)

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
    def test_three_steps(self, tiny_decoder, tmp_path):
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder)
        trainer = self.trainer(tiny_decoder, tmp_path, model)
        before = [delta.c.detach().clone() for *_, delta in deltas(trainer.model)]
        trainer.train()
        after = [delta.c for *_, delta in deltas(trainer.model)]
        assert {c.dtype for c in after} == {torch.float32}
        assert all(not torch.equal(b, a) for b, a in zip(before, after, strict=True))

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
    def test_c_stays_float32_and_moves_on_a_quantised_base(self, tiny_decoder, tmp_path):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tiny_decoder,
            quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True),
            device_map="cpu",
            dtype=torch.float32,
        )
        trainer = self.trainer(tiny_decoder, tmp_path, model)
        before = [delta.c.detach().clone() for *_, delta in deltas(trainer.model)]
        trainer.train()
        for start, (*_, delta) in zip(before, deltas(trainer.model), strict=True):
            assert delta.theta.dtype == delta.A.dtype == torch.float32
            assert not torch.equal(delta.c, start.float())
