"""What weights read, seen at the products themselves: against hooks, and where there are no modules to hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from halves import Net, draw, learned
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import Recipe, build, recipes
from torch import Tensor, nn

from prunus import Stats
from prunus.errors import CriterionError
from prunus.stats import gram


def forward(model: nn.Module, batch: Any) -> None:
    """All that activations need of a loss."""
    model(*batch) if isinstance(batch, tuple) else model(batch)


def stats_of(model: nn.Module, *data: Any) -> Stats:
    return Stats(model, tuple(name for name, _ in model.named_parameters()), data, forward)


def channels_first(module: nn.Module, x: Tensor) -> Tensor:
    """(values, inputs) of what a module was given."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    return x.transpose(0, 1).flatten(1).T


@settings(max_examples=40)
@given(recipes(), st.integers(0, 99))
def test_inputs_are_what_hooks_would_see(recipe: Recipe, seed: int) -> None:
    """Of linear layers and convolutions of random networks: means, squares, counts, however often they are used."""
    model, inputs = build(recipe)
    model.eval()
    torch.manual_seed(seed)
    seen: dict[str, list[Tensor]] = {}
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = {n: m for n, m in model.named_modules() if type(m).__module__.startswith("torch") and isinstance(m, kinds)}
    assume(layers)
    hooks = [
        m.register_forward_pre_hook(lambda m, a, n=n: seen.setdefault(n, []).append(channels_first(m, a[0])))
        for n, m in layers.items()
    ]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    found = stats_of(model, inputs).inputs
    for name, values in seen.items():
        layer, x = layers[name], torch.cat(values).double()
        table = torch.broadcast_to(found[f"{name}.weight"].squares, layer.weight.shape)
        expected = x.square().sum(0)
        into = 0 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 1
        groups = 1 if isinstance(layer, nn.Linear) or into == 0 else layer.groups
        rows = layer.weight.shape[1 - into] // groups
        for g, part in enumerate(expected.view(groups, -1)):
            of_group = table.narrow(1 - into, g * rows, rows).movedim(into, -1)
            torch.testing.assert_close(of_group, part.expand(of_group.shape), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            found[f"{name}.weight"].count.max(), torch.tensor(float(len(x)), dtype=torch.float64)
        )


def norms(found: Stats, name: str) -> Tensor:
    return torch.broadcast_to(found.input_norm[name], found.weights[name].shape)


W, X = draw(6, 8), draw(3, 5, 8)
FORMS = {
    "F.linear": lambda self, x: F.linear(x, self.w),
    "x @ w.t()": lambda self, x: x @ self.w.t(),
    "w @ x.t()": lambda self, x: self.w @ x.flatten(0, 1).t(),
    "einsum": lambda self, x: torch.einsum("bti,oi->bto", x, self.w),
    "a row at a time": lambda self, x: torch.stack([x.flatten(0, 1) @ row for row in self.w]),
    "chunks": lambda self, x: torch.cat([F.linear(x, part) for part in self.w.chunk(3)], -1),
    "in another type": lambda self, x: F.linear(x.double(), self.w.double()),
    "a copy": lambda self, x: F.linear(x, self.w.clone().t().contiguous().t()),
    "inference mode": torch.inference_mode()(lambda self, x: F.linear(x, self.w)),
    "compiled": torch.compile(lambda self, x: F.linear(x, self.w), backend="eager"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_is_seen_in_whatever_product_it_takes_part(form: str) -> None:
    model = Net(FORMS[form], w=nn.Parameter(W.clone()))
    torch.testing.assert_close(norms(stats_of(model, X), "w"), X.flatten(0, 1).double().norm(dim=0).expand(6, 8))


def test_each_use_counts_once() -> None:
    layer = nn.Linear(8, 8)
    model = Net(lambda self, x: self.a(x) + F.linear(x * 2, self.a.weight), a=layer)
    squares = X.flatten(0, 1).double().square().sum(0) * (1 + 4)
    torch.testing.assert_close(norms(stats_of(model, X), "a.weight"), squares.sqrt().expand(8, 8))


def test_batches_add_up() -> None:
    whole, parts = stats_of(nn.Linear(8, 4), X), stats_of(nn.Linear(8, 4), *X.split(1))
    torch.testing.assert_close(whole.input_norm["weight"], parts.input_norm["weight"])


def test_parts_of_a_weight_that_read_other_values_keep_their_own() -> None:
    """Keys and values of another sequence, with the queries in one weight."""
    attention, other = nn.MultiheadAttention(8, 2, batch_first=True), draw(3, 4, 8)
    model = Net(lambda self, x, y: self.a(x, y, y), a=attention)
    found = norms(stats_of(model, (X, other)), "a.in_proj_weight")
    torch.testing.assert_close(found[:8], X.flatten(0, 1).double().norm(dim=0).expand(8, 8))
    torch.testing.assert_close(found[8:], other.flatten(0, 1).double().norm(dim=0).expand(16, 8))
    alone = stats_of(Net(lambda self, x: self.a(x, x, x), a=attention), X)
    assert alone.input_norm["a.in_proj_weight"].shape == (1, 8)


def test_matrices_of_experts_are_apart() -> None:
    model = Net(lambda self, x: torch.bmm(x, self.w), w=learned(3, 8, 2))
    torch.testing.assert_close(norms(stats_of(model, X), "w"), X.double().norm(dim=1)[:, :, None].expand(3, 8, 2))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_are_seen(kind: Any) -> None:
    model = kind(8, 4, batch_first=True)
    found = stats_of(model, X)
    torch.testing.assert_close(norms(found, "weight_ih_l0")[0], X.flatten(0, 1).double().norm(dim=0))
    states = torch.cat([torch.zeros(3, 1, 4), model(X)[0][:, :-1]], 1).flatten(0, 1).double()
    torch.testing.assert_close(norms(found, "weight_hh_l0")[0], states.norm(dim=0).detach(), rtol=1e-5, atol=1e-6)


CONVS = [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 9, 9)),
    (nn.Conv1d(4, 6, 3, padding=2), (2, 4, 7)),
    (nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 3)),
]


