"""tau = "auto": TauCallback moves the knee while training, and it is saved."""

import warnings

import pytest
import torch
from peft import PeftModel

from lrlora import TauCallback
from lrlora.tuner import deltas
from tests.conftest import move_knees, tiny_bert, token_ids
from tests.tuner.adapted import adapted, logits


class TestAutoTau:
    def test_phi_is_the_identity_until_its_step_and_then_follows(self):
        model = adapted(tau="auto", kappa=2.0, tau_warmup_steps=3, tau_follow=0.5)
        delta = deltas(model)[0][3]
        rms = (delta.B @ delta.A).square().mean().sqrt()
        torch.testing.assert_close(deltas(model)[0][1].get_delta_weight("default"), 2 * delta.B @ delta.A)
        assert not move_knees(model, step=2, total_steps=20)
        assert delta.tau.isinf()
        assert move_knees(model, step=3, total_steps=20)
        assert delta.tau.item() == pytest.approx(2 * rms.item(), rel=1e-5)
        with torch.no_grad():
            delta.B.mul_(3)
        assert move_knees(model, step=10, total_steps=20)
        assert delta.tau.item() == pytest.approx(6 * rms.item(), rel=1e-5)
        with torch.no_grad():
            delta.B.mul_(3)
        assert not move_knees(model, step=11, total_steps=20)
        assert delta.tau.item() == pytest.approx(6 * rms.item(), rel=1e-5)

    def test_it_is_saved(self, tmp_path):
        model = adapted(tau="auto", tau_warmup_steps=1)
        move_knees(model, step=1, total_steps=10)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
        assert [d.tau.item() for *_, d in deltas(again)] == [d.tau.item() for *_, d in deltas(model)]
        assert torch.equal(logits(again), logits(model))

    def test_saving_without_calibration_warns(self, tmp_path):
        with pytest.warns(UserWarning, match="never calibrated"):
            adapted(tau="auto").save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=UserWarning)
            adapted().save_pretrained(tmp_path)

    def test_a_fixed_tau_is_left_alone(self):
        model = adapted(tau=0.05)
        assert not move_knees(model, step=50, total_steps=60)

    def test_the_callback_moves_it_inside_a_trainer(self, tmp_path):
        from transformers import Trainer, TrainingArguments

        model = adapted(tau="auto", tau_warmup_steps=2)
        rows = [{"input_ids": ids, "labels": n % 3} for n, ids in enumerate(token_ids(8).tolist())]
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, report_to=[], disable_tqdm=True,
            save_strategy="no", use_cpu=True,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[TauCallback()]).train()
        assert all(delta.tau.isfinite() for *_, delta in deltas(model))
