"""Vectors in Numba: functions over them that emit LLVM instructions.

A function decorated with `emitted` is called once for each compute type, with a `Kit` and the wrapped arguments, while
Numba compiles a caller; it becomes one LLVM function of its own, and in Numba's eyes an intrinsic, whose first argument
is any number of the compute type. Memory is an address; nothing is assumed about its alignment.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, config

INT32, INT64, DOUBLE, BIT = ir.IntType(32), ir.IntType(64), ir.DoubleType(), ir.IntType(1)


def _features() -> dict[str, bool]:
    """What the machine has that Numba compiles for; nothing if that is another one than this."""
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return {}
    return dict(binding.get_host_cpu_features())


FEATURES = _features()
# Whether a*b + c is one operation with one rounding.
FUSED = platform.machine().lower() in ("aarch64", "arm64") or FEATURES.get("fma", False)


class Value:
    """A vector, a mask or a number, with Python's operators; numbers of Python's are taken as constants."""

    __slots__ = ("kit", "raw")

    def __init__(self, kit: Kit, raw: Any) -> None:
        self.kit, self.raw = kit, raw

    def _other(self, other: Any) -> Any:
        return other.raw if isinstance(other, Value) else constant(self.raw.type, other)

    def _binary(self, other: Any, floating: str, integer: str) -> Value:
        name = floating if is_floating(self.raw.type) else integer
        return Value(self.kit, getattr(self.kit.b, name)(self.raw, self._other(other)))

    def __add__(self, other: Any) -> Value:
        return self._binary(other, "fadd", "add")

    def __sub__(self, other: Any) -> Value:
        return self._binary(other, "fsub", "sub")

    def __mul__(self, other: Any) -> Value:
        return self._binary(other, "fmul", "mul")

    def __truediv__(self, other: Any) -> Value:
        return self._binary(other, "fdiv", "sdiv")

    def __rsub__(self, other: Any) -> Value:
        return Value(self.kit, self._other(other)) - self

    def __neg__(self) -> Value:
        return 0 - self

    def __and__(self, other: Any) -> Value:
        return Value(self.kit, self.kit.b.and_(self.raw, self._other(other)))

    def __or__(self, other: Any) -> Value:
        return Value(self.kit, self.kit.b.or_(self.raw, self._other(other)))

    def __lshift__(self, n: Any) -> Value:
        return Value(self.kit, self.kit.b.shl(self.raw, self._other(n)))

    def __rshift__(self, n: Any) -> Value:
        return Value(self.kit, self.kit.b.lshr(self.raw, self._other(n)))

    def compare(self, how: str, other: Any) -> Value:
        b, other = self.kit.b, self._other(other)
        made = b.fcmp_ordered if is_floating(self.raw.type) else b.icmp_signed
        return Value(self.kit, made(how, self.raw, other))

    def __lt__(self, other: Any) -> Value:
        return self.compare("<", other)

    def __gt__(self, other: Any) -> Value:
        return self.compare(">", other)

    def __ge__(self, other: Any) -> Value:
        return self.compare(">=", other)

    def __le__(self, other: Any) -> Value:
        return self.compare("<=", other)

    def equals(self, other: Any) -> Value:
        return self.compare("==", other)


def is_floating(kind: Any) -> bool:
    return isinstance(kind.element if isinstance(kind, ir.VectorType) else kind, ir.FloatType | ir.DoubleType)


def constant(kind: Any, value: Any) -> Any:
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value] * kind.count)
    return ir.Constant(kind, value)


class Kit:
    """What a function emits with: the builder, and the types that follow from the compute type."""

    def __init__(self, builder: Any, single: bool) -> None:
        self.b = builder
        self.single = single
        self.bits, self.lanes = (32, 16) if single else (64, 8)
        self.size = self.bits // 8
        self.group = 4 * self.lanes
        self.fused = FUSED
        self.real = ir.FloatType() if single else DOUBLE
        self.word = ir.IntType(self.bits)
        self.vector = ir.VectorType(self.real, self.lanes)
        self.words = ir.VectorType(self.word, self.lanes)

    # numbers and vectors

    def number(self, value: int) -> Value:
        """An int64."""
        return Value(self, ir.Constant(INT64, value))

    def full(self, value: Any) -> Value:
        """A vector of one number: Python's, or a wrapped one of either floating type."""
        if not isinstance(value, Value):
            return Value(self, constant(self.vector, value))
        raw = self.narrow(value).raw
        raw = self.b.insert_element(ir.Constant(self.vector, ir.Undefined), raw, ir.Constant(INT32, 0))
        zeros = ir.Constant(ir.VectorType(INT32, self.lanes), [0] * self.lanes)
        return Value(self, self.b.shuffle_vector(raw, ir.Constant(self.vector, ir.Undefined), zeros))

    def iota(self) -> Value:
        return Value(self, ir.Constant(self.vector, [float(i) for i in range(self.lanes)]))

    def narrow(self, value: Value) -> Value:
        """A number in the compute type."""
        if value.raw.type == INT64:
            return Value(self, self.b.sitofp(value.raw, self.real))
        return Value(self, self.b.fptrunc(value.raw, self.real)) if value.raw.type != self.real else value

    def wide(self, value: Value) -> Value:
        """A number, or a vector, in float64."""
        kind = value.raw.type
        if not isinstance(kind, ir.VectorType):
            return value if kind == DOUBLE else Value(self, self.b.fpext(value.raw, DOUBLE))
        if kind.element == DOUBLE:
            return value
        return Value(self, self.b.fpext(value.raw, ir.VectorType(DOUBLE, kind.count)))

    def call(self, name: str, *values: Value) -> Value:
        """An LLVM intrinsic of vectors of the compute type."""
        kind = values[0].raw.type
        name = f"llvm.{name}.v{kind.count}f{self.bits}"
        module = self.b.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(kind, [kind] * len(values)), name)
        return Value(self, self.b.call(function, [v.raw for v in values]))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a*b + c, fused where the machine can."""
        return self.call("fmuladd", a, b, c)

    def pick(self, flag: Value, a: Value, b: Any) -> Value:
        """A where the int64 flag is not 0, else b."""
        b = b if isinstance(b, Value) else self.full(b)
        return Value(self, self.b.select(self.truth(flag).raw, a.raw, b.raw))

    def select(self, mask: Value, a: Any, b: Any) -> Value:
        a, b = (x if isinstance(x, Value) else (self.full(x)) for x in (a, b))
        return Value(self, self.b.select(mask.raw, a.raw, b.raw))

    def drop(self, mask: Value, a: Value) -> Value:
        return self.select(mask, 0.0, a)

    def keep(self, mask: Value, a: Any) -> Value:
        return self.select(mask, a, 0.0)

    def max(self, a: Value, b: Value) -> Value:
        """Of two the larger; b if either is NaN."""
        return self.select(a > b, a, b)

    def abs(self, a: Value) -> Value:
        return self.call("fabs", a)

    def as_words(self, a: Value) -> Value:
        return Value(self, self.b.bitcast(a.raw, self.words))

    def as_reals(self, a: Value) -> Value:
        return Value(self, self.b.bitcast(a.raw, self.vector))

    def any(self, mask: Value) -> Value:
        return Value(self, self.b.icmp_unsigned("!=", self.as_bits(mask).raw, ir.Constant(INT64, 0)))

    def as_bits(self, mask: Value) -> Value:
        """A mask's lanes as the lowest bits of an int64."""
        bits = self.b.bitcast(mask.raw, ir.IntType(mask.raw.type.count))
        return Value(self, self.b.zext(bits, INT64))

    def first_bit(self, bits: Value) -> Value:
        """The place of the lowest bit of an int64 that is not 0."""
        return Value(self, self.b.cttz(bits.raw, ir.Constant(BIT, 1)))

    def fold(self, a: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """One number of a vector, halves combined in turn."""
        n = a.raw.type.count
        while n > 1:
            n //= 2
            empty = ir.Constant(a.raw.type, ir.Undefined)
            low, high = ([ir.Constant(INT32, i) for i in range(s, s + n)] for s in (0, n))
            kind = ir.VectorType(INT32, n)
            halves = [self.b.shuffle_vector(a.raw, empty, ir.Constant(kind, half)) for half in (low, high)]
            a = combine(Value(self, halves[0]), Value(self, halves[1]))
        return Value(self, self.b.extract_element(a.raw, ir.Constant(INT32, 0)))

    def sum(self, a: Value) -> Value:
        """The sum of the lanes, in float64."""
        return self.fold(self.wide(a), lambda x, y: x + y)

    # memory

    def place(self, address: Value, kind: Any) -> Any:
        return self.b.inttoptr(address.raw, kind.as_pointer())

    def load(self, address: Value, kind: Any = None) -> Value:
        return Value(self, self.b.load(self.place(address, kind or self.vector), align=1))

    def store(self, address: Value, value: Value) -> None:
        self.b.store(value.raw, self.place(address, value.raw.type), align=1)

    def room(self, n: int) -> Value:
        """The address of memory for n values, on the stack."""
        slot = cgutils.alloca_once(self.b, ir.ArrayType(self.real, n))
        return Value(self, self.b.ptrtoint(slot, INT64))

    # control

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int = 1) -> Iterator[Value]:
        """A loop over range(start, stop, step), of int64."""
        start, stop = (x.raw if isinstance(x, Value) else ir.Constant(INT64, x) for x in (start, stop))
        with cgutils.for_range_slice(self.b, start, stop, ir.Constant(INT64, step), INT64) as (i, _):
            yield Value(self, i)

    @contextmanager
    def when(self, condition: Value, likely: bool | None = None) -> Iterator[None]:
        with self.b.if_then(condition.raw, likely):
            yield

    def truth(self, flag: Value) -> Value:
        """A condition of an int64: whether it is not 0."""
        return Value(self, self.b.icmp_signed("!=", flag.raw, ir.Constant(flag.raw.type, 0)))

    def give(self, value: Value) -> None:
        """Return from the function."""
        self.b.ret(value.raw)

    def variable(self, value: Value) -> Variable:
        return Variable(self, value)


