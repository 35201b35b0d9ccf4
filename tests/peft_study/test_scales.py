"""The scale s of an arm's update."""

import pytest

from peft_study.arms import adapted, adapter_config
from peft_study.scales import Scale, scale_lines, scale_of
from peft_study.spec import Arm, Study, Task
from tests.conftest import tiny_bert


@pytest.mark.parametrize(
    ("arm", "s"),
    [
        (Arm("a", "lora", {"r": 32}), 2.0),
        (Arm("a", "lora"), 2.0),
        (Arm("a", "lora", {"r": 32, "lora_alpha": 16}), 0.5),
        (Arm("a", "dora", {"r": 3}), 2.0),
        (Arm("a", "rslora", {"r": 16}), 8.0),
        (Arm("a", "lora", {"r": 16, "use_rslora": True}), 8.0),
        (Arm("a", "adalora", {"init_r": 6, "target_r": 2}), 2.0),
        (Arm("a", "randlora", {"r": 4}), 20.0),
        (Arm("a", "loha", {"r": 16}), 2.0),
        (Arm("a", "sine", {"r": 32}), 2.0),
        (Arm("a", "lrlora", {"r": 32}), 2.0),
        (Arm("a", "lrlora", {"r": 32, "lora_alpha": 8}), 0.25),
        *((Arm("a", method), None) for method in ("full", "hira", "vera", "fourierft", "peanut")),
    ],
    ids=lambda value: f"{value.method}-{value.fields}" if isinstance(value, Arm) else "",
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_scale_of_an_arm_is_that_of_its_layers(arm, s):
    study = Study("it", (arm,), (Task("t"),), (1e-3,), (0,))
    config = adapter_config(study, arm, "SEQ_CLS", 100)
    found = scale_of(config and config.to_dict())
    assert (found and found.s) == (None if s is None else pytest.approx(s))
    if s is None:
        return
    layers = [m for m in adapted(tiny_bert(2), config).modules() if isinstance(getattr(m, "scaling", None), dict)]
    assert len(layers) == 13
    # AdaLoRA keeps alpha, and divides by its rank in the forward pass
    divided = config.init_r if arm.method == "adalora" else 1
    assert [float(layer.scaling["default"]) / divided for layer in layers] == pytest.approx([s] * 13)


def test_arms_of_other_scales_at_one_rank_are_named():
    scales = [("lora", Scale(32, 0.5)), ("ours", Scale(32, 2.0)), ("more", Scale(8, 4.0)), ("hira", None)]
    (line,) = scale_lines([*scales, *scales])
    assert line.startswith("at r = 32 the arms have different scales s: 0.5 (lora); 2 (ours); ")
    assert scale_lines([("a", Scale(8, 2.0)), ("b", Scale(8, 2.0)), ("c", Scale(4, 1.0))]) == []
