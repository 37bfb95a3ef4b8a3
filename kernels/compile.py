"""Compiles the Triton programs ahead of time, for GPUs that this machine need not have.

    python -m kernels.compile            # every program for sm_80, sm_90 and sm_100
    python -m kernels.compile --json     # one JSON object a line

Prints registers, shared memory and spilled bytes as NVIDIA's assembler, which Triton brings along,
counts them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels.dispatch import is_interpreting

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Program:
    """One specialisation of a `@triton.jit` function.

    Attributes:
        name: what the table calls it.
        function: the jitted function.
        signature: argument name -> Triton type, `constexpr` for those of `constants`.
        constants: argument name -> value.
        num_warps: warps of one program.
        num_codes: K; 0 where a program holds no row.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_codes: int = 0


@dataclass(frozen=True)
class Usage:
    """What a program takes of a multiprocessor: registers a thread, bytes shared and spilled."""

    registers: int
    shared_bytes: int
    spilled_bytes: int


def compile_program(program: Program, architecture: int) -> Usage:
    """Compile for `sm_<architecture>` and read the assembler's report."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=program.function,
        signature=dict(program.signature),
        constexprs={
            (program.function.arg_names.index(k),): v for k, v in program.constants.items()
        },
    )
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": program.num_warps})
    text = compiled.asm["ptx"]
    found = re.search(r"^\.target (\S+)", text, re.MULTILINE)
    assert found is not None
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "program.ptx"
        ptx.write_text(text)
        report = subprocess.run(
            [get_ptxas(architecture).path, "-v", f"--gpu-name={found[1].split(',')[0]}", str(ptx),
             "-o", f"{folder}/program.cubin"],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))
    registers = re.search(r"Used (\d+) registers", report)
    assert registers is not None
    return Usage(int(registers[1]), int(compiled.metadata.shared), spilled)


def signature_of(function: Any, types: Mapping[str, str], constants: Mapping[str, Any]) -> Any:
    """Types of a function's arguments in their order; those not named are `i32`."""
    return {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in function.arg_names
    }


def programs() -> Iterator[Program]:
    """Every program of the package at the sizes that matter."""
    from kernels.forward_noise import kernel as forward_noise
    from kernels.nearest_code import kernel as nearest_code
    from kernels.posterior_loss import kernel as posterior_loss
    from kernels.reverse_step import kernel as reverse_step

    for module in (posterior_loss, reverse_step, forward_noise, nearest_code):
        yield from module.programs()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="compile the Triton programs ahead of time")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    as_json = parser.parse_args().json
    if is_interpreting():
        sys.exit("kernels.compile needs the compiler: TRITON_INTERPRET is 1; unset it")
    for program in programs():
        for architecture in ARCHITECTURES:
            usage = compile_program(program, architecture)
            facts = {"name": program.name, "architecture": architecture,
                     "num_codes": program.num_codes, "num_warps": program.num_warps}  # fmt: skip
            line = (
                f"{program.name:36} sm_{architecture:<4} {program.num_warps:2} warps "
                f"{usage.registers:4} registers {usage.shared_bytes:6} B shared "
                f"{usage.spilled_bytes:5} B spilled"
            )
            sys.stdout.write((json.dumps(facts | asdict(usage)) if as_json else line) + "\n")


if __name__ == "__main__":
    main()