class Variable:
    """A place for a value that changes in a loop; LLVM keeps it in a register."""

    def __init__(self, kit: Kit, value: Value) -> None:
        self.kit = kit
        self.slot = cgutils.alloca_once(kit.b, value.raw.type)
        self.set(value)

    def set(self, value: Value) -> None:
        self.kit.b.store(value.raw, self.slot)

    def get(self) -> Value:
        return Value(self.kit, self.kit.b.load(self.slot))


class Total:
    """A sum of vectors that keeps what its additions lose (two-sum), so that no chain of roundings grows."""

    def __init__(self, kit: Kit) -> None:
        self.kit, self.sum, self.lost = kit, kit.variable(kit.full(0.0)), kit.variable(kit.full(0.0))

    def add(self, term: Value) -> None:
        total, lost = added(self.sum.get(), self.lost.get(), term)
        self.sum.set(total)
        self.lost.set(lost)

    def number(self) -> Value:
        """The sum of all lanes; of an infinite sum what is lost is NaN, and the plain sum right."""
        return self.kit.sum(with_lost(self.kit, self.sum.get(), self.lost.get()))


def added(total: Value, lost: Value, term: Value) -> tuple[Value, Value]:
    """The sum of total and term, and what was lost so far."""
    following = total + term
    part = following - total
    return following, lost + ((total - (following - part)) + (term - part))


def with_lost(kit: Kit, total: Value, lost: Value) -> Value:
    both = total + lost
    return kit.select(both.equals(both), both, total)
