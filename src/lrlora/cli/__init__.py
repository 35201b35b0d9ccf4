"""The command `lrlora VERB`: one file per verb, which reads flags, calls the library and prints."""

from lrlora.cli.main import USAGE, VERBS, main

__all__ = ["USAGE", "VERBS", "main"]
