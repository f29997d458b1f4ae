"""Planning: an experiment and the installed components → the compiled timeline of complete training states. Still cold."""

from stackwise.plan.evaluations import EvaluationPlan
from stackwise.plan.extents import FlopsOf
from stackwise.plan.planner import PriceSteps, make_draft, make_plan
from stackwise.plan.record import Plan

__all__ = ["EvaluationPlan", "FlopsOf", "Plan", "PriceSteps", "make_draft", "make_plan"]
