"""Planning: an experiment and the installed components → the compiled timeline of complete training states. Still cold."""

from stackwise.plan.evaluations import EvaluationPlan
from stackwise.plan.planner import Plan, make_plan

__all__ = ["EvaluationPlan", "Plan", "make_plan"]
