"""What measure() returns, in which order it calls, what it counts by hand, and that it leaves no trace."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from vision import models

from prunus.errors import MeasureError
from prunus.measure import latency, measure, sensors
from prunus.measure.effective import effective_macs
from prunus.measure.macs import macs
from prunus.measure.size import CHUNK, compressed_bytes, file_bytes, nonzeros, params
from prunus.statistics import mean_interval, wilson
from prunus.types import Inputs, Measurement

few = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 5)
x = torch.arange(12.0).reshape(3, 4)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def only(measurements: tuple[Measurement, ...]) -> Measurement:
    (one,) = measurements
    return one


class Recorder(nn.Module):
    """Writes its name, and what `see` sees, into a shared list at each call."""

    def __init__(self, name: str, seen: list[Any], see: Callable[[nn.Module], Any] = lambda model: None) -> None:
        super().__init__()
        self.name, self.seen, self.see = name, seen, see

    def forward(self, value: Tensor) -> Tensor:
        self.seen.append((self.name, self.see(self)))
        return value


# The table


def test_figures_come_in_the_order_asked_for_and_then_the_others() -> None:
    figures = measure(mlp(), x, ("macs", "params"), against=nn.Linear(4, 2))
    assert [(m.subject, m.metric, m.value) for m in figures] == [
        ("model", "macs", 3 * (4 * 3 + 3 * 2)),
        ("model", "params", 4 * 3 + 3 + 3 * 2 + 2),
        ("against", "macs", 3 * 4 * 2),
        ("against", "params", 4 * 2 + 2),
    ]


def test_every_figure_says_how_it_was_got() -> None:
    figures = measure(mlp(), x, ALL, threads=1, repeats=7, evaluate=lambda model: torch.ones(9))
    assert {m.metric: (m.unit, m.repeats, m.threads, m.spread is None) for m in figures} == {
        "params": ("params", 1, None, True),
        "nonzeros": ("params", 1, None, True),
        "macs": ("MACs", 1, None, True),
        "effective_macs": ("MACs", 1, None, True),
        "bytes": ("bytes", 1, None, True),
        "compressed_bytes": ("bytes", 1, None, True),
        "latency_ms": ("ms", 7, 1, False),
        "throughput": ("samples/s", 7, 1, False),
        "energy_j": ("J", 1, 1, True),
        "accuracy": ("share", 9, None, False),
    }
    assert {(m.device, m.dtype, m.batch) for m in figures} == {("cpu", "float32", 3)}
    assert [m.metric for m in figures if m.estimated] == ["energy_j"]
    assert all(m.versions["torch"] == torch.__version__ for m in figures)


def test_a_single_metric_needs_no_tuple_and_a_repeated_one_is_measured_once() -> None:
    assert only(measure(mlp(), x, "params")).metric == "params"
    assert only(measure(mlp(), x, ["params", "params"])).metric == "params"


@pytest.mark.parametrize(
    ("model", "inputs", "dtype", "batch"),
    [
        (nn.Linear(4, 2, dtype=torch.bfloat16), x.bfloat16(), "bfloat16", 3),
        (nn.Linear(4, 2), {"input": x}, "float32", 3),
        (nn.Linear(4, 2), Inputs((x,), {}), "float32", 3),
        (nn.Linear(4, 2), [x, x[:1]], "float32", 3),
        (nn.Identity(), ([{"deep": x[:2].double()}],), "float64", 2),
        (nn.Identity(), (7,), None, None),
        (nn.Identity(), torch.tensor(1), None, None),
    ],
    ids=["bfloat16", "keyword", "Inputs", "list-of-examples", "nested", "no-tensor", "scalar"],
)
def test_dtype_and_batch_are_those_of_the_call(
    model: nn.Module, inputs: Any, dtype: str | None, batch: int | None
) -> None:
    figure = only(measure(model, inputs, "macs"))
    assert (figure.dtype, figure.batch, figure.device) == (dtype, batch, "cpu")


def test_a_model_may_return_anything() -> None:
    class Pair(NamedTuple):
        left: Tensor
        right: dict[str, Tensor]

    class Wrapped(nn.Module):
        def forward(self, pair: Pair) -> dict[str, object]:
            return {"out": pair, "aux": [pair.left @ pair.right["t"], None]}

    figures = measure(Wrapped(), (Pair(x, {"t": x.T}),), ("macs", "latency_ms"), repeats=1)
    assert (figures[0].value, figures[0].batch) == (3 * 4 * 3, 3)


def test_progress_is_told_to_the_end() -> None:
    told: list[tuple[str, int, int]] = []
    measure(mlp(), x, ("params", "latency_ms"), against=mlp(), repeats=100, progress=lambda *step: told.append(step))
    assert told[:2] == [("params", 1, 2), ("params", 2, 2)]
    assert told[-1] == ("latency_ms", 100, 100)
    assert len(told) == 2 + 20


# Parameters and bytes


class Tied(nn.Module):
    """`head` shares the memory of `embed`, as the same parameter or as another view of it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        shared = self.embed.weight
        ties = {"same": shared, "view": nn.Parameter(shared.detach()), "transposed": nn.Parameter(shared.detach().T)}
        self.head.weight = ties[how]


