"""How a folder is loaded, as Python for its model card: it runs in the folder, and with its name on the hub."""

from __future__ import annotations

from dataclasses import dataclass

from lrlora.saved.base import IMAGE_CLS
from lrlora.saved.card_origin import Base


@dataclass(frozen=True)
class Loading:
    """What the code for loading depends on.

    Args:
        loader: class of transformers for the base, or for the merged model.
        task_type: PEFT's word for the kind of task.
        is_ours: an LR-LoRA adapter, which PEFT knows once lrlora is imported.
        is_merged: a model without an adapter.
        has_tokenizer: whether the folder holds one.
        num_labels: of the head of a classifier; None where the base has it or there is none.
        pooling: that the head was trained with, where that is not the model's own.
        pads: whether the base has to be told the token to pad with: it is in the adapter's tokenizer alone.
        vocabulary: length that the base's embedding must be resized to; None: it has it.
    """

    loader: str
    task_type: str | None
    is_ours: bool = False
    is_merged: bool = False
    has_tokenizer: bool = True
    num_labels: int | None = None
    pooling: str = "auto"
    pads: bool = False
    vocabulary: int | None = None

    def text(self, base: Base) -> str:
        """The code, and what it needs."""
        needs = "transformers" if self.is_merged else "lrlora" if self.is_ours or self.pooling != "auto" else "peft"
        return f"```\npip install {needs}\n```\n\n```python\n{self.code(base)}\n```"

    def code(self, base: Base) -> str:
        """Python that leaves `model`, and `tokenizer`, or of images `processor`, where there is one."""
        where = 'folder = "."  # this folder, or its name on the hub'
        is_of_images = self.task_type == IMAGE_CLS
        reads, reader = ("processor", "AutoImageProcessor") if is_of_images else ("tokenizer", "AutoTokenizer")
        imports = f"from transformers import {self.loader}" + (f", {reader}" if self.has_tokenizer else "")
        tokenizer = [f"{reads} = {reader}.from_pretrained(folder)"] if self.has_tokenizer else []
        if self.is_merged:
            lines = [imports, "", where, f"model = {self.loader}.from_pretrained(folder).eval()", *tokenizer]
            return "\n".join(lines)
        lines = ["import lrlora  # makes PEFT know the method"] if self.is_ours else []
        lines += ["from lrlora.saved import set_pooling"] if self.pooling != "auto" else []
        lines += [f"from peft import {'PeftModel' if base.hub_name else 'PeftConfig, PeftModel'}", imports, "", where]
        lines += _name_of(base)
        head = "" if self.num_labels is None else f", num_labels={self.num_labels}"
        head += ", ignore_mismatched_sizes=True" if is_of_images else ""
        lines += [f"base = {self.loader}.from_pretrained(name{head})", *tokenizer]
        lines += [f"base.resize_token_embeddings({self.vocabulary}, mean_resizing=False)"] if self.vocabulary else []
        lines += ["base.config.pad_token_id = tokenizer.pad_token_id"] if self.pads and self.has_tokenizer else []
        lines += [f"set_pooling(base, {self.pooling!r})"] if self.pooling != "auto" else []
        return "\n".join([*lines, "model = PeftModel.from_pretrained(base, folder).eval()"])


def _name_of(base: Base) -> list[str]:
    if base.hub_name:
        return [f'name = "{base.hub_name}"']
    elsewhere = f"name = {base.how}, with lrlora[demo]" if base.how else f"write here where {base.name} is"
    return [
        f"# the folder of the base on the machine that trained; elsewhere {elsewhere}",
        "name = PeftConfig.from_pretrained(folder).base_model_name_or_path",
    ]
