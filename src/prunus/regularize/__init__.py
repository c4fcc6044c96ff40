"""Pushing whole groups towards zero while a model trains, so that cutting them later costs next to nothing.

Each is made of groups and settings and rides along in the training of any loop: `attach(model, *optimizers)` returns a
handle whose `detach()` ends it, `penalty(model)` is the value of its term, `state_dict()` goes into your checkpoint.
"""

from prunus.regularize.bn_scale import bn_scale
from prunus.regularize.greg import GReg
from prunus.regularize.group_lasso import group_lasso
from prunus.regularize.l0 import L0
from prunus.regularize.l1 import l1
from prunus.regularize.push import Push
from prunus.regularize.ride import Ride

__all__ = ["L0", "GReg", "Push", "Ride", "bn_scale", "group_lasso", "l1"]
