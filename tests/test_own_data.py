"""The reader's own files: each kind is trained on with every optimizer, and what is not as it should be is refused."""

import decimal
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from convopt.lab import data, experiments, methods, networks, report, training
from convopt.lab.data import files
from convopt.lab.data.registry import ENTRIES
from convopt.lab.runs import Choice
from convopt.lab.tasks import TASKS
from convopt.lab.trainer import Trainer

RNG = np.random.default_rng(0)
GOOD = {
    "x_train": RNG.normal(size=(60, 6)),
    "y_train": np.arange(60) % 3,
    "x_test": RNG.normal(size=(20, 6)),
    "y_test": np.arange(20) % 3,
}


PIXELS = {"train": 16, "test": 4}
"""Each grey value so often."""


def npz(folder: Path, **changed) -> str:
    arrays = {name: array for name, array in {**GOOD, **changed}.items() if array is not None}
    np.savez(folder / "my.npz", **arrays)
    return str(folder / "my.npz")


def of_inputs(folder: Path, *shape: int) -> str:
    x = {f"x_{part}": RNG.normal(size=(n, *shape)) for part, n in (("train", 60), ("test", 20))}
    return npz(folder, **x)


def table(folder: Path, suffix: str = "csv") -> str:
    frame = pd.DataFrame({"size": RNG.normal(size=100), "colour": ["red", "blue"] * 50, "price": RNG.normal(size=100)})
    path = folder / f"houses.{suffix}"
    frame.to_parquet(path) if suffix == "parquet" else frame.to_csv(path, index=False)
    return f"{path}::price"


def text(folder: Path) -> str:
    (folder / "my.txt").write_text("to be, or not to be: that is the question. " * 120)
    return str(folder / "my.txt")


def images(folder: Path) -> str:
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        for i in range(30):
            pixels = RNG.integers(0, 255, (40, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / name / f"{i}.png")
    return str(folder / "pets")


NAMES = "\n".join(["name,size,y", *(f"somebody {i},{i % 7},{i % 2}" for i in range(30))]).encode()

KINDS = {
    "colour images": (lambda folder: of_inputs(folder, 3, 32, 32), "image", "classification"),
    "series": (lambda folder: of_inputs(folder, 1, 46), "series", "classification"),
    "rows": (npz, "features", "classification"),
    "regression": (
        lambda folder: npz(folder, y_train=RNG.normal(size=60), y_test=RNG.normal(size=20)),
        "features",
        "regression",
    ),
    "csv": (table, "features", "regression"),
    "parquet": (lambda folder: table(folder, "parquet"), "features", "regression"),
    "text": (text, "tokens", "next token"),
    "folder of images": (images, "image", "classification"),
}
RECIPES = [experiments.ADAM, *(experiments.Recipe(Choice.of(name, lr=0.01)) for name in methods.OURS)]
for_each_kind = pytest.mark.parametrize(("make", "kind", "task"), KINDS.values(), ids=KINDS.keys())


@for_each_kind
def test_it_is_known_for_what_it_is(make, kind, task, tmp_path):
    name = make(tmp_path)
    dataset = data.load(name)
    assert (dataset.kind, dataset.task) == (kind, task)
    assert data.describe(name) == (kind, task, len(dataset.train), len(dataset.test))
    assert dataset.note
    assert len(dataset.validation) > 0
    assert data.load(name).checksum == dataset.checksum


@for_each_kind
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.optimizer.name)
def test_it_is_trained_on_by_every_optimizer_and_reported_in_its_measure(make, kind, task, recipe, tmp_path):
    name = make(tmp_path)
    record = training.train(experiments.STRESS.run(recipe, name, 1, 0))
    assert record.status == "finished"
    measure = TASKS[task].measure
    assert record.final == record.curves[f"test_{measure.name}"][-1]
    experiment = experiments.find("06-stress-test")
    if experiment.label(record.run):
        shown = str(report.table(experiment, report.rows(experiment, [record])))
        assert f"final {measure.title}" in shown


