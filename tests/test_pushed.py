"""`report.pushed`: every unit is in one bar of the picture, and bars of both models are over the same places."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import prunus
from prunus import Groups
from prunus.errors import PlanError
from prunus.report.pushed import BARS_A_DECADE, FLOOR, pushed

BAR = re.compile(r"V([\d.]+)h")


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 10, bias=False), nn.ReLU(), nn.Linear(10, 2))


def groups_of(model: nn.Module) -> Groups:
    return prunus.group(prunus.trace(model, torch.ones(2, 3)))


def heights(svg: str) -> list[list[float]]:
    """Of the bars of both outlines, in units: the lines of the grid say how high one is."""
    root = ElementTree.fromstring(svg)
    paths = [p.attrib["d"] for p in root.iter("{http://www.w3.org/2000/svg}path")]
    lines = [float(d.partition(" ")[2].partition("H")[0]) for d in paths if "V" not in d]
    labels = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text") if t.attrib.get("text-anchor") == "end"]
    one = (lines[0] - lines[-1]) / float(labels[-1] or 0)
    return [[(lines[0] - float(y)) / one for y in BAR.findall(d)] for d in paths if "V" in d]


def test_every_unit_is_in_one_bar() -> None:
    before, after = net(0), net(1)
    bars = heights(pushed(before, after, groups_of(before)))
    assert len(bars) == 2
    assert len(bars[0]) == len(bars[1])
    assert [sum(each) for each in bars] == pytest.approx([10, 10], abs=0.05)


def test_a_unit_of_a_known_norm_is_at_its_place_and_one_of_zero_is_in_the_first_bar() -> None:
    before, after = net(0), net(0)
    for model, sizes in ((before, [2.0] * 10), (after, [0.0] * 3 + [20.0] * 7)):
        model[0].weight.data = torch.tensor(sizes)[:, None] * torch.tensor([[1.0, 0.0, 0.0]])
        model[2].weight.data.zero_()
    whole, parted = heights(pushed(before, after, groups_of(before)))
    decades = 2 - FLOOR
    assert len(whole) == decades * BARS_A_DECADE
    assert whole[-2 * BARS_A_DECADE + 1] == pytest.approx(10, abs=0.05)  # log10(2) = 0.3 is in the second bar from 1
    assert (parted[0], parted[-BARS_A_DECADE + 1]) == pytest.approx((3, 7), abs=0.05)


def test_names_are_those_given_and_cannot_break_the_picture() -> None:
    model = net(0)
    svg = pushed(model, model, groups_of(model), names=("<a>", "b & c"))
    said = [t.text for t in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "<a> (10 units)" in said
    assert "b & c (10 units)" in said


def test_a_smaller_model_is_refused() -> None:
    model = net(0)
    groups = groups_of(model)
    plan = prunus.allocate(groups, prunus.score(model, groups, prunus.criteria.random), prunus.Budget("units", 0.5))
    with pytest.raises(PlanError, match="but the groups speak of shape"):
        pushed(model, prunus.shrink(model, plan), groups)
