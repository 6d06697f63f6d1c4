"""What every scheme is made of: op specifications, rules with reasons, recipes, and the staged pipeline."""

__all__ = ["Attribute", "Finding", "OpSpec", "Param", "Recipe", "Report", "Rule", "Scheme"]

from graphopt.core.op import Attribute, OpSpec, Param
from graphopt.core.recipe import Recipe
from graphopt.core.report import Finding, Report
from graphopt.core.rule import Rule
from graphopt.core.scheme import Scheme
