"""A method of somebody else: a config class that a study names as tests.peft_study.own_method:HalvedConfig."""

from __future__ import annotations

from dataclasses import dataclass, field

import peft


@dataclass
class HalvedConfig(peft.LoraConfig):
    """LoRA with s = 1 / halvings^2 in the place of alpha."""

    halvings: int = field(default=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lora_alpha = self.r * 0.5**self.halvings  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class Unregistered(peft.PeftConfig):
    """A config without a method of PEFT."""

    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None


def not_a_class() -> None:
    """A function."""
