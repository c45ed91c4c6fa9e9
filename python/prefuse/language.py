"""facade"""
from .errors import LanguageError
from .scoring.decorators import group_objective, pair_objective, point_objective, token_objective
from .scoring.objective import Objective
from .scoring.score import Score
from .tracing.expression import Expression
from .tracing.functions import *
