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


@pytest.fixture(autouse=True, scope="session")
def language_is_patched_once():
    """Halves the interpreter's time.

    It puts its own functions into Triton's language again at every call from one program to
    another, where they are already; only their lookup in the whole module costs.
    """
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        yield
        return
    patch, is_builtin = interpreter._patch_lang, tl.core.is_builtin

    def patch_once(function):
        modules = [x for x in function.__globals__.values() if x is tl or x is tl.core]
        if any(is_builtin(module.load) for module in modules):
            return patch(function)
        return interpreter._LangPatchScope()  # nothing to take back

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_lang", patch_once)
        yield


@pytest.fixture
def device():
    """The GPU where the real programs are tested (TRITON_INTERPRET=0)."""
    return "cuda" if os.environ.get("TRITON_INTERPRET") == "0" else "cpu"
