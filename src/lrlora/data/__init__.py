"""Tasks and their text: a local folder, the hub, or the embedded sample, read into one shape, `TaskData`."""

from lrlora.data.load import load_evaluation, load_task
from lrlora.data.source import DataSource
from lrlora.data.tasks import GLUE, Kind, TaskData

__all__ = ["GLUE", "DataSource", "Kind", "TaskData", "load_evaluation", "load_task"]
