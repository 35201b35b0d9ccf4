"""Tasks and their text: a local folder, the hub, or the embedded sample, read into one shape, `TaskData`."""

from lrlora.data.load import DataSource, load_task
from lrlora.data.tasks import GLUE, Kind, TaskData

__all__ = ["GLUE", "DataSource", "Kind", "TaskData", "load_task"]