@pytest.mark.parametrize("how", ["same", "view", "transposed"])
def test_a_tied_tensor_counts_once(how: str) -> None:
    model = Tied(how)
    assert params(model) == 6 * 4
    assert 4 * 24 < file_bytes(model) < 2 * 4 * 24  # values once, and a header of some 70 bytes


def test_a_zero_counts_like_any_other_parameter() -> None:
    model = mlp()
    nn.init.zeros_(model[0].weight)
    assert params(model) == params(mlp())


def test_views_of_one_memory_that_differ_all_count() -> None:
    whole = torch.arange(16.0).reshape(4, 4)
    views = {"top": whole[:2], "left": whole[:, :2], "lower": whole[1:]}
    model = nn.ParameterDict({name: nn.Parameter(view) for name, view in views.items()})
    assert params(model) == 8 + 8 + 12
    assert file_bytes(model) > 4 * params(model)


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(4, 7, dtype=torch.bfloat16))
    model[0].weight = nn.Parameter(model[0].weight.detach().to(memory_format=torch.channels_last))  # not contiguous
    model.register_buffer("scratch", torch.ones(1000), persistent=False)  # not part of the state
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model")
    assert only(measure(model, x, "bytes")).value == (tmp_path / "model").stat().st_size


@pytest.mark.parametrize("how", ["same", "view", "transposed"])
def test_a_zero_of_a_tied_tensor_counts_once(how: str) -> None:
    model = Tied(how)
    model.embed.weight.data[:2] = 0  # 2 rows of 4
    assert nonzeros(model) == 6 * 4 - 8


def test_nonzeros_are_what_does_not_equal_zero() -> None:
    odd = nn.Parameter(torch.tensor([0.0, -0.0, math.nan, math.inf, 1e-45, 2.0]))
    assert nonzeros(nn.ParameterList([odd, nn.Parameter(torch.zeros(3, 0))])) == 4


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize(
    "convert",
    [Tensor.to_sparse, Tensor.to_sparse_csr, lambda t: t.to(torch.float8_e4m3fn), lambda t: t.to(torch.complex64)],
    ids=["coo", "csr", "float8", "complex"],
)
def test_nonzeros_in_any_layout_and_dtype(convert: Callable[[Tensor], Tensor]) -> None:
    values = torch.tensor([[0.0, 2.0, -0.0], [0.25, 0.0, -1.0]])
    parameter = nn.Parameter(convert(values), requires_grad=False)
    assert nonzeros(nn.ParameterList([parameter])) == 3


def test_a_buffer_is_no_nonzero_parameter() -> None:
    assert nonzeros(nn.BatchNorm1d(5, affine=False)) == 0


@pytest.mark.parametrize("floats", [1, CHUNK // 4, CHUNK])  # less than a chunk, about one, several
def test_compressed_bytes_are_those_of_the_gzipped_file(tmp_path: Path, floats: int) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.arange(floats) % 1000 / 7)})
    save_file({"w": model["w"].detach()}, tmp_path / "model")
    packed = gzip.compress((tmp_path / "model").read_bytes(), compresslevel=6, mtime=0)
    figures = measure(model, x, ("compressed_bytes", "bytes"))
    assert [m.value for m in figures] == [len(packed), (tmp_path / "model").stat().st_size]
    assert compressed_bytes(model) == len(packed)


# Multiply-accumulates, by hand


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, **self.options)


