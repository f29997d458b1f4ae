"""Planning: an experiment and the installed components → the compiled timeline of complete training states. Still cold."""

from stackwise.plan.planner import EvaluationPlan, Plan, make_plan

__all__ = ["EvaluationPlan", "Plan", "make_plan"]