@pytest.mark.parametrize(("conv", "shape"), CONVS, ids=lambda v: type(v).__name__)
def test_the_gram_matrix_gives_the_energy_of_the_outputs(conv: Any, shape: tuple[int, ...]) -> None:
    """wᵀ G w, with w of one output, is the sum of the squares of all that this output gives."""
    x = draw(*shape)
    found = stats_of(conv, x).gram["weight"]
    out = conv(x) - conv.bias.view(-1, *(1 for _ in shape[2:]))
    for row, w in enumerate(conv.weight.detach().double().flatten(1)):
        energy = w @ found[row * conv.groups // len(conv.weight)] @ w
        torch.testing.assert_close(energy, out[:, row].detach().double().square().sum(), rtol=1e-4, atol=1e-5)


def test_gram_matrices_are_held_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same whether all fit, or one at a time."""
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    whole = {name: value.clone() for name, value in stats_of(model, X).gram.items()}
    assert list(whole) == ["0.weight", "2.weight", "4.weight"]
    monkeypatch.setattr(gram, "ROOM", 70)
    passes: list[int] = []
    few = Stats(model, tuple(whole), [X], lambda net, batch: passes.append(1) or net(batch))
    assert all(torch.equal(value, whole[name]) for name, value in few.gram.items())
    assert len(passes) == 1 + 2  # sizes; the first (64); both others (36 + 16)


def test_weights_whose_parts_read_other_values_have_no_gram_matrix() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Net(lambda self, x, y: self.a(x, y, y), a=attention)
    assert set(stats_of(model, (X, draw(3, 4, 8))).gram) == {"a.out_proj.weight"}
    assert set(stats_of(nn.ConvTranspose2d(4, 4, 1, groups=2), draw(2, 4, 3, 3)).gram) == set()


def test_inputs_that_were_never_seen_are_zero() -> None:
    """An expert that got no token."""
    model = Net(lambda self, x: x.flatten(0, 1) @ self.w[0], w=learned(2, 8, 3))
    seen = stats_of(model, X).inputs["w"]
    assert seen.mean.isfinite().all()
    assert not torch.broadcast_to(seen.mean, (2, 8, 3))[1].any()


def test_a_parameter_without_a_product_has_no_inputs() -> None:
    model = Net(lambda self, x: self.a(x) * self.gain, a=nn.Linear(8, 4), gain=learned(4))
    found = stats_of(model, X)
    assert set(found.inputs) == set(found.gram) == {"a.weight"}
    with pytest.raises(KeyError):
        found.gram["gain"]


def test_activations_of_no_batch() -> None:
    with pytest.raises(CriterionError, match="The data gave no batch; a criterion that looks at activations"):
        _ = stats_of(nn.Linear(8, 4)).inputs


def test_data_that_cannot_be_read_twice() -> None:
    model = nn.Linear(8, 4)
    with pytest.raises(CriterionError, match=r"took part in no product on a second pass|The data gave no batch"):
        _ = Stats(model, ("weight",), iter([X]), forward).gram["weight"]


def test_the_model_is_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(5)).train()
    before = model[1].running_mean.clone()
    _ = stats_of(model, X).inputs
    assert model.training
    assert torch.equal(model[1].running_mean, before)
    assert torch.backends.mha.get_fastpath_enabled()


def test_hessian_products_are_means_over_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    names = tuple(n for n, _ in model.named_parameters())
    batches = torch.randn(4, 3, dtype=torch.float64).split(2)
    loss = lambda net, batch: net(batch).square().mean()  # noqa: E731
    vector = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    found = Stats(model, names, batches, loss).hessian_times(vector)
    each = [Stats(model, names, [batch], loss).hessian_times(vector) for batch in batches]
    for name in names:
        torch.testing.assert_close(found[name], (each[0][name] + each[1][name]) / 2)
    step = 1e-5

    def gradient(sign: int) -> dict[str, Tensor]:
        moved = {n: p.detach() + sign * step * vector[n] for n, p in model.named_parameters()}
        whole = [
            torch.func.grad(lambda q, b=b: torch.func.functional_call(model, q, (b,)).square().mean())(moved)
            for b in batches
        ]
        return {n: (whole[0][n] + whole[1][n]) / 2 for n in names}

    ahead, behind = gradient(1), gradient(-1)
    for name in names:
        torch.testing.assert_close(found[name], (ahead[name] - behind[name]) / (2 * step), rtol=1e-5, atol=1e-8)