class Apply(nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> object:
        return self.function(*args)


def q(*shape: int) -> Tensor:
    return torch.ones(*shape)


def grouped(left: Tensor, right: Tensor, ends: list[int]) -> Tensor:
    return F.grouped_mm(left.bfloat16(), right.bfloat16(), offs=torch.tensor(ends, dtype=torch.int32))


@pytest.mark.parametrize(
    ("model", "inputs", "count"),
    [
        pytest.param(nn.Linear(4, 2), (x,), 3 * 4 * 2, id="linear"),
        pytest.param(nn.Linear(4, 2, bias=False), (q(4),), 4 * 2, id="linear-of-one-vector"),
        pytest.param(nn.Conv2d(4, 6, 3, padding=1), (q(2, 4, 5, 5),), 2 * 6 * 25 * 4 * 9, id="conv2d"),
        pytest.param(nn.Conv2d(4, 6, 3, stride=2, groups=2), (q(1, 4, 5, 5),), 6 * 4 * 2 * 9, id="grouped-conv2d"),
        pytest.param(nn.Conv2d(4, 4, 3, groups=4), (q(1, 4, 5, 5),), 4 * 9 * 9, id="depthwise-conv2d"),
        pytest.param(nn.Conv1d(4, 6, 2), (q(1, 4, 5),), 6 * 4 * 4 * 2, id="conv1d"),
        pytest.param(nn.ConvTranspose2d(4, 6, 3, groups=2), (q(1, 4, 5, 5),), 4 * 25 * 3 * 9, id="transposed"),
        # heads 2 x 4; 5 queries, 7 keys of width 8, values of width 3: scores, then the weighted sum
        pytest.param(Attention(), (q(2, 4, 5, 8), q(2, 4, 7, 8), q(2, 4, 7, 3)), 8 * 5 * 7 * (8 + 3), id="attention"),
        pytest.param(Attention(), (q(2, 4, 5, 8), q(2, 4, 7, 8), q(2, 4, 7, 8)), 8 * 5 * 7 * 16, id="attention-fused"),
        pytest.param(Attention(is_causal=True), (q(1, 1, 6, 2),) * 3, 6 * 6 * 4, id="attention-causal"),
        pytest.param(
            Attention(enable_gqa=True),
            (q(1, 4, 5, 8), q(1, 2, 7, 8), q(1, 2, 7, 8)),
            4 * 5 * 7 * 16,
            id="grouped-query",
        ),
        # projections in and out, 5 tokens of width 8; then 2 heads of width 4
        pytest.param(
            nn.MultiheadAttention(8, 2, batch_first=True), (q(1, 5, 8),) * 3, 4 * 5 * 64 + 2 * 25 * 8, id="multihead"
        ),
        pytest.param(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            (q(1, 5, 8),),
            4 * 5 * 64 + 2 * 25 * 8 + 2 * 5 * 8 * 16,
            id="encoder-layer",
        ),
        # 6 steps of batch 2, four gates, input 3 and hidden 5
        pytest.param(nn.LSTM(3, 5), (q(6, 2, 3),), 12 * 4 * 5 * (3 + 5), id="lstm"),
        pytest.param(nn.LSTM(3, 5, bidirectional=True), (q(6, 2, 3),), 2 * 12 * 4 * 5 * (3 + 5), id="lstm-both-ways"),
        pytest.param(nn.LSTMCell(3, 5), (q(2, 3),), 2 * 4 * 5 * (3 + 5), id="lstm-cell"),
        pytest.param(nn.GRU(3, 5), (q(6, 2, 3),), 12 * 3 * 5 * (3 + 5), id="gru"),
        pytest.param(Apply(torch.dot), (q(7), q(7)), 7, id="dot"),
        pytest.param(Apply(torch.addmv), (q(2), q(2, 3), q(3)), 6, id="addmv"),
        pytest.param(Apply(Tensor.addmm_), (q(2, 5), q(2, 3), q(3, 5)), 30, id="addmm-in-place"),
        pytest.param(Apply(torch.einsum), ("bij,bjk->bik", q(2, 3, 4), q(2, 4, 5)), 2 * 3 * 4 * 5, id="einsum"),
        # experts: 6 rows over 2 matrices; 2 blocks of 3 rows, each over its share of 8 columns; 16 = 8 + 8 terms
        pytest.param(Apply(grouped), (q(6, 16), q(2, 16, 8), [2, 6]), 6 * 16 * 8, id="experts-by-row"),
        pytest.param(Apply(grouped), (q(2, 3, 16), q(16, 8), [2, 8]), 3 * 16 * 8, id="experts-by-column"),
        pytest.param(Apply(grouped), (q(3, 16), q(16, 8), [8, 16]), 3 * 16 * 8, id="experts-by-term"),
        pytest.param(nn.Sequential(nn.LayerNorm(4), nn.GELU()), (x,), 0, id="nothing"),
    ],
)
def test_macs_are_those_counted_by_hand(model: nn.Module, inputs: tuple[Any, ...], count: int) -> None:
    assert macs(model.eval(), Inputs(inputs)) == count


@few
@given(sizes, sizes, sizes, sizes, st.integers(5, 9), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2))
def test_macs_of_any_convolution(
    batch: int, groups: int, ins: int, outs: int, side: int, kernel: int, stride: int, dilation: int
) -> None:
    model = nn.Conv2d(groups * ins, groups * outs, kernel, stride, groups=groups, dilation=dilation)
    values = torch.ones(batch, groups * ins, side, side)
    outputs = model(values).numel()
    assert macs(model, Inputs((values,))) == outputs * ins * kernel**2


@pytest.mark.parametrize("name", ["ResNet18", "ViT_B_16", "Swin_T", "MobileNet_V3_Small"])
def test_macs_are_those_torchvision_publishes(name: str) -> None:
    weights = getattr(models, f"{name}_Weights").DEFAULT  # torchvision 0.28: meta["_ops"], in units of 10^9
    with torch.device("meta"):
        model = models.get_model(name.lower()).eval()
        image = torch.empty(1, 3, 224, 224)
    assert round(macs(model, Inputs((image,))) / 1e9, 3) == weights.meta["_ops"]
    assert params(model) == weights.meta["num_params"]


def test_macs_follow_the_data() -> None:
    model = Apply(lambda value: value @ value.T if value.sum() > 0 else value)
    assert macs(model, Inputs((x,))) == 3 * 4 * 3
    assert macs(model, Inputs((-x,))) == 0


