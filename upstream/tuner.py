"""Which of our files make which file of PEFT's tuner, and what is changed on the way."""

from __future__ import annotations

import ast
from pathlib import Path

from upstream.parts import Part, Piece, Target, assembled, read

HEADER = """\
# Copyright 2026-present the HuggingFace Inc. team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
PEFT_INTERNALS = "tuner/internals.py"
"""Our file that imports what of PEFT is not public; inside PEFT each file imports what it needs."""

_CHOOSE_NATIVE = """\
    name = "native" if A.device.type == "cpu" else "triton"
    passes, reason = _backend(name, A)
    return (plain, f"eager, because {reason}") if passes is None or reason is not None else (passes, name)
"""
_CHOOSE_TRITON = """\
    passes, reason = _backend("triton", A)
    return (plain, f"eager, because {reason}") if passes is None or reason is not None else (passes, "triton")
"""
_BACKEND_NATIVE = """\
    if name == "native":
        passes = _instead.get(name, native.PASSES)
        return passes, passes.why_not(A)
"""
_DEFINITION_OF_WEIGHT = """\
        if is_by_definition(impl):
            dW = definition.delta_weight(A, B, c, tau, scale, phi=phi, carrier=carrier)
            return (dW if W0 is None else W0 + dW).to(dtype or dW.dtype)
"""
_ROWS_LEFT_OUT = """\
            numbers = None if _is_batched(dy) else ctx.passes.nonzero_rows(dy, factors)
            if numbers is not None:
                rows_of_x, rows_of_dy = rows_of_x.index_select(0, numbers), rows_of_dy.index_select(0, numbers)
"""
_ROWS_PUT_BACK = """\
            if dx is not None and numbers is not None:
                dx = dx.new_zeros(x.shape).view(-1, x.shape[-1]).index_copy_(0, numbers, dx)
"""
_NONZERO_ROWS = """\
        nonzero_rows: of dY [*batch, out] and the factors: the numbers of its rows, counted through the batch, that
            are not all zero, where it pays to leave the others out; None: all rows are computed.
"""
_DEFINITION_OF_LINEAR = """\
    if is_by_definition(impl):
        with without_autocast(x.device):
            return definition.adapted_linear(x, W0, bias, A, B, c, tau, scale, phi=phi, carrier=carrier)
"""
_DEFINITION_OF_UPDATE = """\
    if is_by_definition(impl):
        with without_autocast(A.device):
            return definition.delta_weight(A, B, c, tau, scale, phi=phi, carrier=carrier, rows=rows)
"""
_DEFINITION_OF_EXPERTS = """\
    if is_by_definition(impl):
        with without_autocast(A.device):
            dW = _updates(A, B, c, tau, scale, phi, carrier)
            return (dW if W0 is None else W0 + dW).to(dtype)
"""
_LEFT_OF_DISPATCH = ("using", "_instead", "by_definition", "is_by_definition", "_opened")
_HELD_DROPOUT = """\
        held: Any = self.lrlora_dropout[adapter_name] if adapter_name in self.lrlora_dropout else None
"""
_HELD_DROPOUT_IN_PEFT = """\
        held: Any = None
        if adapter_name in self.lrlora_dropout:
            held = self.lrlora_dropout[adapter_name]
"""
_OUT_OF_DATE = """\
                f"this adapter has config_version {self.config_version}, this lrlora reads up to {CONFIG_VERSION}; "
                "upgrade it: pip install -U lrlora"
"""
_OUT_OF_DATE_PEFT = """\
                f"this adapter has config_version {self.config_version}, this PEFT reads up to {CONFIG_VERSION}; "
                "upgrade it: pip install -U peft"
