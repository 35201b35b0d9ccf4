"""The rows of a task for a base model: where its head has learned classes of these names already, in its order."""

from __future__ import annotations

from collections.abc import Callable

from lrlora.data import DataSource, TaskData, load_task
from lrlora.data.embedded import encoder_folder
from lrlora.data.tasks import IMAGES, WITH_CLASSES
from lrlora.saved.adapter import base_config, names_in_config
from lrlora.saved.base import AS_IT_IS, BaseOptions


def load_task_for(
    model: str | None,
    source: DataSource,
    say: Callable[[str], None] = lambda line: None,
    options: BaseOptions = AS_IT_IS,
) -> TaskData:
    """As `load_task`; the classes are numbered as the head of the base numbers them, if it knows them by name.

    For example, a model for natural language inference may call class 0 CONTRADICTION where the rows have entailment
    first. Case is ignored.

    Args:
        model: folder or hub name of the base; None: the embedded encoder.
        source: where the rows are.
        say: gets a line where the base has a head for as many classes of other names.
        options: how the base is loaded.

    Raises:
        InputError: as `load_task`.
    """
    task = load_task(source)
    if task.kind not in WITH_CLASSES:
        return task
    described = base_config(model or str(encoder_folder()), options) or {}
    head = "ForImageClassification" if task.kind == IMAGES else "ForSequenceClassification"
    has_head = any(head in name for name in described.get("architectures") or ())
    known = names_in_config(described) if has_head else []
    if len(known) != len(task.labels) or all(name.isdigit() for name in known):
        return task
    of_name = {name.casefold(): name for name in task.labels}
    if {name.casefold() for name in known} != set(of_name):
        say(
            f"the head of {model} was trained for the classes {', '.join(known)}; it is trained further for "
            f"{', '.join(task.labels)}, in this order"
        )
        return task
    ordered = [of_name[name.casefold()] for name in known]
    return task if ordered == task.labels else load_task(source, ordered)
