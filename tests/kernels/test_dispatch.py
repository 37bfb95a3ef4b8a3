"""Which implementation runs, and what is said where the one asked for cannot."""

import pytest
import torch

from kernels import dispatch
from kernels.inputs import problem
from kernels.posterior_loss import posterior_loss

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_takes_the_reference_and_a_gpu_triton(monkeypatch):
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    assert dispatch.explain(CPU)[0] == "reference"
    assert dispatch.explain(CUDA) == ("triton", "a CUDA device and Triton are there")
    assert dispatch.explain(CUDA, 16385)[0] == "reference"
    assert "at most 16384 codes, got 16385" in dispatch.explain(CUDA, 16385)[1]
    monkeypatch.setenv("CDCD_KERNELS", "reference")
    assert dispatch.explain(CUDA)[0] == "reference"


def test_triton_where_it_cannot_run_is_an_error(monkeypatch):
    monkeypatch.setenv("CDCD_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x = problem(1, 2, 5, 0)
    with pytest.raises(dispatch.KernelUnavailableError, match=r"needs a CUDA device.*are on cpu"):
        posterior_loss(x.logits, x.z_t, x.z_0, x.q)
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    with pytest.raises(dispatch.KernelUnavailableError, match="triton is not installed"):
        dispatch.explain(CUDA)


def test_an_unknown_choice_is_an_error(monkeypatch):
    monkeypatch.setenv("CDCD_KERNELS", "cuda")
    with pytest.raises(ValueError, match="must be auto, triton or reference: got 'cuda'"):
        dispatch.explain(CPU)


def test_values_on_a_gpu_are_looked_at_only_when_asked(monkeypatch):
    on_gpu = torch.empty(0, device="meta")
    assert not dispatch.checks_values(on_gpu)
    monkeypatch.setenv("CDCD_CHECKS", "1")
    assert dispatch.checks_values(on_gpu)