"""

TARGETS = (
    Target("config.py", (
        Part("tuner/checks.py", leave=("check_tensors",)),
        Part(
            "tuner/config.py",
            leave=("_field", "LRLoraConfig.__init__", "LRLoraConfig.from_lora", "LRLoraConfig.to_lora"),
            edits=(
                ("from peft import LoraConfig, PeftConfig\n", "from peft.config import PeftConfig\n"),
                ('PeftType("LRLORA")', "PeftType.LRLORA"),
                (_OUT_OF_DATE, _OUT_OF_DATE_PEFT),
                (
                    '"auto" needs `lrlora.TauCallback` in the Trainer (`lrlora train` adds it), or\n'
                    "            `lrlora.follow_tau` in your own loop.",
                    '"auto" needs `TauCallback` in the Trainer, or `follow_tau` in your own loop, both in\n'
                    "            `peft.tuners.lrlora.tau_callback`.",
                ),
                ("(`lrlora.method.carrier`)", "(`peft.tuners.lrlora.carrier`)"),
                ("version of these fields, written by lrlora.", "version of these fields."),
                ("ValueError: (a ValueError) a field", "ValueError: a field"),
                ("raise ValueError(f\"{name} must be a dictionary", "raise TypeError(f\"{name} must be a dictionary"),
                ('"residual" (ours: z + sincs', '"residual" (not in the paper: z + sincs'),
                ('or "linear" (ours: no knee', 'or "linear" (not in the paper: no knee'),
                ('"signs" (ours) uses phi', '"signs" (not in the paper) uses phi'),
                ("other names and values into ours.", "other names and values into those of this config."),
            ),
        ),
    )),
    Target("nonlinearity.py", (Part("method/nonlinearity.py", leave=("phi_slope",), edits=(
        ("Source: ours; the paper's initialisation is not public.", "The paper's initialisation is not public."),
        ('for form "residual" (ours), and', 'for form "residual" (not in the paper), and'),
    )),), said_in="method/nonlinearity.py"),
    Target("carrier.py", (Part("method/carrier.py", leave=("gate",), edits=(
        ("Ours, not the paper's.", "It is not in the paper."),
    )),), said_in="method/carrier.py"),
    Target("fast.py", (Part("method/series.py"), Part("method/fast.py", leave=("phi",), edits=(
        (" Derivation: ours.", ""),
        ("`lrlora.ops` runs them unchanged. What does not depend on z is\n"
         "computed beforehand, into a `Phi`.",
         "`ops.py` runs them. What does not depend on z is computed beforehand, into a `Phi`."),
    ))), said_in="method/fast.py"),
    Target("ops.py", (
        Part("method/update.py", take=("at_least_float32", "check_factors")),
        Part("ops/passes.py", edits=(
            ("`lrlora.ops.eager` is the one that says in plain torch what each function computes",
             "`write_weight` and its neighbours say in plain torch what each function computes"),
            ("`numbers` of the backend made them (`fast.Phi`, `triton.Numbers`)",
             "`numbers` of the backend made them (`fast.Phi`, `triton_ops.Numbers`)"),
            (_NONZERO_ROWS, ""),
            ("    nonzero_rows: Callable[[Tensor, Factors], Tensor | None] = lambda dy, factors: None\n", ""),
        )),
        Part("ops/tiles.py"),
        Part("ops/eager.py"),
        Part("ops/dispatch.py", leave=_LEFT_OF_DISPATCH, edits=(
            ('Literal["auto", "definition", "eager", "native", "triton"]', 'Literal["auto", "eager", "triton"]'),
            ('if impl in ("eager", "native", "triton"):', 'if impl in ("eager", "triton"):'),
            (_CHOOSE_NATIVE, _CHOOSE_TRITON),
            (_BACKEND_NATIVE, ""),
            ("from lrlora.ops import triton\n", "from . import triton_ops\n"),
            ("_instead.get(name, triton.PASSES)", "triton_ops.PASSES"),
            ('_instead.get("eager", eager.passes(A.device))', "passes(A.device)"),
        )),
        Part("ops/linear.py", edits=(
            (_DEFINITION_OF_LINEAR, ""), (_DEFINITION_OF_UPDATE, ""), (_DEFINITION_OF_WEIGHT, ""),
            ('"auto", "triton" (CUDA), "native" (CPU with a C++ compiler), "eager" (plain torch, any device) or\n'
             '            "definition" (the plain formula through autograd; "auto" is it inside `lrlora.by_definition` '
             "and in\n            transforms of torch.func).",
             '"auto", "triton" (CUDA) or "eager" (plain torch, any device).'),
            ("from lrlora.ops import huge_pages\n", ""),
            ("huge_pages.product(dy_of_rows.T, rows_of_x)", "dy_of_rows.T @ rows_of_x"),
            ("(`lrlora.method.carrier`)", "(`carrier.py`)"),
            ("Arguments, returns and errors as for `lrlora.method.update.delta_weight`; impl as for `adapted_linear`.",
             "Arguments and errors as for `adapted_linear`; rows: where B holds some rows of a larger matrix, their\n"
             "    numbers in it: a carrier's signs go by them."),
            ('"second derivatives (create_graph=True) are not implemented by the fused op; compute the output '
             'inside "\n            "`with lrlora.by_definition():`, which keeps a graph of everything"',
             '"second derivatives (create_graph=True) are not implemented by LR-LoRA"'),
            ('are not implemented by the fused op; compute "\n            "the output inside `with '
             'lrlora.by_definition():`, or take them one by one"',
             'are not implemented by "\n            "LR-LoRA; take them one by one"'),
            (_ROWS_LEFT_OUT, ""), (_ROWS_PUT_BACK, ""),
        )),
        Part("ops/experts.py", leave=("_updates",), edits=(
            (_DEFINITION_OF_EXPERTS, ""),
        )),
    )),
    Target("triton_ops.py", (
        Part("ops/triton_kernels.py", renames=(("series.", "fast."), ("import series", "import fast"))),
        Part("ops/triton.py", renames=(("`eager.", "`ops."),)),
    )),
    Target("delta.py", (
        Part("method/rank.py", take=("product_rms",)),
        Part("internals.py", take=("is_tracing",)),
        Part("tuner/theta.py", leave=("RootPhi", "from_root", "Sharers.leave")),
        Part("tuner/kept.py"),
        Part("tuner/delta.py", leave=("LRLoraDelta.is_phi_in_root",)),
    )),
    Target("layer.py", (
        Part("internals.py", take=("has_hooks", "own_parameters", "convolve")),
        Part("tuner/snapshot.py"),
        Part("tuner/layer.py", edits=((_HELD_DROPOUT, _HELD_DROPOUT_IN_PEFT),)),
        Part("tuner/types.py"),
        Part("tuner/experts.py"),
        Part("tuner/attention.py"),
    )),
    Target("model.py", (
        Part(
            PEFT_INTERNALS,
            take=("resolve_quantization", "is_all_linear", "include_all_linear", "tuner_key_prefixes"),
        ),
        Part("tuner/checks.py", take=("check_tensors",)),
        Part("tuner/names.py", take=("block_of", "type_of")),
        Part("tuner/mixed.py", edits=(
            ('raise ValueError(f"adapter_names must be a list', 'raise TypeError(f"adapter_names must be a list'),
        )),
        Part("tuner/targets.py"),
        Part("tuner/model.py", edits=(
            ("        selected |= from_root(model, adapter_name, state_dict)\n", ""),
            ("target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
             "target_module_mapping = TRANSFORMERS_MODELS_TO_LRLORA_TARGET_MODULES_MAPPING"),
            ('"lrlora.TauCallback() to the Trainer\'s callbacks, or call lrlora.follow_tau in your own loop."',
             '"TauCallback() to the Trainer\'s callbacks, or call follow_tau in your own loop; both are in "\n'
             '                "peft.tuners.lrlora.tau_callback."'),
            ("in lrlora.deltas(model)", "in deltas(model)"),
        )),
    )),
    Target("tau_callback.py", (
        Part("tuner/optimize.py", leave=("param_groups",)),
        Part("tuner/callback.py", edits=(
            ('"""The callback that tau = "auto" needs, for transformers.Trainer and everything built on it."""',
             '"""The callback that tau = "auto" needs, for transformers.Trainer and everything built on it.\n\n'
             "It is imported from this module and not from peft: transformers' Trainer imports peft itself.\n\"\"\""),
            ("Calls `lrlora.follow_tau` at", "Calls `follow_tau` at"),
            ("callbacks=[lrlora.TauCallback()]", "callbacks=[TauCallback()]"),
        )),
    ), said_in="tuner/callback.py"),
)  # fmt: skip
_OF_PEFT = {"TRANSFORMERS_MODELS_TO_LRLORA_TARGET_MODULES_MAPPING": "peft.utils.constants"}
"""Names of PEFT's that only the patched tree has."""
_MODULES = {"ops": "ops", "fast": "fast"}
"""Modules of ours that code names as modules, and which file they are there."""


