"""Recorded runs come out the same, to the last bit, on every x86-64 processor."""

import platform

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from convopt.lab import arithmetic, cluster, provenance
from convopt.lab.portable import PORTABLE

portable = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="no x86-64 processor")


@pytest.fixture(autouse=True)
def _settled():
    arithmetic.settle()


def correctly_rounded(x):
    return torch.from_numpy(np.asarray(np.sqrt(x.double().numpy()))).to(x.dtype)


@portable
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_square_roots_are_rounded_correctly(dtype):
    x = torch.rand(10007).to(dtype)
    expected = correctly_rounded(x)
    assert torch.equal(x.sqrt(), expected)
    assert torch.equal(torch._foreach_sqrt([x])[0], expected)
    assert torch.equal(torch.sqrt(x, out=torch.empty(0, dtype=dtype)), expected)
    assert torch.equal(x.clone().sqrt_(), expected)


@portable
def test_square_roots_have_the_dtype_and_layout_and_derivative_that_torch_gives_them():
    image = torch.rand(2, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    assert image.sqrt().is_contiguous(memory_format=torch.channels_last)
    assert torch.tensor(4).sqrt().equal(torch.tensor(2.0))
    assert torch.tensor(-1.0).sqrt().isnan()
    assert torch.autograd.gradcheck(torch.sqrt, torch.rand(4, dtype=torch.float64).add(0.1).requires_grad_())


@portable
def test_a_record_names_its_arithmetic():
    assert provenance.collect("")["arithmetic"] == "portable"


def arithmetic_of(_):
    return arithmetic.settle(), {
        blas["architecture"] for blas in threadpool_info() if blas["internal_api"] == "openblas"
    }


@portable
@pytest.mark.slow
def test_workers_compute_portably_whatever_this_process_does(monkeypatch):
    monkeypatch.delenv("MKL_CBWR")
    assert list(cluster.completed(arithmetic_of, [0], jobs=1, environment=PORTABLE)) == [("portable", {"Haswell"})]
    assert {name for name, _ in cluster.completed(arithmetic_of, [0, 1, 2], jobs=2)} == {"native"}