def test_a_file_that_has_changed_is_another_data_set(tmp_path):
    first = experiments.STRESS.run(experiments.SGD, npz(tmp_path), 1, 0)
    second = experiments.STRESS.run(experiments.SGD, npz(tmp_path, y_test=np.zeros(20, int)), 1, 0)
    assert first.dataset == second.dataset
    assert first.id != second.id


def test_the_same_numbers_in_another_shape_are_another_data_set(tmp_path):
    first = data.fingerprint(npz(tmp_path))
    shaped = {part: GOOD[part].reshape(-1, 1, 2, 3) for part in ("x_train", "x_test")}
    assert data.fingerprint(npz(tmp_path, **shaped)) != first


def test_the_same_bytes_in_another_dtype_are_another_data_set(tmp_path):
    pixels = {part: np.arange(256, dtype=np.uint8).repeat(n).reshape(-1, 1, 8, 8) for part, n in PIXELS.items()}
    labels = {part: np.arange(len(each)) % 2 for part, each in pixels.items()}

    def of(dtype):
        x = {f"x_{part}": each.view(dtype) for part, each in pixels.items()}
        return data.fingerprint(npz(tmp_path, **x, **{f"y_{part}": each for part, each in labels.items()}))

    assert of(np.uint8) != of(np.int8)


def test_decimal_columns_are_numbers(tmp_path):
    prices = [decimal.Decimal(f"{i}.5") for i in range(40)]
    frame = pd.DataFrame({"area": prices[::-1], "price": prices})
    frame.to_parquet(tmp_path / "sold.parquet")
    dataset = data.load(f"{tmp_path / 'sold.parquet'}::price")
    assert (dataset.task, dataset.shape) == ("regression", (1,))


def test_small_errors_are_told_with_three_digits(tmp_path):
    path = npz(tmp_path, y_train=1e-3 * RNG.normal(size=60), y_test=1e-3 * RNG.normal(size=20))
    experiment = experiments.find("06-stress-test")
    record = training.train(experiment.runs(path, [0], 1)[0])
    (told,) = report.table(experiment, report.rows(experiment, [record])).text()["final RMSE"]
    assert float(told) == pytest.approx(record.final, rel=0.01)


