"""What a carrier costs: training steps of the whole embedded encoder, with and without: python -m benchmarks.carrier"""

from __future__ import annotations

import transformers

from benchmarks import measure, methods, step


def main() -> None:
    """Rows for two lengths of a batch, into carrier.json of this CPU's instructions."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = ("LoRA", "lrlora native", *(f"{name} native" for name in methods.CARRIED))
    rows = (step.training_row(names, tokens, 11) for tokens in (256, 1024))
    measure.write_each(measure.on_this_cpu("carrier"), rows)


if __name__ == "__main__":
    main()
