"""Which elements matter: each criterion gives every state tensor a saliency; larger = keep.

A criterion is any callable `Stats -> {state name: saliency}`, broadcastable to the parameter. To write one, take what
it needs from `stats`; a criterion pays for what it touches. A saliency that is one entry long along a dimension says
nothing of the units along it. `@needing(...)` lets a criterion say at the door what it needs.
"""

from prunus.criteria.curvature import grasp, obc, obd, obs_diag
from prunus.criteria.flow import synflow
from prunus.criteria.gradient import snip, taylor, taylor_abs
from prunus.criteria.inputs import activation, apoz, flap, hrank, ria, wanda
from prunus.criteria.movement import Movement
from prunus.criteria.needs import Criterion, needing
from prunus.criteria.weight import bn_scale, fpgm, lamp, magnitude, magnitude_l2, random

__all__ = [
    "Criterion",
    "Movement",
    "activation",
    "apoz",
    "bn_scale",
    "flap",
    "fpgm",
    "grasp",
    "hrank",
    "lamp",
    "magnitude",
    "magnitude_l2",
    "needing",
    "obc",
    "obd",
    "obs_diag",
    "random",
    "ria",
    "snip",
    "synflow",
    "taylor",
    "taylor_abs",
    "wanda",
]
