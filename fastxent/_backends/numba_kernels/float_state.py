"""The processor's floating-point state: rounding, and what becomes of subnormal numbers.

Kernels compute with the usual one, whatever the caller has set, and leave the caller's as it was.
"""

from __future__ import annotations

import platform

from llvmlite import ir

from .emission import emitted
from .vectors import INT32, INT64, Kit, Value

USUAL = 0x1F80  # of x86: to nearest, subnormal numbers kept, no exception raised
MACHINE = platform.machine().lower()


def _function(kit: Kit, name: str, kind: ir.FunctionType) -> ir.Function:
    module = kit.b.module
    return module.globals.get(name) or ir.Function(module, kind, name)


@emitted("", "i")
def take_state(kit: Kit) -> Value:
    """The caller's state; from here on the usual one."""
    if MACHINE in ("x86_64", "amd64"):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        slot = kit.b.alloca(INT32)
        place = kit.b.bitcast(slot, ir.IntType(8).as_pointer())
        kit.b.call(_function(kit, "llvm.x86.sse.stmxcsr", kind), [place])
        state = kit.b.load(slot)
        kit.b.store(INT32(USUAL), slot)
        kit.b.call(_function(kit, "llvm.x86.sse.ldmxcsr", kind), [place])
        return Value(kit, kit.b.zext(state, INT64))
    if MACHINE in ("aarch64", "arm64"):
        state = kit.b.call(_function(kit, "llvm.aarch64.get.fpcr", ir.FunctionType(INT64, [])), [])
        kit.b.call(_function(kit, "llvm.aarch64.set.fpcr", ir.FunctionType(ir.VoidType(), [INT64])), [INT64(0)])
        return Value(kit, state)
    return kit.number(0)


@emitted("i")
def give_state(kit: Kit, state: Value) -> None:
    """Set the state that take_state found."""
    if MACHINE in ("x86_64", "amd64"):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        slot = kit.b.alloca(INT32)
        kit.b.store(kit.b.trunc(state.raw, INT32), slot)
        place = kit.b.bitcast(slot, ir.IntType(8).as_pointer())
        kit.b.call(_function(kit, "llvm.x86.sse.ldmxcsr", kind), [place])
    elif MACHINE in ("aarch64", "arm64"):
        kit.b.call(_function(kit, "llvm.aarch64.set.fpcr", ir.FunctionType(ir.VoidType(), [INT64])), [state.raw])