def files(source: Path) -> dict[str, str]:
    """The files of the tuner by name, made of the sources below a folder; imports are not sorted yet.

    Raises:
        ValueError: our sources are not as the edits know them.
    """
    pieces = {target.file: [read(part, source) for part in target.parts] for target in TARGETS}
    home = {name: file for file, found in pieces.items() for piece in found for name in piece.names}
    internals = read(Part(PEFT_INTERNALS), source).imports
    peft_home = {**_homes_of(internals), **_OF_PEFT}
    made = {}
    for target in TARGETS:
        lines = [line for piece in pieces[target.file] for line in _imports(target.file, piece, home, peft_home)]
        made[target.file] = assembled(target, pieces[target.file], lines, HEADER)
    return made


def _homes_of(imports: list[ast.Import | ast.ImportFrom]) -> dict[str, str]:
    found = {}
    for node in imports:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: str(node.module) for alias in node.names}
    return found


def _imports(file: str, piece: Piece, home: dict[str, str], peft_home: dict[str, str]) -> list[str]:
    used = {n.id for n in ast.walk(ast.parse(piece.code)) if isinstance(n, ast.Name)}
    lines = []
    for node in piece.imports:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            continue
        if not isinstance(node, ast.ImportFrom) or str(node.module).split(".")[0] != "lrlora":
            lines.append(ast.unparse(node))
            continue
        for alias in node.names:
            if alias.name not in used or alias.name == "ValueError":
                continue
            if alias.name in home:
                if home[alias.name] != file:
                    lines.append(f"from .{home[alias.name].removesuffix('.py')} import {alias.name}")
            elif alias.name in _MODULES:
                lines.append(f"from . import {alias.name}")
            elif alias.name in peft_home:
                lines.append(f"from {peft_home[alias.name]} import {alias.name}")
            else:
                raise ValueError(f"{file} uses {node.module}.{alias.name}, which no part has: see upstream/tuner.py")
    # what an edit has put in the place of one of ours
    lines += [f"from {place} import {name}" for name, place in _OF_PEFT.items() if name in used]
    return lines
