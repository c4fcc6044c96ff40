"""Prune neural networks: really smaller, proven equal, every number measured."""

from prunus import criteria, densities, errors, regularize, schedules, scores, statistics
from prunus.allocate import allocate
from prunus.apply.carry import carry
from prunus.apply.drop import drop_layers
from prunus.apply.fold import fold_constants
from prunus.apply.gradual import Gradual
from prunus.apply.iterative import plan_iteratively
from prunus.apply.layers import Layers, layers
from prunus.apply.mask import Mask, mask
from prunus.apply.regrow import Regrow
from prunus.apply.shrink import shrink
from prunus.apply.verify import Proof, verify
from prunus.errors import PrunusError
from prunus.export import Exported, export
from prunus.from_zeros import plan_from_zeros
from prunus.graph.graph import Graph
from prunus.graph.group import group
from prunus.graph.groups import Group, Groups
from prunus.graph.interpret import GraphModel
from prunus.graph.trace import trace
from prunus.lottery import Ticket, lottery
from prunus.measure import measure, onnx_latency
from prunus.patterns import Block, Channel, Element, NofM
from prunus.pipeline import prune
from prunus.plan import Plan, load_plan
from prunus.recover import distillation, finetune, recalibrate
from prunus.report.report import report
from prunus.result import Result, compare
from prunus.save import load, save
from prunus.score import score
from prunus.stats import Stats
from prunus.types import Budget, Inputs, Measurement

__all__ = [
    "Block",
    "Budget",
    "Channel",
    "Element",
    "Exported",
    "Gradual",
    "Graph",
    "GraphModel",
    "Group",
    "Groups",
    "Inputs",
    "Layers",
    "Mask",
    "Measurement",
    "NofM",
    "Plan",
    "Proof",
    "PrunusError",
    "Regrow",
    "Result",
    "Stats",
    "Ticket",
    "allocate",
    "carry",
    "compare",
    "criteria",
    "densities",
    "distillation",
    "drop_layers",
    "errors",
    "export",
    "finetune",
    "fold_constants",
    "group",
    "layers",
    "load",
    "load_plan",
    "lottery",
    "mask",
    "measure",
    "onnx_latency",
    "plan_from_zeros",
    "plan_iteratively",
    "prune",
    "recalibrate",
    "regularize",
    "report",
    "save",
    "schedules",
    "score",
    "scores",
    "shrink",
    "statistics",
    "trace",
    "verify",
]
