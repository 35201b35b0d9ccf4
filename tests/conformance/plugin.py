"""A pytest plugin that runs PEFT's parametrised tests with our cases: pytest -p tests.conformance.plugin FILES

PEFT's tests are parametrised with lists of its own methods. pytest's marks hold these very lists, so exchanging what is
in them, after a module is imported and before it is collected, exchanges the cases. The lists of a PEFT that has
LR-LoRA inside hold ours already: there the plugin only chooses our tests.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance import cases
from tests.conformance.deviations import reason_for
from tests.conformance.run import OWN

# module of PEFT's suite: {its list: kind of our cases}
LISTS = {
    "test_custom_models": {
        "TEST_CASES": "custom",
        "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": "several",
        "MIXED_ADAPTER_TEST_CASES": "mixed",
        "ALL_PEFT_CONFIG_CLASSES": "classes",
    },
    "test_decoder_models": {"ALL_CONFIGS": "CAUSAL_LM"},
    "test_encoder_decoder_models": {"ALL_CONFIGS": "SEQ_2_SEQ_LM"},
    "test_feature_extraction_models": {"ALL_CONFIGS": "FEATURE_EXTRACTION"},
    "test_seq_classifier": {"ALL_CONFIGS": "SEQ_CLS"},
    "test_token_classification_qa": {"TOKEN_CLS_CONFIGS": "TOKEN_CLS", "QA_CONFIGS": "QUESTION_ANS"},
    "test_config": {"ALL_CONFIG_CLASSES": "configs", "LAYER_INDEXING_CONFIG_CLASSES": "configs"},
    "test_target_parameters": {"ALL_CONFIGS": "parameters"},
    "test_quantization": {"TEST_CASES": "quantised"},
}


def pytest_configure(config: pytest.Config) -> None:
    """Exchange the cases."""
    for marker in ("single_gpu_tests", "multi_gpu_tests", "regression", "bitsandbytes"):
        config.addinivalue_line("markers", marker)
    package = os.environ["CONFORMANCE_PACKAGE"]
    pytest.register_assert_rewrite(package)
    for argument in config.args:
        name = Path(argument.split("::")[0]).stem
        module = importlib.import_module(f"{package}.{name}")
        for list_name, kind in LISTS.get(name, {}).items():
            if not hasattr(module, list_name):
                raise pytest.UsageError(f"{name}.{list_name} is not in this peft: bring plugin.LISTS up to date")
            if cases.METHOD == "upstream":
                continue
            _exchange(module, list_name, cases.rows(kind, list(getattr(module, list_name))))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Let a test end in the same way in whatever order, process or tree it runs: PEFT's tests draw without a seed."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _open_to_us(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the tests of mixed batches run: they skip every method whose config is not LoraConfig itself."""
    if "mixed_adapter_batches" not in request.node.name or request.module.__name__.endswith("test_custom_models"):
        yield
        return
    common = importlib.import_module(f"{os.environ['CONFORMANCE_PACKAGE']}.testing_common")
    with contextlib.ExitStack() as stack:
        for module in {common, request.module}:
            stack.enter_context(unittest.mock.patch.object(module, "LoraConfig", cases.CONFIG))
        yield


def _exchange(module: Any, list_name: str, ours: list[Any]) -> None:
    theirs = getattr(module, list_name)
    if isinstance(theirs, list):
        theirs[:] = ours
        return
    # a tuple cannot be changed: the marks that hold it are replaced
    setattr(module, list_name, tuple(ours))
    for holder in [value for value in vars(module).values() if isinstance(value, type)]:
        for function in vars(holder).values():
            for number, mark in enumerate(getattr(function, "pytestmark", [])):
                if mark.name == "parametrize" and mark.args[1] is theirs:
                    function.pytestmark[number] = pytest.mark.parametrize(mark.args[0], ours).mark


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other methods, and mark what we know to deviate."""
    mine = [item for item in items if _is_ours(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = mine
    if cases.METHOD == "lrlora":
        for item in items:
            reason = reason_for(item.nodeid)
            if reason is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_sessionfinish() -> None:
    """Tests of a PEFT that has LR-LoRA inside say something of it only where this package took no part."""
    assert cases.METHOD != "upstream" or "lrlora" not in sys.modules, "lrlora was imported"


def _is_ours(item: pytest.Item) -> bool:
    if item.path.stem == OWN:
        return True
    parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
    classes = [value if isinstance(value, type) else type(value) for value in parameters]
    return cases.CONFIG in classes
