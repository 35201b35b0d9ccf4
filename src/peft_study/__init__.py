"""Comparisons of PEFT methods: arms x tasks x learning rates x seeds, on one budget, resumable.

Needs the extra `study`. It depends on lrlora and lrlora not on it; `lrlora study` and `lrlora report` are its commands.

    spec, task      what a study is: Study, Task, Arm, Training
    yaml_fields     YAML into dataclasses; read: a study file into a Study
    methods         what an arm can be
    arms, base      a method and its fields into a config of PEFT, and a base model under it
    rows            the rows of a task in three parts
    task_kind       what a study asks of a kind of task; kinds: the kind of a task: held_out, images, commonsense, facts
    plan, scales    which cells a study has, which rate a search chooses, scales of updates
    cell            one training run, measured; workers, cluster: where it runs
    capacity        how much of the facts an adapter holds
    run, store      all cells, and results.jsonl; result: one row of it
    summary         means, intervals, paired differences; method_comparison: in PEFT's own shape
    answers         what a study says, in sentences
    page            a study in the page of `lrlora report`; tables: as CSV, LaTeX, PNG and PDF
    cli             `lrlora study`
"""

from peft_study.read import read_study
from peft_study.run import Machines, run_study
from peft_study.spec import Arm, Study, Task, Training

__all__ = ["Arm", "Machines", "Study", "Task", "Training", "read_study", "run_study"]