def test_rows_that_are_sorted_by_class_are_not_taken_in_that_order(tmp_path):
    """Experiments take the first ones of each split."""
    y, x = np.repeat(np.arange(3), 200), RNG.normal(size=(600, 6))
    x[:, 0] = y
    dataset = data.load(npz(tmp_path, x_train=x, y_train=y, x_test=x, y_test=y, x_validation=x, y_validation=y))
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.y[:60].bincount(minlength=3).min() > 10
        assert (split.x[:, 0].argsort() // 200).bincount().tolist() == [200] * 3
        assert torch.corrcoef(torch.stack([split.x[:, 0], split.y.float()]))[0, 1] > 0.99


def test_targets_that_do_not_vary_have_no_share_that_is_explained(tmp_path):
    y = RNG.normal(size=60)
    record = training.train(
        experiments.STRESS.run(experiments.SGD, npz(tmp_path, y_train=y, y_test=np.full(20, 0.5)), 1, 0)
    )
    assert record.status == "finished"
    assert np.isnan(record.curves["test_r2"]).all()


def test_folders_of_training_and_validation_images_are_splits_and_no_classes(tmp_path):
    for part, count in (("train", 30), ("val", 4), ("test", 6)):
        for cls in ("cat", "dog"):
            (tmp_path / part / cls).mkdir(parents=True)
            for i in range(count):
                pixels = RNG.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / cls / f"{i}.png")
    dataset = data.load(str(tmp_path))
    assert [len(each) for each in (dataset.train, dataset.validation, dataset.test)] == [60, 8, 12]
    shutil.rmtree(tmp_path / "test")
    dataset = files.load(str(tmp_path))
    assert len(dataset.test) == 8
    assert "0 is cat, 1 is dog" in dataset.note
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(ValueError, match="must hold train, and test or one of"):
        files.load(str(tmp_path))


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_images_of_more_than_eight_bits_are_refused_by_name(mode, tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new(mode, (8, 8)).save(tmp_path / "cat" / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep\.tiff: must have 8 bits"):
        files.load(str(tmp_path))


def test_an_image_that_is_cut_off_is_refused_by_name(tmp_path):
    (tmp_path / "cat").mkdir()
    file = tmp_path / "cat" / "half.png"
    Image.fromarray(RNG.integers(0, 255, size=(64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"half\.png: cannot be read as an image"):
        files.load(str(tmp_path))


class Dropping(torch.nn.Sequential):
    """A layer that draws, one that is frozen, and one that is not used."""

    def __init__(self, shape, outputs):
        super().__init__(torch.nn.Linear(shape[0], 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, outputs))
        self[0].requires_grad_(False)
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self[2](self[1](self[0](x)))


@pytest.mark.parametrize("recipe", [experiments.SGD, experiments.averaged(experiments.ADAMW)], ids=["SGD", "averaged"])
def test_a_network_that_draws_and_has_parts_without_gradients_is_trained_alike_every_time(recipe, tmp_path):
    run = replace(
        experiments.STRESS.run(recipe, npz(tmp_path), 3, 0), model=Choice.of(f"{__name__}:Dropping"), batch_size=8
    )
    state = torch.get_rng_state()
    first, second = training.train(run), training.train(run)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.status == "finished"
    assert first.curves["train_loss"] == second.curves["train_loss"]


def test_a_network_of_ones_own_is_another_when_its_layers_are(monkeypatch):
    name = f"{__name__}:Dropping"
    first = networks.fingerprint(name, (6,), 3)
    assert networks.fingerprint(name, (6,), 3) == first
    monkeypatch.setattr(f"{__name__}.Dropping", lambda shape, outputs: torch.nn.Linear(shape[0], outputs))
    assert networks.fingerprint(name, (6,), 3) != first
    assert networks.fingerprint("SimpleNet", (6,), 3) == ""


def test_inputs_are_normalised_by_the_training_inputs_and_targets_keep_their_unit(tmp_path):
    y = 1000 * RNG.normal(size=60)
    dataset = data.load(npz(tmp_path, x_train=7 + 3 * GOOD["x_train"], y_train=y, y_test=y[:20]))
    torch.testing.assert_close(dataset.train.x.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    guess = torch.zeros(len(dataset.test), 1)
    rmse = TASKS["regression"].measures(guess, dataset.test.y, dataset.target_scale)["rmse"]
    assert rmse == pytest.approx(np.sqrt(np.mean((y[:20] - y.mean()) ** 2)), rel=0.2)


def test_noisy_labels_are_trained_on_and_those_that_are_wrong_are_known(tmp_path):
    noisy = GOOD["y_train"].copy()
    noisy[:30] = (noisy[:30] + 1) % 3
    dataset = data.load(npz(tmp_path, y_train_noisy=noisy))
    wrong = dataset.train.y != dataset.clean
    assert wrong.any()
    assert torch.equal(dataset.train.y[wrong], (dataset.clean[wrong] + 1) % 3)
    run = experiments.STRESS_CLEAN.run(experiments.SGD, dataset.name, 1, 0)
    record, again = training.train(run), Trainer(run)
    again.train_epoch(next(again.epochs()))
    accuracy = training.evaluate(again.model, dataset.train[wrong], dataset)["accuracy"]
    assert record.curves["wrong_labels_learnt"] == [accuracy]


def test_a_grid_tells_that_rows_are_flattened_fields(tmp_path):
    assert data.load(npz(tmp_path, grid=np.array([2, 3]))).shape == (1, 2, 3)
    assert data.load(npz(tmp_path, grid=np.array([3]))).shape == (2, 3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y_train": None}, "has no array y_train"),
        ({"x_test": RNG.normal(size=(20, 5))}, "x_test must have rows of shape (6,)"),
        ({"x_train": RNG.normal(size=(59, 6))}, "x_train and y_train must have as many rows"),
        ({"x_train": np.full((60, 6), np.nan)}, "x_train has values that are not finite"),
        ({"y_train": np.zeros(60, int)}, "y_train has one class only"),
        ({"y_test": np.arange(20)}, "y_test must hold classes from 0 to 2"),
        ({"y_train": np.arange(60) % 3 - 1}, "y_train must hold classes 0, 1, 2"),
        ({"y_train": 100_000 * np.arange(60)}, "as decimal numbers (1.0) they would be a regression's"),
        ({"x_validation": GOOD["x_test"]}, "must have both of x_validation and y_validation, or neither"),
        ({"y_train": np.array(["a", "b"] * 30)}, "y_train must hold integers or numbers"),
        ({"x_train": np.array([["a"] * 6] * 60)}, "x_train must hold numbers"),
        ({"y_train": np.full(60, 2.5), "y_test": np.zeros(20)}, "y_train has the same value 2.5 in all rows"),
        ({"grid": np.array([4, 4])}, "grid must be one or two lengths"),
        ({"grid": np.array([2.0, 3.0])}, "grid must be one or two lengths"),
        ({"grid": np.array([[2, 3]] * 2)}, "grid must be one or two lengths"),
        ({"grid": np.array(["wide"])}, "grid must be one or two lengths"),
        ({"grid": np.array([-2, -3])}, "grid must be one or two lengths"),
        ({"x_test": np.full((20, 6), 1e42)}, "x_test has values beyond 1e+30"),
        ({"y_train": np.full(60, 1e42), "y_test": np.zeros(20)}, "y_train has values beyond 1e+30"),
        ({"y_train_noisy": np.zeros(3, int)}, "y_train_noisy must have a label for each"),
        ({"x_train": np.ones((60, 6))}, "x_train is the same in all rows: there is nothing to learn from"),
        ({"x_train": GOOD["x_train"][:9], "y_train": GOOD["y_train"][:9]}, "needs at least 20 training rows"),
        ({"y_train": np.array([0, None] * 30, dtype=object)}, "cannot be read as .npz without pickled objects"),
        ({"x_train": np.zeros((60, 0)), "x_test": np.zeros((20, 0))}, "x_train and y_train must have as many rows"),
        (
            {"x_train": np.zeros((60, 1, 2, 3, 4)), "x_test": np.zeros((20, 1, 2, 3, 4))},
            "x_train must be (n, features)",
        ),
    ],
)
def test_an_npz_that_is_not_as_it_should_be_is_refused_by_file_and_array(changed, said, tmp_path):
    name = npz(tmp_path, **changed)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        data.load(name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.npz", b"not a zip", "cannot be read as .npz"),
        ("a.csv", b"", "cannot be read as a table"),
        ("a.csv", b"x,y\n1,2\n3,4\n", "target must name the column to predict; there are x, y"),
        ("a.csv::z", b"x,y\n1,2\n3,4\n", 'has no column "z"; there are x, y'),
        ("a.csv::y", b",x,y\n" + 30 * b"0,1,2\n", 'column "Unnamed: 0" has no name'),
        ("a.csv::y", b"x,y\n" + 19 * b"1,2\n", "needs at least 20 rows, some are kept for validation; got 19"),
        ("a.csv::y", NAMES, 'column "name" holds 30 different texts in 30 rows: leave it out'),
        ("a.txt::y", b"short", 'target must be left out, only tables have columns, got "y"'),
        ("a.csv::y", b"x,y\n1,2\n,4\n", 'column "x" has missing values'),
        ("a.csv::y", b"y\n1\n2\n", 'columns beside "y"'),
        ("a.parquet::y", b"PAR1", "cannot be read as a table"),
        ("a.txt", b"short", "must have at least"),
        ("a.txt", b"\xff" * 5000, "cannot be read as UTF-8"),
        ("a.xlsx", b"", "expected a file ending in .npz"),
    ],
)
def test_another_file_that_is_not_as_it_should_be_is_refused(file, content, said, tmp_path):
    path, _, column = file.partition("::")
    (tmp_path / path).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        data.load(f"{tmp_path / path}::{column}" if column else str(tmp_path / path))
    assert str(tmp_path / path) in str(error.value)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a folder of images for each class"):
        data.load(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_what_the_registry_says_of_a_data_set_is_true(name):
    if not data.is_at_hand(name):
        pytest.skip(f"{name} is not at hand")
    dataset, said = data.load(name), data.describe(name)
    assert said == (dataset.kind, dataset.task, len(dataset.train), len(dataset.test))
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.x.shape[1:] == dataset.shape
        assert split.x.isfinite().all()