def test_macs_see_through_compilation() -> None:
    ran: list[str] = []

    def opaque(graph: Any, inputs: Any) -> Callable[..., Any]:
        return lambda *args: (ran.append("compiled"), graph.forward(*args))[1]

    compiled = torch.compile(mlp(), backend=opaque)
    with torch.no_grad():
        compiled(x)
        assert macs(compiled, Inputs((x,))) == macs(mlp(), Inputs((x,)))
        assert ran == ["compiled"]  # and not in the counted call
        compiled(x)
    assert ran == ["compiled"] * 2


def test_macs_leave_the_fused_layers_as_they_were() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    macs(mlp(), Inputs((x,)))
    assert torch.backends.mha.get_fastpath_enabled()


# Multiply-accumulates by weights that are not zero, by hand


class Holder(nn.Module):
    """Calls `function(self, *args)`, with tensors of its own as parameters or, if `named` so, buffers."""

    def __init__(self, function: Callable[..., object], buffers: tuple[str, ...] = (), **values: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in values.items():
            if name in buffers:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))

    def forward(self, *args: Any) -> object:
        return self.function(self, *args)


def holed(*shape: int) -> Tensor:
    """Ones, with a zero at the first place."""
    values = torch.ones(*shape)
    values.view(-1)[0] = 0
    return values


def zeroed(model: nn.Module, **zeros: Any) -> nn.Module:
    """The model with ones for parameters, but for zeros in those named (dots as `__`), where the index says."""
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    for name, where in zeros.items():
        model.get_parameter(name.replace("__", ".")).data[where] = 0
    return model


def activated(holder: Any) -> Tensor:
    values = holder.w @ -holder.w
    values[0, :1].view(1, 1)
    return (values * holder.w).relu() @ holder.w


def attended(**zeros: Any) -> nn.Module:
    return zeroed(nn.MultiheadAttention(8, 2, batch_first=True), **zeros)


