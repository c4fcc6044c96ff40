"""The facts of a page are those of the result, survive JSON and the directory, and can break out nowhere."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nets import Recipe, build, recipes
from reported import EVIL, EVILS, INPUTS, Net, result_of, rows_of, slower
from units import random_plan

import prunus
from prunus.cost import predict
from prunus.errors import ArtifactError
from prunus.report import charts, words
from prunus.report.compared import compared
from prunus.report.draw import drawn
from prunus.report.facts import facts_of_measurements, facts_of_result, facts_of_scan, figure_facts
from prunus.report.histogram import histograms
from prunus.report.layers import cut_of
from prunus.report.network import layers_of, macs_of
from prunus.report.page import embedded

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def cut() -> prunus.Result:
    torch.manual_seed(0)
    return result_of(Net())


@pytest.fixture(scope="module")
def zeroed() -> prunus.Result:
    torch.manual_seed(0)
    return result_of(Net(), prunus.Element())


@pytest.fixture
def saved(cut: prunus.Result, tmp_path: Path) -> Path:
    prunus.save(cut, tmp_path / "slim", rows=rows_of(cut), command="prunus run test")
    return tmp_path / "slim"


class Page(HTMLParser):
    """The start tags of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.words.append(data)


def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def said(path: Path) -> str:
    return " ".join(" ".join(page(path).words).split())


def embedded_facts(path: Path) -> Any:
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def without_samples(m: prunus.Measurement) -> dict[str, Any]:
    return {name: value for name, value in asdict(m).items() if name != "samples"}


def again(facts: Any) -> Any:
    return json.loads(json.dumps(facts))


@pytest.mark.parametrize("name", ["cut", "zeroed"])
def test_facts_are_those_of_the_result_and_survive_json(name: str, request: pytest.FixtureRequest) -> None:
    result: prunus.Result = request.getfixturevalue(name)
    facts = facts_of_result(result, rows_of(result), "command")
    assert again(facts) == facts
    for side in ("before", "after"):
        for figure, m in zip(facts[side], getattr(result, side), strict=True):
            assert without_samples(prunus.Measurement.of(again(figure))) == without_samples(m)
    assert result.change is not None
    assert facts["change"] == asdict(result.change)
    assert facts["history"] == list(result.history)
    assert facts["plan"]["provenance"]["seed"] == 0


@pytest.mark.parametrize("name", ["cut", "zeroed"])
def test_the_layers_add_up_to_what_was_measured(name: str, request: pytest.FixtureRequest) -> None:
    result: prunus.Result = request.getfixturevalue(name)
    rows = facts_of_result(result)["layers"]
    old, new = ({m.metric: m.value for m in side} for side in (result.before, result.after))
    assert sum(row["params"][0] for row in rows) == old["params"]
    assert sum(row["params"][1] for row in rows) == new["params" if name == "cut" else "nonzeros"]
    assert sum(row["macs"][0] for row in rows) == old["macs"]
    assert sum(row["macs"][1] for row in rows) == new["macs" if name == "cut" else "effective_macs"]


def test_a_layer_says_what_was_kept_and_why(cut: prunus.Result) -> None:
    rows = {row["name"]: row for row in facts_of_result(cut)["layers"]}
    assert rows["stem"]["units"] == [16, int(next(iter(cut.plan.keep.values())).sum())]
    assert (rows["stem"]["status"], rows["stem"]["why"]) == ("pruned", "magnitude, layer")
    assert (rows["head"]["status"], rows["head"]["why"]) == ("fixed", "an output of the model")


def test_a_layer_that_was_left_out_says_so() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    plan_groups = prunus.group(prunus.trace(net, torch.randn(2, 8)), skip="0")
    scores = prunus.score(net, plan_groups, prunus.criteria.magnitude)
    plan = prunus.allocate(plan_groups, scores, prunus.Budget("units", at_most=0.5))
    result = prunus.Result(prunus.shrink(net, plan), plan.graph, plan, (), ())
    status = {row["name"]: row["status"] for row in facts_of_result(result)["layers"]}
    assert status == {"0": "skipped", "2": "pruned", "3": "fixed"}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(recipes(), st.integers(0, 9))
