"""Data are complete and split as documented, or refused with the file's name; wrong labels are drawn as documented."""

import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convopt.lab import data
from convopt.lab.data import images, prepared


def test_digits_are_split_1200_200_397_and_need_no_files():
    digits = data.load("digits")
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1200, 200, 397)
    assert digits.grid == (8, 8)
    assert digits.train.x.shape == (1200, 1, 8, 8)
    assert digits.confirmation is None


def test_mnist_is_split_and_normalised_as_documented(mnist_folder):
    mnist = data.load("mnist")
    assert [len(s) for s in (mnist.train, mnist.validation, mnist.test, mnist.confirmation)] == [5000, 5000, 1000, 9000]
    assert mnist.train.x.min() == pytest.approx(-0.1307 / 0.3081)
    assert mnist.train.x.max() == pytest.approx((1 - 0.1307) / 0.3081, rel=1e-5)
    assert mnist.train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.y[:5].tolist() == [7, 2, 1, 0, 4]


PREPARED = ["crop", "adult", "california-housing", "tiny-shakespeare", *prepared.LABELS_OF_CIFAR10N]


@pytest.mark.slow
@pytest.mark.parametrize("name", PREPARED)
def test_what_has_to_be_put_into_the_data_folder_is_as_described(name):
    if not data.is_at_hand(name):
        pytest.skip(f"{name} is not under {data.data_folder()}")
    known, dataset = data.describe(name), data.load(name)
    assert (dataset.name, dataset.kind, dataset.task) == (name, known.kind, known.task)
    assert (len(dataset.train), len(dataset.test)) == (known.n_train, known.n_test)
    assert len(dataset.confirmation) > len(dataset.test)


@pytest.mark.parametrize("name", PREPARED)
def test_where_it_is_not_a_line_says_what_to_put_where(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVOPT_DATA", str(tmp_path))
    assert not data.is_at_hand(name)
    with pytest.raises(data.DataError, match=rf"{name} is not under {tmp_path} \(missing: .*\)\. Put it there, with"):
        data.load(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong"),
    [("cifar10n-worst", 0.4), ("cifar10n-random", 0.17), ("cifar10n-aggregate", 0.09), ("cifar10n-clean", 0)],
)
def test_human_labels_are_trained_on_and_the_clean_ones_known(name, wrong):
    if not data.is_at_hand(name):
        pytest.skip("no human labels of CIFAR-10")
    dataset = data.load(name)
    assert (dataset.train.y != dataset.clean).float().mean() == pytest.approx(wrong, abs=0.02)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="cifar"):
        data.load("cifar")


def test_without_files_and_network_both_ways_out_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVOPT_DATA", str(tmp_path))
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(data.DataError) as error:
        data.load("mnist")
    message = str(error.value)
    assert str(tmp_path) in message
    assert "CONVOPT_DATA" in message
    assert "digits" in message
    assert "\n" not in message


def idx(magic: int, shape: tuple[int, ...], size: int | None = None) -> bytes:
    return struct.pack(f">i{len(shape)}i", magic, *shape) + bytes(torch.Size(shape).numel() if size is None else size)


@pytest.fixture
def mnist_copy(tmp_path, monkeypatch) -> Path:
    """Files of MNIST's layout, all zeros, where CONVOPT_DATA points."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, (magic, shape) in images.MNIST_FILES.items():
        (raw / name).write_bytes(idx(magic, shape))
    monkeypatch.setenv("CONVOPT_DATA", str(tmp_path))
    return raw


@pytest.mark.parametrize("name", images.MNIST_FILES)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda good: good[: len(good) // 2], "truncated"),
        (lambda good: b"", "magic"),
        (lambda good: good + b"x", "too long"),
        (lambda good: b"\x1f\x8b" + good[2:], "magic"),
        (lambda good: good[:4] + struct.pack(">i", 10) + good[8:], "header"),
    ],
)
def test_a_damaged_file_is_named(mnist_copy, name, damage, said):
    path = mnist_copy / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError, match=said) as error:
        data.load("mnist")
    assert str(path) in str(error.value)


def test_good_files_of_the_layout_load(mnist_copy):
    assert len(data.load("mnist").train) == 5000
    shutil.rmtree(mnist_copy)


@given(st.sampled_from([0.0, 0.15, 0.3, 1.0]), st.integers(2, 10), st.integers(0, 2**62))
def test_exactly_the_rate_of_labels_is_wrong_and_none_of_them_right(rate, classes, seed):
    labels = torch.randint(classes, (200,), generator=torch.Generator().manual_seed(seed))
    before = labels.clone()
    noisy = data.corrupt_targets(labels, rate, classes, seed)
    assert torch.equal(labels, before)
    assert (noisy != labels).sum() == round(rate * 200)
    assert ((noisy >= 0) & (noisy < classes)).all()
    assert torch.equal(noisy, data.corrupt_targets(labels, rate, classes, seed))


def test_wrong_labels_are_uniform_over_the_other_classes():
    labels = torch.full((9000,), 3)
    counts = torch.bincount(data.corrupt_targets(labels, 1.0, 10, seed=0), minlength=10)
    assert counts[3] == 0
    expected = 1000
    chi_squared = ((counts[counts > 0] - expected) ** 2 / expected).sum()
    assert chi_squared < 26.1  # 99.9 % quantile for 8 degrees of freedom


def test_wrong_labels_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    data.corrupt_targets(torch.zeros(100, dtype=torch.long), 0.5, 10, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("rate", "classes", "name"), [(1.5, 10, "rate"), (-0.1, 10, "rate"), (0.1, 1, "outputs")])
def test_bad_noise_is_refused(rate, classes, name):
    with pytest.raises(ValueError, match=name):
        data.corrupt_targets(torch.zeros(5, dtype=torch.long), rate, classes, seed=0)