@pytest.mark.parametrize(
    ("model", "inputs", "count"),
    [
        # 3 rows, of 2 x 4 weights one is zero, or a row of them; biases are none
        pytest.param(zeroed(nn.Linear(4, 2), weight=(0, 0)), (x,), 3 * 7, id="linear"),
        pytest.param(zeroed(nn.Linear(4, 2), weight=1, bias=slice(None)), (x,), 3 * 4, id="linear-row"),
        pytest.param(zeroed(nn.Linear(4, 2, bias=False), weight=(0, 0)), (q(4),), 7, id="linear-of-one-vector"),
        pytest.param(zeroed(nn.Linear(4, 2)), (torch.zeros(3, 4),), 3 * 8, id="activations-of-zero"),
        pytest.param(zeroed(nn.Linear(4, 2), weight=slice(None)), (x,), 0, id="all-zero"),
        pytest.param(zeroed(nn.Linear(4, 2, bias=False)), (q(0, 4),), 0, id="no-rows"),
        # 2 x 2 places, each with 6 filters of 2 x 3 x 3 weights
        pytest.param(
            zeroed(nn.Conv2d(4, 6, 3, stride=2, groups=2), weight=(0, 0)), (q(1, 4, 5, 5),), 4 * (6 * 18 - 9), id="conv"
        ),
        pytest.param(
            zeroed(nn.Conv2d(4, 6, 3, stride=2, groups=2), weight=(5, 1, 2, 2)).to(memory_format=torch.channels_last),
            (q(1, 4, 5, 5),),
            4 * (6 * 18 - 1),
            id="conv-channels-last",
        ),
        # each of 5 x 5 inputs meets 4 x 3 x 3 x 3 weights; the first of the four channels has none left
        pytest.param(
            zeroed(nn.ConvTranspose2d(4, 6, 3, groups=2), weight=0), (q(1, 4, 5, 5),), 25 * 3 * 27, id="transposed"
        ),
        # 5 tokens of width 8, four projections of 64; 2 heads of width 4 attend with 2 * 25 * 8
        pytest.param(attended(in_proj_weight=0), (q(1, 5, 8),) * 3, 5 * (4 * 64 - 8) + 400, id="multihead"),
        pytest.param(
            attended(in_proj_weight=slice(8, 16), out_proj__weight=(0, 0)),
            (q(1, 5, 8), q(1, 5, 8) * 2, q(1, 5, 8)),  # three tensors, so the projection is cut into three slices
            5 * (4 * 64 - 64 - 1) + 400,
            id="multihead-slices",
        ),
        # 6 steps of batch 2, four gates of 5, from 3 and from 5
        pytest.param(zeroed(nn.LSTM(3, 5), weight_ih_l0=0), (q(6, 2, 3),), 12 * (20 * 8 - 3), id="lstm"),
        pytest.param(
            zeroed(nn.LSTM(3, 5, bidirectional=True), weight_hh_l0_reverse=0, bias_ih_l0=0),
            (q(6, 2, 3),),
            12 * (2 * 20 * 8 - 5),
            id="lstm-both-ways",
        ),
        pytest.param(zeroed(nn.GRU(3, 5), weight_hh_l0=(0, 0)), (q(6, 2, 3),), 12 * (15 * 8 - 1), id="gru"),
        pytest.param(
            Holder(
                lambda m, v: torch.lstm(v, (m.h, m.h), [m.i, m.r], False, 1, 0.0, False, False, False),
                h=torch.zeros(1, 2, 5),
                i=holed(20, 3),
                r=torch.ones(20, 5),
            ),
            (q(6, 2, 3),),
            12 * (20 * 8 - 1),
            id="lstm-from-a-learned-state",
        ),
        # a square weight in two products
        pytest.param(Holder(lambda m, v: v @ m.w @ m.w.T, w=holed(4, 4)), (x,), 3 * (15 + 15), id="used-twice"),
        pytest.param(Holder(lambda m, v: v @ m.w[1:].T, w=holed(4, 4)), (x,), 3 * 12, id="slice-without-the-zero"),
        pytest.param(Holder(lambda m, v: v @ m.w[:, :2], w=holed(4, 4)), (x,), 3 * 7, id="strided-slice"),
        pytest.param(Holder(lambda m, v: v @ m.w, w=holed(4)), (x,), 3 * 3, id="vector"),
        pytest.param(Holder(lambda m, v: torch.dot(m.w, v), w=holed(4)), (q(4),), 3, id="dot"),
        pytest.param(
            Holder(lambda m, v: torch.addmm(m.b, v, m.w), b=torch.zeros(3, 2), w=holed(4, 2)),
            (x,),
            3 * 7,
            id="a-matrix-for-a-bias",
        ),
        # rows (0 1) and (1 1) by columns (0 1) and (1 1): one term is left at each place, two at the last
        pytest.param(Holder(lambda m: m.a @ m.b, a=holed(2, 2), b=holed(2, 2)), (), 1 + 1 + 1 + 2, id="two-weights"),
        pytest.param(Holder(lambda m: m.a @ m.b, a=holed(2, 3), b=holed(3)), (), 2 + 2, id="two-weights-one-vector"),
        pytest.param(Holder(lambda m: m.a @ m.b, a=holed(4), b=holed(4).flip(0)), (), 2, id="two-vectors"),
        pytest.param(Holder(lambda m, v: torch.bmm(v, m.w), w=holed(2, 4, 5)), (q(2, 3, 4),), 3 * 39, id="batched"),
        pytest.param(Holder(lambda m, v: v @ m.w, w=holed(4, 5)), (q(2, 3, 4),), 6 * 19, id="broadcast"),
        # 6 rows: two meet the first matrix, which has the zero, four the second
        pytest.param(
            Holder(lambda m, v: grouped(v, m.w, [2, 6]), w=holed(2, 16, 8)), (q(6, 16),), 6 * 128 - 2, id="experts"
        ),
        # made anew in each call
        pytest.param(prune.l1_unstructured(nn.Linear(4, 2), "weight", 3), (x,), 3 * 5, id="masked"),
        pytest.param(
            parametrizations.weight_norm(zeroed(nn.Linear(4, 2), weight=(0, 0))), (x,), 3 * 7, id="weight-norm"
        ),
        pytest.param(
            parametrizations.spectral_norm(zeroed(nn.Linear(4, 2), weight=(0, 0))).eval(),
            (x,),
            3 * 7 + (2 * 4 - 1) + 2,  # sigma: the matrix by a vector, then the dot product of two
            id="spectral-norm",
        ),
        pytest.param(Holder(lambda m, v: v @ m.w.tril(), w=torch.ones(4, 4)), (x,), 3 * 10, id="lower-triangle"),
        pytest.param(Holder(lambda m, v: v @ (m.w * 2).to(v.dtype), w=holed(4, 4).double()), (x,), 3 * 15, id="cast"),
        pytest.param(
            Holder(lambda m, v: v @ torch.zeros(4, 4).copy_(m.w), w=holed(4, 4)), (x,), 3 * 15, id="copied-in-place"
        ),
        pytest.param(
            Holder(lambda m, v: v @ torch.cat([m.w, m.none]), w=holed(4, 4), none=q(0, 4)), (x,), 3 * 15, id="empty"
        ),
        # not weights
        pytest.param(
            Holder(lambda m, v: v.to_sparse().to_dense() @ m.w, w=holed(4, 4), none=q(0, 4)), (x,), 3 * 15, id="sparse"
        ),
        pytest.param(Holder(lambda m, v: v @ m.w, ("w",), w=holed(4, 4)), (x,), 3 * 16, id="buffer"),
        pytest.param(Holder(lambda m, v: v @ (m.w * v[0, 1]), w=holed(4, 4)), (x,), 3 * 16, id="scaled-by-an-input"),
        pytest.param(
            Holder(lambda m, v: v @ m.w[v[:, 0].long() * 0], w=holed(1, 4, 3)[0]),
            (x[:, :3],),
            3 * 9,
            id="picked-by-an-input",
        ),
        pytest.param(
            Holder(lambda m, v: v @ m.c.copy_(v[:1].expand(4, 4)).mul_(m.w), ("c",), c=q(4, 4), w=holed(4, 4)),
            (x,),
            3 * 16,
            id="buffer-written-with-an-input",
        ),
        # a product of weights, then what a network does with activations
        pytest.param(
            Holder(lambda m: F.layer_norm(m.w @ -m.w, (4,), m.g).relu() @ m.w, w=q(4, 4), g=q(4)),
            (),
            2 * 64,
            id="activations-of-weights-alone",
        ),
        pytest.param(Holder(activated, w=q(4, 4)), (), 2 * 64, id="activations-seen-through-one-number"),
        pytest.param(
            Holder(lambda m, v: F.scaled_dot_product_attention(m.w, v, v), w=torch.zeros(1, 2, 5, 8)),
            (q(1, 2, 7, 8),),
            2 * 5 * 7 * 16,
            id="learned-queries",
        ),
    ],
)
def test_effective_macs_are_those_counted_by_hand(model: nn.Module, inputs: tuple[Any, ...], count: int) -> None:
    assert effective_macs(model.eval(), Inputs(inputs)) == count


