"""Planning: an experiment and the installed components → the compiled timeline of complete training states. Still cold."""

from stackwise.plan.evaluations import EvaluationPlan
from stackwise.plan.planner import make_plan
from stackwise.plan.record import Plan

__all__ = ["EvaluationPlan", "Plan", "make_plan"]
