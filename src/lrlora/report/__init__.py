"""What was learned, for the eye: runs read together, their figures, and one page of HTML that needs no network."""

from lrlora.report.findings import Findings, findings

__all__ = ["Findings", "findings"]
