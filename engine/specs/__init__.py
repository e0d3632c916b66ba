"""What is to be done, as plain data. No torch, no Qt: window, command line and worker all speak these."""

from engine.errors import InvalidSpec
from engine.specs.data import (DataReport, DescribeData, Edit, Fix, LintData, LintReport, Problem, RenderedRow, RenderRow, RowsPage,
                               ShowRows)
from engine.specs.fields import Spec, describe_fields, knob, problems
from engine.specs.jobs import JOB_KINDS, ExportSpec, FetchSpec, FindSpeedSpec, RebuildSpec, ReviewSpec, StackEntry, TrainSpec
from engine.specs.talk import ANSWER_KINDS, TALK_KINDS, DescribeMethods, EstimatePlan, MethodsReport, OpenChat, PlanReport, Say, SetStrengths

KINDS: dict[str, type[Spec]] = {**JOB_KINDS, **TALK_KINDS, **ANSWER_KINDS}


def from_dict(data: dict) -> Spec:
    """Revive any spec from JSON by its ``kind``. Raises `InvalidSpec`."""
    cls = KINDS.get(data.get("kind", "")) if isinstance(data, dict) else None
    if cls is None:
        raise InvalidSpec("This is not a job that the studio knows.", do=f"“kind” must be one of {', '.join(KINDS)}.")
    return cls.from_dict(data)


__all__ = [
    "ANSWER_KINDS", "JOB_KINDS", "KINDS", "TALK_KINDS", "DataReport", "DescribeData", "DescribeMethods", "Edit", "EstimatePlan",
    "ExportSpec", "FetchSpec", "FindSpeedSpec", "Fix", "LintData", "LintReport", "MethodsReport", "OpenChat", "PlanReport", "Problem", "RebuildSpec",
    "RenderRow", "RenderedRow", "ReviewSpec", "RowsPage", "Say", "SetStrengths", "ShowRows", "Spec", "StackEntry", "TrainSpec",
    "describe_fields", "from_dict", "knob", "problems",
]
