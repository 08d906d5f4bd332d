"""Accuracy by length: free-running with tools executed, or teacher-forced and labelled so."""

from hf_toolssm.evaluation.checked import evaluate_checked
from hf_toolssm.evaluation.exactness import FirstError, LengthResult
from hf_toolssm.evaluation.free_running import evaluate_free_running
from hf_toolssm.evaluation.teacher_forced import evaluate_teacher_forced

__all__ = ["FirstError", "LengthResult", "evaluate_checked", "evaluate_free_running", "evaluate_teacher_forced"]