@pytest.mark.parametrize("how", ["same", "view", "transposed"])
def test_a_tied_weight_is_multiplied_by_where_it_is_used(how: str) -> None:
    model = Tied(how)
    model.embed.weight.data[0, 0] = 0
    width = model.head.weight.shape[1]
    assert effective_macs(model.head, Inputs.of(torch.ones(3, width))) == 3 * (24 - 1)


@pytest.mark.parametrize(("value", "zero"), [(-0.0, True), (math.nan, False), (1e-45, False)])
def test_what_a_zero_weight_is(value: float, zero: bool) -> None:
    model = nn.Linear(4, 2)
    model.weight.data[1, 1] = value
    assert effective_macs(model, Inputs.of(x)) == 3 * (8 - zero)


@few
@given(st.data(), sizes, sizes, st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1))
def test_effective_macs_are_the_multiplications_by_weights_that_are_not_zero(
    data: st.DataObject, ins: int, outs: int, groups: int, kernel: int, stride: int, padding: int
) -> None:
    model = nn.Sequential(
        nn.Conv2d(groups * ins, groups * outs, kernel, stride, padding, groups=groups),
        nn.ReLU(),
        nn.Flatten(2),
        nn.LazyLinear(3),
        nn.ReLU(),
        nn.Linear(3, 2),
    )
    values = torch.randn(2, groups * ins, 4, 4)
    model(values)
    multiplied: list[float] = []

    def multiply(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        """One by one: every weight is multiplied once for each place of its output channel."""
        channels = out.unbind(1 if isinstance(layer, nn.Conv2d) else -1)
        for weights, places in zip(layer.weight, channels, strict=True):
            multiplied.extend(number for number in weights.flatten().tolist() for _ in range(places.numel()))

    for layer in (model[0], model[3], model[5]):
        layer.weight.data[torch.rand(layer.weight.shape) < data.draw(st.floats(0, 1))] = 0
        layer.register_forward_hook(multiply)
    model(values)
    brute = sum(number != 0 for number in multiplied)
    assert effective_macs(model, Inputs.of(values)) == brute


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "mobilenet_v3_small", "swin_t"])
def test_without_zeros_all_macs_are_effective(name: str) -> None:
    model = models.get_model(name).eval()
    image = Inputs.of(torch.ones(1, 3, 224, 224))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)  # some start at zero
    assert effective_macs(model, image) == macs(model, image)


