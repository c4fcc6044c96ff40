"""The algebra of axes: small cases that the eye can check, and laws against indices written out one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from itertools import product as pairs
from math import prod
from typing import TypeAlias

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunus.graph.axes import Algebra, Atom, Axis, concat, fresh, like, product
from prunus.graph.width import counts, cut_tensor, length, mask_of, positions, size_of, touched

quick = settings(max_examples=150)
Label: TypeAlias = "frozenset[tuple[Atom, int]]"


def labels(axis: Axis) -> list[Label]:
    """The oracle: for each index of an axis, the unit of each leaf that it belongs to."""
    found: list[Label] = [frozenset()]
    for atom in axis.atoms:
        if atom.segments is None:
            here = [frozenset([(atom, unit)]) for unit in range(atom.size)]
        else:
            here = [label for segment in atom.segments for label in labels(segment)]
        found = [outer | inner for outer, inner in pairs(found, here)]
    return found


def read(text: str) -> Axis:
    """A product of new leaves, or of concatenations of them: `"2 4|6"` is twice an axis of four laid before six."""
    return product([concat([fresh(int(size)) for size in part.split("|")]) for part in text.split()])


def is_fixed(algebra: Algebra) -> bool:
    return any(fact.kind == "fixed" for fact in algebra.facts)


# By hand


def test_an_axis_of_size_one_is_the_empty_product() -> None:
    assert fresh(1).atoms == ()
    assert fresh(1).size == 1
    assert repr(read("2 1 3")) == "(2 3)"


def test_two_dimensions_share_atoms_but_never_an_axis() -> None:
    axis = fresh(4)
    assert like(axis) is not axis
    assert like(axis).atoms == axis.atoms


@pytest.mark.parametrize(
    ("left", "right", "both"),
    [
        ("6", "6", "(6)"),
        ("6", "2 3", "(2 3)"),
        ("4 6", "8 3", "(4 2 3)"),
        ("24", "2 3 4", "(2 3 4)"),
        ("2|4", "6", "([(2)|(4)])"),
        ("3|5", "5|3", "([(3)|(2)|(3)])"),
        ("4|6", "5 2", "([(2)|(3)] 2)"),
        ("1|1 2", "4", "([()|()] 2)"),
    ],
    ids=["same", "split", "both-split", "three", "leaf-of-parts", "other-bounds", "inner", "parts-of-one"],
)
def test_unify_splits_until_both_are_alike(left: str, right: str, both: str) -> None:
    algebra, a, b = Algebra(), read(left), read(right)
    made = algebra.unify(a, b)
    assert (repr(a), repr(b), repr(made)) == (both, both, both)
    assert a.atoms == b.atoms
    assert not algebra.facts


@pytest.mark.parametrize(
    ("left", "right"),
    [("2 3", "3 2"), ("4 3", "6 2"), ("3|3", "3 2")],
    ids=["no-divisor", "later", "segments"],
)
def test_what_does_not_factor_alike_is_fixed_on_both_sides(left: str, right: str) -> None:
    algebra, a, b = Algebra(), read(left), read(right)
    algebra.unify(a, b, why="for a test")
    assert [(fact.axis, fact.kind, fact.reason) for fact in algebra.facts] == [
        (a, "fixed", "for a test"),
        (b, "fixed", "for a test"),
    ]


def test_merged_leaves_are_one_wherever_they_occur() -> None:
    algebra, a, b, c = Algebra(), fresh(4), fresh(4), fresh(4)
    wide = concat([like(a), fresh(2)])
    algebra.unify(a, b)
    algebra.unify(b, c)
    assert a.atoms == b.atoms == c.atoms
    assert next(wide.leaves()) is c.atoms[0]


def test_a_fact_is_found_on_what_its_axis_has_become() -> None:
    algebra, a = Algebra(), fresh(6)
    algebra.say(a, "inexact", "a statistic runs over it")
    algebra.unify(a, read("2 3"))
    other = read("2 3")
    algebra.unify(a, other)
    assert list(algebra.facts[0].axis.leaves()) == list(other.leaves())


def test_a_concatenation_of_one_is_that_one_and_empty_ones_are_left_out() -> None:
    axis, empty = fresh(4), Axis((Atom(0),))
    assert concat([axis]).atoms == axis.atoms
    assert concat([empty, axis, empty]).atoms == axis.atoms
    assert repr(concat([axis, empty, fresh(1)])) == "([(4)|()])"
    assert concat([axis, fresh(1)]).size == 5


def test_a_leaf_is_cut_and_its_pieces_are_cut_further() -> None:
    algebra, axis = Algebra(), fresh(10)
    first = algebra.cut(axis, [4, 6])
    assert first is not None
    assert repr(axis) == "([(4)|(6)])"
    second = algebra.cut(axis, [2, 5, 3])
    assert second is not None
    assert repr(axis) == "([(2)|(2)|(3)|(3)])"
    assert [piece.size for piece in second] == [2, 5, 3]
    assert repr(second[1]) == "([(2)|(3)])"


def test_a_product_is_cut_along_its_outermost_atom() -> None:
    algebra, axis = Algebra(), read("6 2")
    pieces = algebra.cut(axis, [4, 8])
    assert repr(pieces) == "[(2 2), (4 2)]"
    assert algebra.cut(read("6 2"), [3, 9]) is None


def test_a_cut_into_one_piece_changes_nothing() -> None:
    axis = fresh(5)
    pieces = Algebra().cut(axis, [0, 5, 0])
    assert repr(pieces) == "[(5)]"
    assert axis.atoms[0].segments is None


def test_factor_reads_an_axis_as_outer_and_inner() -> None:
    assert repr(Algebra().factor(read("2 6"), 3)) == "((2 2), (3))"
    assert repr(Algebra().factor(read("4|6"), 2)) == "(([(2)|(3)]), (2))"
    assert repr(Algebra().factor(read("2 3"), 6)) == "((), (2 3))"
    assert Algebra().factor(read("3 2"), 3) is None
    assert Algebra().factor(read("4|5"), 3) is None


def test_segments_that_are_factored_share_their_inner_atom() -> None:
    left, right = fresh(4), fresh(6)
    assert Algebra().factor(concat([left, right]), 2) is not None
    assert left.atoms[1] is right.atoms[1]
    assert left.atoms[0] is not right.atoms[0]


@pytest.mark.parametrize(
    ("axes", "shape", "made"),
    [
        (["6"], (2, 3), "[(2), (3)]"),
        (["2", "6"], (4, 3), "[(2 2), (3)]"),
        (["2", "3", "4"], (6, 4), "[(2 3), (4)]"),
        (["8", "3"], (2, 1, 4, 3), "[(2), (), (4), (3)]"),
        (["2", "4|6"], (2, 5, 2), "[(2), ([(2)|(3)]), (2)]"),
    ],
)
def test_regroup_factors_the_flattened_product_anew(axes: list[str], shape: tuple[int, ...], made: str) -> None:
    algebra = Algebra()
    assert repr(algebra.regroup([read(axis) for axis in axes], shape)) == made
    assert not algebra.facts


def test_a_view_across_factors_fixes_what_goes_in_and_what_comes_out() -> None:
    algebra, rows, columns = Algebra(), fresh(2), fresh(3)
    made = algebra.regroup([rows, columns], (3, 2))
    assert [axis.size for axis in made] == [3, 2]
    fixed = {leaf for fact in algebra.facts if fact.kind == "fixed" for leaf in fact.axis.leaves()}
    assert fixed == {leaf for axis in (rows, columns, *made) for leaf in axis.leaves()}


def test_positions_and_masks_of_heads_and_their_dimensions() -> None:
    three, heads, dims = fresh(3), fresh(2), fresh(2)
    axis = product([three, heads, dims])
    head, dim = heads.atoms[0], dims.atoms[0]
    assert positions(axis)[head].tolist() == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    assert positions(axis)[dim].tolist() == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    keep = {head: torch.tensor([False, True]), dim: torch.tensor([True, False])}
    assert mask_of(axis, keep).nonzero().flatten().tolist() == [2, 6, 10]
    assert length(axis, counts(keep)) == 3


def test_a_leaf_in_two_segments_owns_indices_of_both() -> None:
    leaf = fresh(2)
    axis = concat([like(leaf), fresh(3), product([like(leaf), fresh(2)])])
    assert positions(axis)[leaf.atoms[0]].tolist() == [[0, 5, 6], [1, 7, 8]]


def test_a_leaf_times_itself_owns_its_row_and_its_column_once() -> None:
    leaf = fresh(3)
    assert positions(product([leaf, leaf]))[leaf.atoms[0]].tolist() == [
        [0, 1, 2, 3, 6],
        [1, 3, 4, 5, 7],
        [2, 5, 6, 7, 8],
    ]


def test_a_size_that_follows_an_input_stays_an_expression() -> None:
    batch, heads = fresh(2), fresh(4)
    moving = {batch.atoms[0]: (0, 1)}
    assert size_of(product([batch, heads]), {heads.atoms[0]: 3}, moving) == {"times": [3, {"input": 0, "dim": 1}]}
    assert size_of(like(batch), {}, moving) == {"input": 0, "dim": 1}
    assert size_of(like(heads), {heads.atoms[0]: 3}, moving) == 3
    assert size_of(concat([like(batch), like(heads)]), {}, moving) == {"plus": [{"input": 0, "dim": 1}, 4]}


# Laws


@st.composite
def nested(draw: st.DrawFn) -> Axis:
    """An axis of products and concatenations over a few leaves, which may occur at several places."""
    pool = [fresh(draw(st.integers(2, 3))) for _ in range(3)]
    leaf = st.sampled_from(pool)
    inner = st.recursive(
        leaf,
        lambda part: st.lists(part, min_size=1, max_size=3).flatmap(
            lambda parts: st.sampled_from([product(parts), concat(parts)])
        ),
        max_leaves=5,
    )
    axis = draw(inner)
    assume(axis.size <= 200)
    return like(axis)


def masks(axis: Axis, draw: st.DataObject) -> dict[Atom, torch.Tensor]:
    """Some of the units of some of the leaves, one at least."""
    keep: dict[Atom, torch.Tensor] = {}
    for leaf in dict.fromkeys(axis.leaves()):
        kept = draw.draw(st.sets(st.integers(0, leaf.size - 1), min_size=1) | st.none())
        if kept is not None:
            keep[leaf] = torch.tensor([unit in kept for unit in range(leaf.size)])
    return keep


@quick
@given(nested())
def test_positions_are_the_indices_that_carry_the_unit(axis: Axis) -> None:
    written = labels(axis)
    for leaf in dict.fromkeys(axis.leaves()):
        expected = [[i for i, label in enumerate(written) if (leaf, unit) in label] for unit in range(leaf.size)]
        assert [sorted(row) for row in positions(axis)[leaf].tolist()] == expected


@quick
@given(nested(), st.data())
def test_a_mask_keeps_the_indices_all_of_whose_units_stay(axis: Axis, data: st.DataObject) -> None:
    keep = masks(axis, data)
    expected = [all(keep[leaf][unit] for leaf, unit in label if leaf in keep) for label in labels(axis)]
    assert mask_of(axis, keep).tolist() == expected
    assert length(axis, counts(keep)) == sum(expected)
    assert touched(axis, keep) == (not all(expected))
    values = torch.arange(axis.size)
    assert cut_tensor(values, (axis,), keep).tolist() == [i for i, stays in enumerate(expected) if stays]


@quick
@given(nested(), st.data())
def test_what_stays_is_what_no_removed_unit_owns(axis: Axis, data: st.DataObject) -> None:
    keep = masks(axis, data)
    gone = {i for leaf, mask in keep.items() for i in positions(axis)[leaf][~mask].flatten().tolist()}
    assert set((~mask_of(axis, keep)).nonzero().flatten().tolist()) == gone


@quick
@given(nested())
def test_units_of_a_leaf_that_occurs_once_partition_its_part_of_the_axis(axis: Axis) -> None:
    every = list(axis.leaves())
    once = [leaf for leaf in every if every.count(leaf) == 1]
    for leaf in once:
        rows = positions(axis)[leaf].flatten().tolist()
        assert len(set(rows)) == len(rows)
        if all(atom.segments is None for atom in axis.atoms):
            assert sorted(rows) == list(range(axis.size))


@st.composite
def factorings(draw: st.DrawFn) -> tuple[Axis, Axis]:
    """Two axes of one size, as products of factors in any order."""
    primes = draw(st.lists(st.sampled_from([2, 2, 3, 5]), min_size=1, max_size=5))

    def grouped() -> Axis:
        order = draw(st.permutations(primes))
        cuts = sorted(draw(st.sets(st.integers(1, len(primes) - 1)))) if len(primes) > 1 else []
        bounds = [0, *cuts, len(primes)]
        return read(" ".join(str(prod(order[i:j])) for i, j in pairwise(bounds)))

    return grouped(), grouped()


@quick
@given(factorings())
def test_unified_axes_have_the_same_leaves_or_are_fixed(axes: tuple[Axis, Axis]) -> None:
    algebra, (a, b) = Algebra(), axes
    size = a.size
    algebra.unify(a, b)
    assert a.size == b.size == size
    assert is_fixed(algebra) or (a.atoms == b.atoms and labels(a) == labels(b))


@quick
@given(nested(), st.data())
def test_pieces_of_a_cut_laid_end_to_end_are_the_axis(axis: Axis, data: st.DataObject) -> None:
    bounds = data.draw(st.sets(st.integers(1, axis.size - 1), max_size=3).map(sorted))
    ends = [0, *bounds, axis.size]
    widths = [b - a for a, b in pairwise(ends)]
    pieces = Algebra().cut(axis, widths)
    if pieces is not None:
        assert [piece.size for piece in pieces] == widths
        assert [label for piece in pieces for label in labels(piece)] == labels(axis)


@quick
@given(st.lists(nested(), min_size=1, max_size=2), st.data())
def test_a_view_keeps_the_flattened_order(axes: list[Axis], data: st.DataObject) -> None:
    size = prod(axis.size for axis in axes)
    shape: list[int] = []
    while size > 1 and len(shape) < 4:
        shape.append(data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])))
        size //= shape[-1]
    shape.append(size)
    algebra = Algebra()
    made = algebra.regroup(axes, shape)
    assert [axis.size for axis in made] == shape
    assert is_fixed(algebra) or labels(product(made)) == labels(product(axes))


@quick
@given(nested(), st.data())
def test_outer_and_inner_multiply_to_the_axis(axis: Axis, data: st.DataObject) -> None:
    inner = data.draw(st.sampled_from([d for d in range(1, axis.size + 1) if axis.size % d == 0]))
    halves = Algebra().factor(axis, inner)
    if halves is not None:
        assert halves[1].size == inner
        assert labels(product(halves)) == labels(axis)


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5), st.integers(1, 11)), max_size=12))
def test_whatever_is_said_in_whatever_order_sizes_stay_and_segments_are_smaller(
    steps: Sequence[tuple[int, int, int, int]],
) -> None:
    algebra = Algebra()
    pool = [fresh(12), read("2 6"), read("3 4"), read("4|8"), read("6|6"), read("4 3")]
    for what, i, j, number in steps:
        if what == 0:
            algebra.unify(pool[i], pool[j])
        elif what == 1:
            algebra.cut(pool[i], [number, 12 - number])
        elif what == 2:
            algebra.regroup([pool[i]], (number, 12 // number) if 12 % number == 0 else (12,))
        else:
            pool[i] = algebra.unify(pool[j], pool[i])
    for axis in pool:
        assert axis.size == 12
        assert len(labels(axis)) == 12
        _segments_are_smaller(axis)


def _segments_are_smaller(axis: Axis) -> None:
    for atom in axis.atoms:
        if atom.segments is not None:
            assert sum(segment.size for segment in atom.segments) == atom.size
            assert all(0 < segment.size < atom.size for segment in atom.segments)
            for segment in atom.segments:
                _segments_are_smaller(segment)
