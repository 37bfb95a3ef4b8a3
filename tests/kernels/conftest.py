"""Every kernel is tested through the reference and through Triton."""

import os
import sys

import pytest

NO_TRITON = pytest.mark.skipif(sys.platform != "linux", reason="there is no Triton here")


@pytest.fixture(params=["reference", pytest.param("triton", marks=NO_TRITON)])
def backend(request, monkeypatch):
    """Forces one implementation; on a CPU the programs run under Triton's interpreter."""
    monkeypatch.setenv("CDCD_KERNELS", request.param)
    return request.param


@pytest.fixture
def device():
    """The GPU where the real programs are tested (TRITON_INTERPRET=0)."""
    return "cuda" if os.environ.get("TRITON_INTERPRET") == "0" else "cpu"
