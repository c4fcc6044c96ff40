"""The digits task: its splits, batches, network and baseline. How well it learns is for `prunus run digits` to say."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.errors import RecoverError
from prunus.tasks import digits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many threads on busy cores wait for each other: a hundred times slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(split: digits.Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def test_the_splits_are_disjoint_and_complete() -> None:
    data = digits.load()
    train, validation, test = rows(data.train), rows(data.validation), rows(data.test)
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert len(train | validation | test) == 1797


def test_the_test_split_is_large() -> None:
    assert len(digits.load().test) >= 900


def test_the_splits_are_stratified() -> None:
    data = digits.load()
    for split in (data.train, data.validation, data.test):
        shares = split.labels.bincount(minlength=10) / len(split)
        assert shares.min() > 0.09
        assert shares.max() < 0.11


def test_the_splits_are_fixed() -> None:
    """Sums over index times label, printed once with torch 2.13: a change would leak test images into training."""
    data = digits.load()
    sums = [int((torch.arange(len(s)) * s.labels).sum()) for s in (data.train, data.validation, data.test)]
    assert sums == [1083407, 88931, 1836165]
    assert torch.equal(digits.load.__wrapped__().test.images, data.test.images)


def test_images_are_scaled() -> None:
    images = digits.load().train.images
    assert images.shape[1:] == (1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)


def passes(batches: digits.Batches, times: int) -> list[list[tuple[Tensor, Tensor]]]:
    return [list(batches) for _ in range(times)]


def equal(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def test_passes_differ_but_repeat_from_run_to_run() -> None:
    first, again = passes(digits.batches(), 3), passes(digits.batches(), 3)
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert not equal(first[0], first[1])
    assert not equal(first[0], passes(digits.batches(seed=1), 1)[0])


def test_set_epoch_says_which_pass_comes_next() -> None:
    batches = digits.batches()
    first, second = passes(batches, 2)
    batches.set_epoch(0)
    assert equal(list(batches), first)
    assert equal(list(batches), second)


def test_every_pass_gives_each_image_once() -> None:
    batches = digits.batches(augment=False)
    given = list(batches)
    images = torch.cat([images for images, _ in given])
    assert len(given) == len(batches)
    assert {image.numpy().tobytes() for image in images} == rows(digits.load().train)


def test_without_shuffling_or_augmenting_each_pass_is_the_split() -> None:
    split = digits.load().validation
    for given in passes(digits.batches(split, shuffle=False, augment=False), 2):
        assert torch.equal(torch.cat([images for images, _ in given]), split.images)
        assert torch.equal(torch.cat([labels for _, labels in given]), split.labels)


def test_batches_leave_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    digits.digits_cnn(seed=1)
    list(digits.batches())
    assert torch.equal(torch.rand(4), expected)


def test_moving_keeps_an_image_in_place() -> None:
    """A centered dot stays within one pixel and keeps most of its ink; the picture does change."""
    dot = torch.zeros(50, 1, 8, 8)
    dot[:, :, 3:5, 3:5] = 1.0
    moved = digits.moved(dot, torch.Generator().manual_seed(0))
    assert moved[:, :, 2:6, 2:6].sum() > 0.99 * moved.sum()
    assert 3 < moved.sum() / 50 < 5
    assert all(not torch.equal(image, dot[0]) for image in moved)


def test_the_network_is_small_and_repeats() -> None:
    model = digits.digits_cnn()
    assert sum(p.numel() for p in model.parameters()) <= 300_000
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    one, other = digits.digits_cnn(seed=1), digits.digits_cnn(seed=2)
    assert torch.equal(model.stem.weight, digits.digits_cnn().stem.weight)
    assert not torch.equal(one.stem.weight, other.stem.weight)


def macs_by_hand(w: int) -> int:
    """Kernel times inputs times outputs times pixels: 64 of them, 16 after the stride; `o` outputs of block 2."""
    o = w * 3 // 2
    block1 = 64 * 9 * (w + 2 * w * w)
    block2 = 16 * (9 * w * o + 9 * o * o + w * o)
    return block1 + block2 + 10 * o


@pytest.mark.parametrize("width", [2, 31, 64])
def test_macs_are_counted_as_by_hand(width: int) -> None:
    assert digits.macs(width) == macs_by_hand(width)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 0.1, 0.01])
def test_the_smaller_network_is_the_widest_within_its_share(share: float) -> None:
    width = digits.smaller(share).stem.out_channels
    assert macs_by_hand(width) <= share * macs_by_hand(64)
    assert width == 64 or macs_by_hand(width + 1) > share * macs_by_hand(64)


def test_a_share_that_no_network_fits_is_refused() -> None:
    with pytest.raises(RecoverError, match="no network of width 2 to 64"):
        digits.smaller(1e-6)


def test_scores_are_one_a_sample_and_the_mode_stays() -> None:
    model = digits.digits_cnn().train()
    for score, split in (
        (digits.correct, digits.load().test),
        (digits.correct_validation, digits.load().validation),
        (digits.likelihood, digits.load().validation),
    ):
        scores = score(model)
        assert scores.shape == (len(split),)
        assert 0 <= scores.min() <= scores.max() <= 1
        assert 0.02 < scores.mean() < 0.3
        assert model.training


def test_correct_is_right() -> None:
    class Oracle(torch.nn.Module):
        """Knows the test images, but takes each seven for a one."""

        def forward(self, images: Tensor) -> Tensor:
            labels = digits.load().test.labels
            assert len(images) == len(labels)
            return torch.nn.functional.one_hot(torch.where(labels == 7, 1, labels), 10).float()

    assert torch.equal(digits.correct(Oracle()), (digits.load().test.labels != 7).float())


def test_training_learns_and_repeats() -> None:
    models = [digits.train(digits.digits_cnn(width=8), epochs=8, seed=1) for _ in range(2)]
    assert torch.equal(*(model.head.weight for model in models))
    assert digits.correct(models[0]).mean() > 0.3


def test_without_scikit_learn_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RecoverError, match=r"pip install 'prunus\[demo\]'"):
        digits.load.__wrapped__()
