"""What was learned, for the eye: runs read together, their figures, and one page of HTML that needs no network."""

from lrlora.report.numbers import Findings, Run, findings, read_run

__all__ = ["Findings", "Run", "findings", "read_run"]