def test_the_layers_of_any_network_add_up_to_the_costs_of_a_plan(recipe: Recipe, seed: int) -> None:
    model, inputs = build(recipe)
    try:
        groups = prunus.group(prunus.trace(model, inputs))
    except prunus.errors.GroupError:
        assume(False)
        raise
    plan = random_plan(groups, seed)
    graph, cut, costs = plan.graph, cut_of(plan.graph, plan), predict(plan.graph, plan.left)
    facts = facts_of_result(prunus.Result(model, graph, plan, (), ()))
    assert again(facts) == facts
    for at in (0, 1):
        assert sum(row["params"][at] for row in facts["layers"]) == costs["params"][at]
        sizes = {**(cut.kept if at else {}), **cut.own}
        assert sum(macs_of(layer, sizes) for layer in layers_of(graph)) == costs["macs"][at]
    assert all(i < n for n, layer in enumerate(facts["network"]) for i in layer["reads"])
    drawn(facts["network"])


def test_the_residual_connection_is_in_the_drawing(cut: prunus.Result) -> None:
    network = facts_of_result(cut)["network"]
    assert [(n["op"], n["reads"]) for n in network] == [
        ("input", []),
        ("conv2d", [0]),
        ("conv2d", [1]),
        ("add", [1, 2]),
        ("linear", [3]),
    ]
    drawing = drawn(network)
    assert drawing is not None
    assert (len(drawing.bars), len(drawing.straight), len(drawing.skips)) == (5, 4, 1)


def test_histograms_count_every_weight_once_and_zeros_apart(zeroed: prunus.Result) -> None:
    for name, found in zeroed.histograms.items():
        for spread in (found.before, found.after):
            assert spread.total == sum(spread.counts) + spread.beyond + spread.zeros
        if name:
            weight = zeroed.model.get_parameter(name)
            assert found.after.zeros == int((weight == 0).sum())
            assert found.before.zeros == 0


def test_histograms_of_weights_that_are_all_zero_or_not_finite() -> None:
    model = torch.nn.Linear(4, 4)
    torch.nn.init.zeros_(model.weight)
    assert histograms(model, model)["weight"].before.zeros == 16
    torch.nn.init.constant_(model.weight, float("nan"))
    assert sum(histograms(model, model)["weight"].before.counts) == 0


