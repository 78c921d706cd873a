"""Wrong values of parameters are refused by name: before execution, and in a notebook that papermill runs."""

import papermill
import pytest
from conftest import ROOT
from papermill.exceptions import PapermillExecutionError

from convopt.lab import notebooks
from convopt.lab.parameters import NUMBERS, TEXTS, check_parameters
from convopt.lab.study import Study

ALL = [*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "templates" / "experiment.ipynb"]

KNOWN = (
    "dataset must be one of adult, breast-cancer, california-housing, cifar10, cifar10n-aggregate, cifar10n-clean, "
    "cifar10n-random, cifar10n-worst, crop, diabetes, digits, fashion-mnist, mnist, tiny-shakespeare, "
    "or the path of a file, "
)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_parameter_has_its_values_declared_and_a_default_among_them(path):
    declared = notebooks.parameters_of(path)
    assert declared.keys() <= {*NUMBERS, *TEXTS}
    defaults = {name: notebooks._parse(parameter, parameter.default) for name, parameter in declared.items()}
    defaults = {name: value.strip("'\"") if isinstance(value, str) else value for name, value in defaults.items()}
    check_parameters([name for name, value in defaults.items() if value == 0], **defaults)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("dataset", "minst", 'got "minst"; did you mean mnist?'),
        ("dataset", 3, "or the path of a file, got 3"),
        ("dataset", "diabetes", 'must be one of a classification, as notebooks tell of accuracies, got "diabetes"'),
        ("seeds", -1, "seeds must be an integer from 1 to 10000, or 0 for the default, got -1"),
        ("seeds", 10**9, "got 1000000000"),
        ("seeds", 2.0, "seeds must be an integer"),
        ("seeds", True, "seeds must be an integer"),
        ("epochs", "two", 'got "two"'),
        ("epochs", -3, "epochs must be an integer of at least 1, or 0 for the default, got -3"),
        ("jobs", -1, "jobs must be an integer of at least 1, or 0 for the default, got -1"),
        ("store", None, "store must be the path of a folder, got None"),
        ("store", __file__, "store must be a folder, got"),
    ],
)
def test_a_study_refuses_a_wrong_value_by_name(name, value, said):
    right = {"dataset": "digits", "seeds": 0, "epochs": 0, "store": "", "jobs": 0}
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is looked at below
        Study(**{**right, name: value})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("batch_size", 0),
        ("taps", 4),
        ("taps", 1),
        ("pairs", 0),
        ("steps", -5),
        ("label_noise", 1.5),
        ("label_noise", float("nan")),
        ("probe_images", 100),
        ("seconds", -0.5),
        ("seconds", float("inf")),
        ("budget_minutes", 0),
        ("budget_minutes", -1),
        ("budget_minutes", float("nan")),
        ("budget_minutes", float("inf")),
        ("seeds", 0),
        ("epochs", 0),
    ],
)
def test_every_number_has_its_limits(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}$"):
        check_parameters(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("data", "brest-cancer", 'data must be one of .* got "brest-cancer"; did you mean breast-cancer?'),
        ("data", "", 'data must be one of .* got ""'),
        ("target", 3, "target must be the name of a table's column, or empty, got 3"),
        ("model", "SimpelNet", 'model must be one of .* got "SimpelNet"; did you mean SimpleNet?'),
        ("model", None, "model must be one of .* got None"),
        ("model", "nowhere_at_all:mine", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_every_text_has_what_it_may_say(name, value, said):
    with pytest.raises(ValueError, match=said):
        check_parameters(**{name: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "parameters", "said"),
    [
        ("01-idea", {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ("02-kernel-loss", {"taps": 4}, "taps must be an odd integer from 3 to 99, got 4"),
        ("03-snr", {"dataset": "minst"}, KNOWN + 'got "minst"; did you mean mnist?'),
        ("05-standard", {"seeds": -1}, "seeds must be an integer from 1 to 10000, or 0 for the default, got -1"),
        ("06-stress-test", {"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ("08-kernel-evolution", {"seeds": 0}, "seeds must be an integer from 1 to 10000, got 0"),
        ("13-cost", {"seconds": -1.0}, "seconds must be a finite number of at least 0, got -1.0"),
        ("14-your-data", {"data": "brest-cancer"}, 'got "brest-cancer"; did you mean breast-cancer?'),
        ("14-your-data", {"model": "SimpelNet"}, 'got "SimpelNet"; did you mean SimpleNet?'),
        ("14-your-data", {"budget_minutes": 0}, "budget_minutes must be a number of minutes from 0.1 to 10000, got 0"),
    ],
)
def test_papermill_alone_stops_at_the_first_cell_that_uses_it(notebook, parameters, said, tmp_path):
    path, out = str(ROOT / "notebooks" / f"{notebook}.ipynb"), str(tmp_path / "out.ipynb")
    with pytest.raises(PapermillExecutionError) as error:
        papermill.execute_notebook(path, out, parameters=parameters, cwd=str(ROOT), progress_bar=False)
    assert error.value.ename == "ValueError"
    assert error.value.evalue.endswith(said)
