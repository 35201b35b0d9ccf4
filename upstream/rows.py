"""Rows of LR-LoRA in the lists of PEFT's test files: those of tests/conformance, as source text."""

from __future__ import annotations

import ast
import re
from typing import Any

from tests.conformance.cases import CONFIG, rows
from tests.conformance.plugin import LISTS
from upstream.parts import edited

DERIVED = ("ALL_PEFT_CONFIG_CLASSES", "LAYER_INDEXING_CONFIG_CLASSES", "TOKEN_CLS_CONFIGS", "QA_CONFIGS")
"""Lists that PEFT's files make of others."""
_KNEE = """\
            config_kwargs = set_init_weights_false(config_cls, config_kwargs)
            X = self.prepare_inputs_for_testing()
{}        else:
            X = self.prepare_inputs_for_testing()

        model = self.transformers_class.from_pretrained(model_id).to(self.torch_device)
        config = config_cls(
            base_model_name_or_path=model_id,
            **config_kwargs,
        )
        model = get_peft_model(model, config)
        model_before = copy.deepcopy(model)

        is_monteclora"""
_OWN_KNEE = """\
        elif issubclass(config_cls, LRLoraConfig):
            # the default suits the small entries of B @ A in training; phi would be flat where SGD takes them here
            config_kwargs = {**config_kwargs, "tau": 1.0}
            X = self.prepare_inputs_for_testing()
"""
EDITS: dict[str, tuple[tuple[str, str], ...]] = {
    "test_custom_models": (
        (
            "        elif issubclass(config_cls, GloraConfig):\n            # GLoRA keeps some",
            "        elif issubclass(config_cls, LRLoraConfig):\n"
            "            # the gradient of the coefficients of phi is of second order while B is zero\n"
            "            lr = 5.0\n"
            "        elif issubclass(config_cls, GloraConfig):\n            # GLoRA keeps some",
        ),
        (_KNEE.replace("{}", ""), _KNEE.replace("{}", _OWN_KNEE)),
    ),
    "test_token_classification_qa": (
        (
            '        (LoraConfig, {"task_type": task_type, "target_modules": None}),\n',
            '        (LoraConfig, {"task_type": task_type, "target_modules": None}),\n'
            '        (LRLoraConfig, {"task_type": task_type, "target_modules": None}),\n',
        ),
    ),
}
"""What the files say outside of their lists."""
MIXED = """(
    "LR-LoRA mixed adapter",
    LRLoraConfig(target_modules=["lin0"], init_weights=False),
    LRLoraConfig(target_modules=["lin0"], r=16, init_weights=False),
)"""


def with_rows(name: str, text: str) -> str:
    """A test file of PEFT with rows of LR-LoRA at the end of each of its lists; it is not formatted yet.

    Args:
        name: of the file, without .py.
        text: of the file.

    Raises:
        ValueError: a list, or a line that is edited, is not where it was.
    """
    text = edited(text, EDITS.get(name, ()), name)
    text, found_imports = re.subn(
        r"^(?=from peft import )", "from peft import LRLoraConfig\n", text, count=1, flags=re.M
    )
    if not found_imports:
        raise ValueError(f"{name}.py imports nothing of peft by name: bring upstream/rows.py up to date")
    lines = text.splitlines()
    found = {node.targets[0].id: node.value for node in ast.parse(text).body if _is_list(node)}
    wanted = {list_name: kind for list_name, kind in LISTS[name].items() if list_name not in DERIVED}
    if missing := wanted.keys() - found.keys():
        raise ValueError(f"{name}.py has no list {', '.join(sorted(missing))}: bring upstream/rows.py up to date")
    for list_name in sorted(wanted, key=lambda known: -found[known].end_lineno):
        literal = found[list_name]
        of_lora = [ast.get_source_segment(text, row) or "" for row in literal.elts]
        kind = wanted[list_name]
        if kind == "mixed":
            ours = [MIXED]
        elif kind == "parameters":
            ours = [row.replace("LoraConfig", "LRLoraConfig", 1) for row in of_lora]
        else:
            ours = [_source_of(row) for row in rows(kind, [])]
        # the bracket that closes the list stands on a line of its own
        place = literal.end_lineno - 1
        lines[place:place] = [f"{row}," for row in ours]
    return "\n".join(lines) + "\n"


def _is_list(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Tuple)


def _source_of(value: Any) -> str:
    if value is CONFIG:
        return "LRLoraConfig"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_source_of(key)}: {_source_of(held)}' for key, held in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_source_of, value))})"
    if isinstance(value, list):
        return f"[{', '.join(map(_source_of, value))}]"
    return repr(value)