def test_effective_macs_under_autocast() -> None:
    model = nn.Linear(4, 2)
    model.weight.data[0, 0] = 0

    def cast(value: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(value)

    wrapper = Apply(cast)
    wrapper.model = model
    assert effective_macs(wrapper, Inputs.of(x)) == 3 * 7


def test_effective_macs_are_reported_side_by_side() -> None:
    pruned = mlp()
    pruned[0].weight.data[0] = 0
    figures = measure(pruned, x, ("macs", "effective_macs", "nonzeros"), against=mlp())
    assert [m.value for m in figures] == [54, 54 - 3 * 4, 23 - 4, 54, 54, 23]


# Latency


def test_two_models_are_called_in_turn_and_take_turns_to_be_first() -> None:
    seen: list[Any] = []
    first, second = Recorder("a", seen), Recorder("b", seen)
    figures = measure(first, x, "latency_ms", against=second, repeats=4)
    calls = "".join(name for name, _ in seen)
    assert calls.endswith("abba" * 2)
    assert calls.count("a") == calls.count("b") > 4  # the rest is warm-up
    assert [(m.subject, m.repeats) for m in figures] == [("model", 4), ("against", 4)]


def test_each_model_gets_its_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr(latency, "perf_counter_ns", lambda: clock[0])

    def taking(ms: int) -> Recorder:
        return Recorder(str(ms), [], lambda model: clock.__setitem__(0, clock[0] + ms * 1_000_000))

    figures = measure(taking(2), x, "latency_ms", against=taking(5), repeats=3)
    assert [(m.value, m.spread) for m in figures] == [(2.0, (2.0, 2.0)), (5.0, (5.0, 5.0))]


@pytest.mark.parametrize(("ms", "repeats"), [(1, 3000), (1000, 30), (0, 10_000)])
def test_by_default_the_rounds_fill_three_seconds(monkeypatch: pytest.MonkeyPatch, ms: int, repeats: int) -> None:
    clock = [0]
    monkeypatch.setattr(latency, "perf_counter_ns", lambda: clock[0])
    model = Recorder("", [], lambda model: clock.__setitem__(0, clock[0] + ms * 1_000_000))
    assert only(measure(model, x, "latency_ms")).repeats == repeats


def test_the_spread_holds_the_median() -> None:
    figure = only(measure(mlp(), x, "latency_ms", repeats=20))
    assert figure.spread is not None
    assert 0 < figure.spread[0] <= figure.value <= figure.spread[1]


def test_models_are_timed_in_eval_and_inference_mode_with_the_threads_asked_for() -> None:
    seen: list[Any] = []
    before = torch.get_num_threads()
    model = Recorder(
        "", seen, lambda model: (model.training, torch.is_inference_mode_enabled(), torch.get_num_threads())
    )
    figure = only(measure(model.train(), x, "latency_ms", threads=before + 1, repeats=2))
    assert {state for _, state in seen[-2:]} == {(False, True, before + 1)}
    assert figure.threads == before + 1
    assert torch.get_num_threads() == before
    assert only(measure(model, x, "latency_ms", repeats=1)).threads == before


def test_what_a_model_caches_can_still_be_trained_with() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.cache = nn.Parameter(torch.ones(4)), None

        def forward(self, value: Tensor) -> Tensor:
            self.cache = value.new_ones(4) if self.cache is None else self.cache
            return (value * self.weight * self.cache).sum()

    model = Caching()
    measure(model, x, "latency_ms", repeats=1)
    model(x).backward()
    assert model.weight.grad is not None


# Accuracy


@pytest.mark.parametrize(
    ("scores", "value", "spread", "repeats"),
    [
        (torch.tensor([True, False, True, True]), 0.75, wilson(3, 4), 4),
        (torch.tensor([1.0, 0.0]), 0.5, wilson(1, 2), 2),
        (torch.tensor([0.5, 0.25, 0.0]), 0.25, mean_interval(torch.tensor([0.5, 0.25, 0.0])), 3),
        (0.75, 0.75, None, 1),
        (torch.tensor(0.75), 0.75, None, 1),
    ],
    ids=["right-or-wrong", "zero-one", "graded", "float", "scalar"],
)
def test_accuracy_is_the_mean_with_its_interval(
    scores: Any, value: float, spread: tuple[float, float] | None, repeats: int
) -> None:
    figure = only(measure(mlp(), x, "accuracy", evaluate=lambda model: scores))
    assert (figure.value, figure.spread, figure.repeats, figure.unit) == (value, spread, repeats, "share")


def test_both_models_are_evaluated_from_the_same_random_state() -> None:
    before, after = measure(mlp(), x, "accuracy", against=mlp(), evaluate=lambda model: torch.rand(5))
    assert before.value == after.value


def test_evaluate_gets_the_model_in_eval_mode_without_gradients() -> None:
    seen: list[Any] = []

    def evaluate(model: nn.Module) -> float:
        seen.append((model, model.training, torch.is_grad_enabled()))
        return 1.0

    before, after = mlp(), mlp()
    measure(before, x, "accuracy", against=after, evaluate=evaluate)
    assert seen == [(before, False, False), (after, False, False)]


# No trace


class Restless(nn.Module):
    """Writes into its input and its buffers, draws random numbers, replaces a buffer and adds one."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))
        self.register_buffer("late", None)

    def forward(self, value: Tensor) -> Tensor:
        out = self.block(value) + F.dropout(value, training=True)
        self.calls += 1
        self.last = self.late = out[0]
        self.register_buffer("new", out[1])
        return out


ALL = (
    *("params", "nonzeros", "macs", "effective_macs", "bytes", "compressed_bytes"),
    *("latency_ms", "throughput", "energy_j", "accuracy"),  # for memory see test_memory.py
)


@pytest.fixture(autouse=True)
def no_sensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Energy is an estimate here, whatever the machine has."""
    monkeypatch.setattr(sensors, "POWERCAP", tmp_path / "powercap")


def restless() -> Restless:
    model = Restless().train()
    model.block[2].eval()  # a frozen batch norm in a model that is being trained
    model(torch.randn(3, 4)).sum().backward()
    model.late = None  # as before its first call
    del model.new
    return model


def trace(model: nn.Module) -> dict[str, object]:
    """All that measuring must leave alone, as comparable values; tensors by identity and content."""
    state = {name: (id(tensor), tensor.tolist()) for name, tensor in model.state_dict(keep_vars=True).items()}
    return {
        **state,
        "grads": [parameter.grad.tolist() for parameter in model.parameters() if parameter.grad is not None],
        "training": [module.training for module in model.modules()],
        "random": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "autograd": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def test_nothing_is_left_behind() -> None:
    model, other, inputs = restless(), restless(), torch.randn(3, 4)
    before, given = (trace(model), trace(other)), inputs.clone()
    measure(
        model, inputs, ALL, against=other, threads=1, repeats=2, evaluate=lambda model: model(torch.rand(2, 4))[:, 0]
    )
    assert (trace(model), trace(other)) == before
    assert torch.equal(inputs, given)


def test_nothing_is_left_behind_by_a_failure() -> None:
    model = restless()
    before = trace(model)

    def evaluate(model: nn.Module) -> float:
        model(torch.rand(2, 4))
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        measure(model, x, ALL, threads=1, repeats=1, evaluate=evaluate)
    assert trace(model) == before


def test_threads_are_put_back_when_the_model_fails() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure(mlp(), x.T, "latency_ms", threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_model_that_acts_on_train_is_told_of_the_return() -> None:
    class Adapter(nn.Module):
        merged = False

        def train(self, mode: bool = True) -> Adapter:
            self.merged = not mode
            return super().train(mode)

    model = Adapter().train()
    measure(model, x, "accuracy", evaluate=lambda model: float(model.merged))
    assert not model.merged


def test_a_pending_backward_pass_still_runs() -> None:
    model = nn.BatchNorm1d(4).eval()
    loss = model(x).sum()
    measure(model, x, ("nonzeros", "macs", "effective_macs", "latency_ms"), repeats=1)
    loss.backward()
    assert model.bias.grad is not None
    assert model.bias.grad.tolist() == [len(x)] * 4


# Errors


class Opaque(nn.Module):
    def get_extra_state(self) -> object:
        return {"not": "a tensor"}

    def set_extra_state(self, state: object) -> None: ...


def sparse() -> nn.Module:
    model = nn.Module()
    model.register_buffer("mask", torch.eye(3).to_sparse())
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda: measure(mlp(), x, "latency"),
            r"Unknown metric 'latency'; expected some of params, nonzeros, macs, .*Did you mean 'latency_ms'\?",
            id="unknown-metric",
        ),
        pytest.param(lambda: measure(mlp(), x, ("accuracy",)), "'accuracy' needs evaluate=", id="no-evaluate"),
        pytest.param(lambda: measure(mlp(), x, runtime="onnx"), "'onnx' cannot be measured", id="runtime"),
        pytest.param(lambda: measure(mlp(), x, threads=0), "threads=0 is too few", id="threads"),
        pytest.param(lambda: measure(mlp(), x, repeats=0), "repeats=0 is too few", id="repeats"),
        pytest.param(
            lambda: measure(mlp(), x, against=nn.LazyLinear(2)), "'weight' of against has no shape yet", id="lazy"
        ),
        pytest.param(lambda: macs(nn.Bilinear(4, 4, 2), Inputs((x, x))), "no formula for aten._trilinear", id="kernel"),
        pytest.param(
            lambda: effective_macs(nn.Bilinear(4, 4, 2), Inputs((x, x))),
            "'effective_macs' has no formula for aten._trilinear",
            id="effective-kernel",
        ),
        pytest.param(
            lambda: measure(mlp().to("meta"), x.to("meta"), "effective_macs"),
            "'0.weight' is on the meta device; 'macs' needs none",
            id="effective-on-meta",
        ),
        pytest.param(
            lambda: measure(mlp().to("meta"), x, "nonzeros"),
            "'nonzeros' reads values, but '0.weight' is on the meta device",
            id="nonzeros-on-meta",
        ),
        pytest.param(
            lambda: measure(Opaque(), x, "compressed_bytes"),
            "'compressed_bytes' writes the state .*'_extra_state' is a dict",
            id="compressed-no-tensor",
        ),
        pytest.param(lambda: measure(Opaque(), x, "bytes"), "'_extra_state' is a dict, not a tensor", id="no-tensor"),
        pytest.param(
            lambda: measure(sparse(), x, "bytes"), "'mask' is a tensor of layout torch.sparse_coo", id="sparse"
        ),
        pytest.param(
            lambda: measure(mlp().to("meta"), x, "bytes"), "'0.weight' is on the meta device", id="bytes-on-meta"
        ),
        pytest.param(
            lambda: measure(mlp().to("meta"), x.to("meta"), "latency_ms"), "this one is on the meta", id="time-on-meta"
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        call()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        pytest.param([1, 0], r"returned a list; expected one score a sample", id="list"),
        pytest.param(math.nan, r"returned nan; expected a finite figure", id="nan"),
        pytest.param(torch.ones(3, 1), r"shape \(3, 1\); expected \(n,\)", id="two-dimensional"),
        pytest.param(torch.ones(0), r"shape \(0,\)", id="empty"),
        pytest.param(torch.tensor([1.0, math.nan]), r"1 of 2 scores are not finite", id="nan-score"),
        pytest.param(torch.tensor([0.93]), r"return it as a bare float", id="one-graded-score"),
    ],
)
def test_what_evaluate_must_not_return_is_refused(scores: Any, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        measure(mlp(), x, "accuracy", evaluate=lambda model: scores)
