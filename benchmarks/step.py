"""Training steps and evaluation of the whole embedded encoder, all linear layers adapted: python -m benchmarks.step"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import transformers

from benchmarks import measure, methods
from lrlora.data.embedded import encoder_folder

BATCHES = {256: (8, 32), 1024: (16, 64), 4096: (32, 128)}
ROUNDS = 9


def encoder(name: str, num_basis: int = 11) -> torch.nn.Module:
    """The embedded encoder under a method."""
    torch.manual_seed(0)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(encoder_folder(), num_labels=2)
    if name == "base":
        return base
    return methods.adapt(name, base, 8, num_basis, target_modules="all-linear", task_type="SEQ_CLS").train()


def batch(tokens: int) -> dict[str, torch.Tensor]:
    """Random tokens: what is in them does not matter to the time."""
    rows, length = BATCHES[tokens]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (rows, length), generator=generator)
    return {"input_ids": ids, "labels": torch.randint(0, 2, (rows,), generator=generator)}


def training_step(model: torch.nn.Module, tokens: int):
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    given = batch(tokens)

    def step():
        model(**given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def training_row(names: tuple[str, ...], tokens: int, K: int) -> dict:
    """One row: seconds and peak memory of a training step of every method."""
    steps = {name: training_step(encoder(name, K), tokens) for name in names}
    row = {"what": "training step", "T": tokens, "K": K, "r": 8, "seconds": measure.in_turn(steps, ROUNDS)}
    row["peak_bytes"] = {name: measure.peak_bytes(step) for name, step in steps.items()}
    _show(row)
    return row


def basis_row(tokens: int) -> dict:
    """One row: the same step with K = 3, 11 and 33."""
    steps = {f"lrlora native K={K}": training_step(encoder("lrlora native", K), tokens) for K in (3, 11, 33)}
    row = {"what": "cost of K", "T": tokens, "r": 8, "seconds": measure.in_turn(steps, ROUNDS)}
    _show(row)
    return row


def evaluation_row(tokens: int) -> dict:
    """One row: forward passes without gradients; the base, LoRA and LR-LoRA as they are, and LR-LoRA merged."""
    models = {"base": encoder("base"), "LoRA": encoder("LoRA"), "lrlora": _plain_lrlora()}
    models["lrlora merged"] = _plain_lrlora().merge_and_unload()
    given = batch(tokens)

    def step_of(model):
        model.eval()

        def step():
            with torch.no_grad():
                model(**given)

        return step

    steps = {name: step_of(model) for name, model in models.items()}
    row = {"what": "evaluation", "T": tokens, "K": 11, "r": 8, "seconds": measure.in_turn(steps, ROUNDS)}
    _show(row)
    return row


def _plain_lrlora() -> torch.nn.Module:
    model = encoder("lrlora native")
    for module in model.modules():
        # evaluation takes the layer's own path, which keeps the adapted weight
        module.__dict__.pop("forward", None)
    return model


def _show(row: dict) -> None:
    shown = {name: f"{1e3 * measure.median(t):.1f}" for name, t in row["seconds"].items()}
    print(row["what"], f"T={row['T']} ms:", shown, flush=True)


def rows() -> Iterator[dict]:
    """Every row, as it is measured."""
    yield training_row(methods.NAMES, 256, 11)
    yield training_row(methods.QUICK, 1024, 11)
    yield training_row(methods.FEW, 4096, 11)
    yield basis_row(1024)
    yield evaluation_row(256)
    yield evaluation_row(1024)


def main() -> None:
    """All rows, into step.json of this CPU's instructions."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    measure.write_each(measure.on_this_cpu("step"), rows())


if __name__ == "__main__":
    main()
