"""Comparisons: methods x tasks x learning rates x seeds, on one budget, resumable. Needs the extra `study`."""

from lrlora.study.reading import read_study
from lrlora.study.run import Machines, run_study
from lrlora.study.spec import Arm, Study, Task, Training

__all__ = ["Arm", "Machines", "Study", "Task", "Training", "read_study", "run_study"]
