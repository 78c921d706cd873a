"""How long a step takes, for development. These are no tests: nothing is asserted.

``pytest benchmarks --benchmark-autosave`` keeps the figures, ``--benchmark-compare`` shows them beside the last ones.
"""

import pytest
import twins

from convopt.lab import arithmetic, bench


@pytest.fixture(autouse=True)
def one_thread():
    with arithmetic.threads(1):
        yield


@pytest.mark.parametrize("optimizer", bench.OPTIMIZERS)
@pytest.mark.parametrize("model", ["SimpleNet", "ConvNet", "ResNet-18"])
def test_step(benchmark, model, optimizer):
    benchmark.group = model
    benchmark(bench.OPTIMIZERS[optimizer](*bench.with_gradients(model, "cpu")).optimizer.step)


@pytest.mark.parametrize("optimizer", [name for name in bench.OPTIMIZERS if hasattr(twins, f"{name}Twin")])
def test_step_of_the_twin_that_is_written_to_be_read(benchmark, optimizer):
    benchmark.group = "SimpleNet"
    model, _ = bench.with_gradients("SimpleNet", "cpu")
    make = getattr(twins, f"{optimizer}Twin")
    if issubclass(make, twins.WienerSGDTwin):
        first = next(p for p in model.parameters() if p.ndim == 2)
        benchmark(make(model.parameters(), {first: (28, 28)}).step)
    else:
        benchmark(make(model.parameters()).step)
