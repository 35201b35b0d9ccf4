"""What a carrier costs: training steps of the whole embedded encoder, with and without: python -m benchmarks.carrier"""

from __future__ import annotations

import transformers

from benchmarks import measure, methods, step


def main() -> None:
    """Rows for two lengths of a batch, into results/carrier.json."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = ("LoRA", "lrlora native", *(f"{name} native" for name in methods.CARRIED))
    measure.write_each("carrier", (step.training_row(names, tokens, 11) for tokens in (256, 1024)))


if __name__ == "__main__":
    main()
