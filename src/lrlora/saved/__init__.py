"""What is on disk: adapter folders, run folders, what they were made from, and how they are loaded again."""

from lrlora.saved.adapter import AdapterFolder, read_adapter
from lrlora.saved.load import load_adapter
from lrlora.saved.pooling import set_pooling
from lrlora.saved.run import RunFolder
from lrlora.saved.updates import stored_updates

__all__ = ["AdapterFolder", "RunFolder", "load_adapter", "read_adapter", "set_pooling", "stored_updates"]