@pytest.mark.parametrize("name", ["cut", "zeroed"])
def test_a_page_is_small_and_loads_nothing(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    result: prunus.Result = request.getfixturevalue(name)
    path = prunus.report(result, tmp_path / "deep" / "page.html", rows=rows_of(result))
    assert path == tmp_path / "deep" / "page.html"
    assert 1 * MEBIBYTE < path.stat().st_size < 6 * MEBIBYTE
    assert path.read_text(encoding="utf-8").count("plotly.js v") == 1
    for tag, attributes in page(path).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "srcset", "poster", "data"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    style = (Path(charts.__file__).parent / "templates" / "page.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_a_folder_gets_a_page_of_the_usual_name(cut: prunus.Result, tmp_path: Path) -> None:
    assert prunus.report(cut, tmp_path) == tmp_path / "report.html"


def test_a_directory_gives_the_page_of_its_result(cut: prunus.Result, saved: Path, tmp_path: Path) -> None:
    direct = prunus.report(cut, tmp_path / "a.html", rows=rows_of(cut), command="prunus run test")
    later = prunus.report(saved, tmp_path / "b.html")
    facts = embedded_facts(later)
    assert facts.pop("weights")
    assert facts == embedded_facts(direct)
    assert said(later) == said(direct)
    assert "prunus run test" in said(later)


def test_zeros_are_never_called_speed(zeroed: prunus.Result, tmp_path: Path) -> None:
    assert prunus.result.ZEROS in said(prunus.report(zeroed, tmp_path / "page.html"))


def test_slower_than_dense_is_red_and_said(cut: prunus.Result, tmp_path: Path) -> None:
    slow = tuple(slower(m, 100) if m.metric == "latency_ms" else m for m in cut.before)
    path = prunus.report(replace(cut, after=slow), tmp_path / "page.html")
    assert "100.00× slower" in said(path)
    assert ("li", {"class": "card bad"}) in page(path).tags


def test_estimates_are_marked(cut: prunus.Result, tmp_path: Path) -> None:
    guessed = tuple(replace(m, estimated=True) for m in cut.after)
    assert "estimate" in said(prunus.report(replace(cut, after=guessed), tmp_path / "page.html"))
    assert "estimate" not in said(prunus.report(cut, tmp_path / "page.html"))


def test_a_page_without_accuracy_says_that_it_is_missing(cut: prunus.Result, tmp_path: Path) -> None:
    before, after = (tuple(m for m in side if m.metric != "accuracy") for side in (cut.before, cut.after))
    bare = replace(cut, before=before, after=after, change=None, histograms={}, history=())
    text = said(prunus.report(bare, tmp_path / "page.html"))
    assert "Accuracy was not measured" in text
    assert "Round by round" not in text


def test_evil_names_are_text_everywhere(tmp_path: Path) -> None:
    evil_class = type(EVIL, (Net,), {})

    def criterion(stats: prunus.Stats) -> Any:
        return prunus.criteria.magnitude(stats)

    criterion.__qualname__ = EVIL
    result = result_of(evil_class(tuple(name.replace(".", "·") for name in EVILS)), criterion=criterion)
    rows = rows_of(result, EVILS)
    for n, what in enumerate((result, result.plan.groups, result.graph, {EVIL: result.before, "b": result.after})):
        path = prunus.report(what, tmp_path / f"{n}.html", rows=rows if n == 0 else None, command=EVIL)
        found = page(path)
        assert [tag for tag, _ in found.tags].count("script") == (3 if n in (1, 2) else 4)
        assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
        assert EVIL in " ".join(found.words)
        assert embedded_facts(path)["command"] == EVIL
    drawn_points = charts.tradeoff(charts.points_of(facts_of_result(result, rows))[0], "MACs")
    assert drawn_points is not None
    assert not any("<" in trace["name"] for trace in drawn_points["data"])


def test_embedded_json_reads_the_same_and_holds_no_tag() -> None:
    value = {name: [name, 1.5, None] for name in EVILS}
    assert "<" not in embedded(value)
    assert json.loads(embedded(value)) == value
    assert embedded([float("inf")]) == "[null]"


def test_scan_facts_say_what_goes_together_and_what_is_fixed(tmp_path: Path) -> None:
    groups = prunus.group(prunus.trace(Net(), INPUTS))
    facts = facts_of_scan(groups)
    assert again(facts) == facts
    assert [g["name"] for g in facts["groups"]] == [g.name for g in groups]
    assert "an output of the model" in facts["fixed"]
    text = said(prunus.report(groups, tmp_path / "page.html"))
    assert "1 group with 16 units can be pruned" in text
    assert "Nothing was grouped" in said(prunus.report(groups.graph, tmp_path / "page.html"))


def test_measurements_side_by_side(cut: prunus.Result, tmp_path: Path) -> None:
    facts = facts_of_measurements({"dense": cut.before, "small": cut.after})
    assert again(facts) == facts
    text = said(prunus.report({"dense": cut.before, "small": cut.after}, tmp_path / "page.html"))
    assert "fewer" in text
    assert "dense, small" in text


def test_the_page_of_a_large_network_is_small_too(cut: prunus.Result, tmp_path: Path) -> None:
    one = cut.histograms["stem.weight"]
    many = replace(cut, histograms={f"blocks.{i}.attention.query.weight": one for i in range(400)})
    assert prunus.report(many, tmp_path / "page.html").stat().st_size < 6 * MEBIBYTE


def test_enough_single_calls_are_drawn_as_a_histogram(tmp_path: Path) -> None:
    times = tuple(1.0 + (i * 37) % 301 for i in range(300))
    m = prunus.Measurement("latency_ms", 151.0, "ms", spread=(76.0, 226.0), batch=4, samples=times)
    assert figure_facts(m)["samples"] == list(times)
    text = said(prunus.report({"a": [m], "b": [m]}, tmp_path / "page.html"))
    assert "Vertical lines are medians" in text
    few = replace(m, samples=(600.0,))
    assert "Points are medians" in said(prunus.report({"a": [m], "b": [few]}, tmp_path / "page.html"))


def test_latencies_of_the_same_rounds_are_compared_with_an_interval() -> None:
    one = prunus.Measurement("latency_ms", 1.0, "ms", samples=(1.0,) * 8)
    half = replace(one, samples=(0.45, 0.55) * 4)
    assert compared(one, half)[0] == words.Change("2.01× faster", "good")
    assert compared(one, half)[1] == "takes 45 to 55 % of the time (95 %)"
    said_of, sure = compared(one, replace(one, samples=(0.9, 1.25) * 4))
    assert said_of == words.Change("1.06× slower", "bad")
    assert sure.endswith("no difference shown")
    assert compared(one, replace(one, samples=(0.8, 1.12) * 4))[0].tone == "open"


def test_several_batches_are_told_apart(tmp_path: Path) -> None:
    taken = [prunus.Measurement("latency_ms", b, "ms", batch=b, threads=1) for b in (1, 8)]
    page_said = said(prunus.report({"dense": taken, "small": taken}, tmp_path / "page.html"))
    for name in ("latency, batch 1, 1 thread", "latency, batch 8, 1 thread", "dense, batch 8, 1 thread"):
        assert name in page_said


def test_more_throughput_is_better_and_more_energy_is_worse() -> None:
    throughput = prunus.Measurement("throughput", 100.0, "samples/s")
    energy = prunus.Measurement("energy_j", 1.0, "J")
    assert words.changed(throughput, replace(throughput, value=200.0)) == words.Change("2.00× more", "good")
    assert words.changed(energy, replace(energy, value=2.0)) == words.Change("2.00× more", "bad")


def test_few_single_calls_are_drawn_as_quartiles() -> None:
    figure = {"metric": "latency_ms", "value": 2.0, "unit": "ms", "spread": [1.0, 3.0]}
    many = {**figure, "samples": [i / 100 for i in range(400)]}
    steps, bars = charts.timings({"a": many, "b": many}), charts.timings({"a": many, "b": figure})
    assert steps is not None
    assert bars is not None
    assert sum(steps["data"][0]["y"]) == pytest.approx(100, abs=3.1)
    assert bars["data"][1]["error_x"]["array"] == [1.0]


def test_points_far_below_are_told_not_drawn() -> None:
    points = [{"name": str(v), "x": 1, "value": v, "low": v - 0.01, "high": v + 0.01} for v in (0.98, 0.97, 0.96, 0.1)]
    near, far = charts.near(points)
    assert ([p["value"] for p in near], [p["value"] for p in far]) == ([0.98, 0.97, 0.96], [0.1])


def test_a_slowdown_within_the_quartiles_is_still_bad() -> None:
    fast = prunus.Measurement("latency_ms", 1.0, "ms", spread=(0.5, 1.5))
    assert words.changed(fast, replace(fast, value=1.1)) == words.Change("1.10× slower", "bad")
    assert words.changed(fast, replace(fast, value=0.9)).tone == "open"


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "no-json": lambda path: path.write_text("{"),
    "no-object": lambda path: path.write_text("[]"),
    "foreign": lambda path: path.write_text('{"format": "other"}'),
    "older": lambda path: path.write_text('{"format": "prunus 1"}'),
    "other-weights": lambda path: edit(path, "weights", "0"),
    "no-entry": lambda path: edit(path, "layers", [{}]),
    "wrong-type": lambda path: edit(path, "before", "x"),
    "wrong-number": lambda path: edit(path, "history", [{"a": 1}, 7]),
    "no-part": lambda path: edit(path, "plan", None),
}


def edit(path: Path, key: str, value: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_directory_is_refused(name: str, saved: Path, tmp_path: Path) -> None:
    DAMAGE[name](saved / "report.json")
    with pytest.raises(ArtifactError, match=r"report\.json"):
        prunus.report(saved, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_rows_belong_to_a_result(cut: prunus.Result, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="belong to a Result"):
        prunus.report(saved, tmp_path / "page.html", rows=rows_of(cut))


@pytest.mark.parametrize("name", ["plotly", "jinja2"])
def test_a_missing_extra_is_named(
    name: str, cut: prunus.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without(wanted: str, *rest: Any) -> Any:
        if wanted == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(wanted, *rest)

    monkeypatch.setattr(sys.modules["prunus.report.page"], "import_module", without)
    with pytest.raises(ArtifactError, match=rf"{name}.*prunus\[report\]"):
        prunus.report(cut, tmp_path / "page.html")
