"""Between memory of any dtype, stride and byte order and neighbouring values of the compute type.

Contiguous values of the common types go by vectors; for the rest one loop serves them all, which asks for the dtype of
every element. float16 and bfloat16 are moved as bits, as in ``src/half.h``: rounding is to nearest even, subnormals
included; every NaN becomes the quiet one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from .emission import INLINE, SMALL, built, emitted
from .vectors import BIT, DOUBLE, INT64, Kit, Value, constant

F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64 = range(12)
SIZES = (4, 8, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8)
FLOAT = ir.FloatType()


def _like(value: Value, element: Any) -> Any:
    """The type of as many elements as the value has."""
    kind = value.raw.type
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _cast(value: Value, element: Any) -> Value:
    return Value(value.kit, value.kit.b.bitcast(value.raw, _like(value, element)))


def widened(kit: Kit, bits: Value, dtype: int) -> Value:
    """float32 of the 16 bits of a float16 or bfloat16, given as int32."""
    if dtype == BF16:
        return _cast(bits << 16, FLOAT)
    sign, magnitude = (bits & 0x8000) << 16, bits & 0x7FFF
    # Moving the exponent by a product with 2^112 is exact and makes subnormals normal.
    finite = _cast(_cast(magnitude << 13, FLOAT) * 2.0**112, ir.IntType(32))
    special = (magnitude << 13) | 0x7F800000
    return _cast(sign | _chosen(magnitude >= 0x7C00, special, finite), FLOAT)


def _chosen(mask: Value, a: Value, b: Any) -> Value:
    b = b.raw if isinstance(b, Value) else constant(a.raw.type, b)
    return Value(a.kit, a.kit.b.select(mask.raw, a.raw, b))


def narrowed(kit: Kit, value: Value, dtype: int) -> Value:
    """The 16 bits of the nearest float16 or bfloat16, as int32."""
    bits = _cast(value, ir.IntType(32))
    if dtype == BF16:
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return _chosen(value.equals(value), rounded, 0x7FC0)
    sign, magnitude = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    normal = (magnitude + 0xFFF + ((magnitude >> 13) & 1) - 0x38000000) >> 13
    # Below 2^-14: adding 0.5 leaves the half's bits, rounded once, at the end of the float's mantissa.
    small = _cast(_cast(magnitude, FLOAT) + 0.5, ir.IntType(32)) - 0x3F000000
    half = _chosen(magnitude < 0x38800000, small, normal)
    half = _chosen(magnitude < 0x477FF000, half, 0x7C00)  # 65520 and up round to infinity
    return sign | _chosen(value.equals(value), half, 0x7E00)


def _read(kit: Kit, p: Value, dtype: int, swapped: Value) -> Value:
    """One element in the compute type, or an integer as int64."""
    b, kind = kit.b, ir.IntType(8 * SIZES[dtype])
    raw = kit.load(p, kind).raw
    if SIZES[dtype] > 1:
        raw = b.select(kit.truth(swapped).raw, b.bswap(raw), raw)
    if dtype in (F16, BF16):
        value = widened(kit, Value(kit, b.zext(raw, ir.IntType(32))), dtype)
    elif dtype in (F32, F64):
        value = Value(kit, b.bitcast(raw, FLOAT if dtype == F32 else DOUBLE))
    else:
        value = Value(kit, (b.sitofp if dtype < U8 else b.uitofp)(raw, kit.real))
    wide = value.raw.type == DOUBLE
    if wide == (not kit.single):
        return value
    return Value(kit, b.fptrunc(value.raw, kit.real) if wide else b.fpext(value.raw, kit.real))


def _each(kit: Kit, n: Value, body: Callable[[Value], None]) -> None:
    """body(i) for each of n."""
    with kit.loop(0, n) as i:
        body(i)


def _by_vectors(kit: Kit, n: Value, body: Callable[[Value, bool], None]) -> None:
    """body(i, True) for whole vectors, body(i, False) for what is left of n elements."""
    whole = n & -kit.lanes
    with kit.loop(0, whole, kit.lanes) as i:
        body(i, True)
    with kit.loop(whole, n) as i:
        body(i, False)


@emitted("iiiiii", traits=SMALL)
def fetch_any(kit: Kit, to: Value, p: Value, dtype: Value, swapped: Value, stride: Value, n: Value) -> None:
    """As `fetch`, of whatever dtype."""

    def one(i: Value) -> None:
        at = p + i * stride
        for code in range(len(SIZES)):
            with kit.when(dtype.equals(code)):
                kit.store(to + i * kit.size, _read(kit, at, code, swapped))

    _each(kit, n, one)


@emitted("iiiiii")
def fetch(kit: Kit, to: Value, p: Value, dtype: Value, swapped: Value, stride: Value, n: Value) -> None:
    """N elements to neighbouring values of the compute type."""
    own = F32 if kit.single else F64
    native = swapped.equals(0)
    for code in (own, F16, BF16) if kit.single else (own,):
        with kit.when(dtype.equals(code) & native & stride.equals(SIZES[code])):

            def move(i: Value, vector: bool, code: int = code) -> None:
                at, slot = p + i * SIZES[code], to + i * kit.size
                if code == own:
                    kit.store(slot, kit.load(at, kit.vector if vector else kit.real))
                    return
                kind = ir.VectorType(ir.IntType(16), kit.lanes) if vector else ir.IntType(16)
                bits = Value(kit, kit.b.zext(kit.load(at, kind).raw, kit.words if vector else kit.word))
                kit.store(slot, widened(kit, bits, code))

            _by_vectors(kit, n, move)
            kit.b.ret_void()
    with kit.when(dtype.equals(own) & native):
        _each(kit, n, lambda i: kit.store(to + i * kit.size, kit.load(p + i * stride, kit.real)))
        kit.b.ret_void()

    kit.b.call(built(fetch_any, kit.b.module, kit.single), [v.raw for v in (to, p, dtype, swapped, stride, n)])


@emitted("iiiii")
def emit(kit: Kit, to: Value, dtype: Value, stride: Value, p: Value, n: Value) -> None:
    """N neighbouring values of the compute type to memory of a floating dtype."""
    own = F32 if kit.single else F64

    def stored(at: Value, slot: Value, code: int, vector: bool) -> None:
        value = kit.load(at, kit.vector if vector else kit.real)
        if code in (F16, BF16):
            bits = narrowed(kit, value, code).raw
            kind = ir.VectorType(ir.IntType(16), kit.lanes) if vector else ir.IntType(16)
            value = Value(kit, kit.b.trunc(bits, kind))
        elif code != own:
            value = kit.wide(value)
        kit.store(slot, value)

    for code in (F32, F64, F16, BF16) if kit.single else (F64,):

        def one(i: Value, vector: bool, code: int = code, step: Any = SIZES[code]) -> None:
            stored(p + i * kit.size, to + i * step, code, vector)

        def apart(i: Value, code: int = code) -> None:
            stored(p + i * kit.size, to + i * stride, code, False)

        with kit.when(dtype.equals(code)):
            with kit.when(stride.equals(SIZES[code])):
                _by_vectors(kit, n, one)
                kit.b.ret_void()
            _each(kit, n, apart)
            kit.b.ret_void()


@emitted("iiiii", traits=SMALL)
def read_any_indices(kit: Kit, to: Value, p: Value, dtype: Value, step: Value, n: Value) -> None:
    """As `read_indices`, of whatever type."""

    def one(i: Value) -> None:
        for code in (I64, I32, I8, I16, U8, U16, U32, U64):
            with kit.when(dtype.equals(code)):
                raw = kit.load(p + i * step, ir.IntType(8 * SIZES[code])).raw
                if SIZES[code] < 8:
                    raw = (kit.b.sext if code < U8 else kit.b.zext)(raw, INT64)
                kit.store(to + i * 8, Value(kit, raw))

    _each(kit, n, one)


@emitted("iiiii")
def read_indices(kit: Kit, to: Value, p: Value, dtype: Value, step: Value, n: Value) -> None:
    """Class indices, n of them, to int64; an uint64 keeps its bits."""
    for code in (I64, I32):
        with kit.when(dtype.equals(code) & step.equals(SIZES[code])):
            few, many = ir.IntType(8 * SIZES[code]), ir.VectorType(ir.IntType(8 * SIZES[code]), 8)
            whole = n & -8
            for start, stop, by, kind in ((kit.number(0), whole, 8, many), (whole, n, 1, few)):
                with kit.loop(start, stop, by) as i:
                    raw = kit.load(p + i * SIZES[code], kind).raw
                    if code == I32:
                        raw = kit.b.sext(raw, ir.VectorType(INT64, 8) if by == 8 else INT64)
                    kit.store(to + i * 8, Value(kit, raw))
            kit.b.ret_void()
    kit.b.call(built(read_any_indices, kit.b.module, kit.single), [v.raw for v in (to, p, dtype, step, n)])


@emitted("iiiii", "i")
def all_inside(kit: Kit, p: Value, n: Value, classes: Value, ignoring: Value, ignore: Value) -> Value:
    """Whether all n class indices (with room for 8) are in range, and none is the one that is ignored."""
    kind = ir.VectorType(INT64, 8)
    outside = kit.variable(Value(kit, ir.Constant(ir.VectorType(BIT, 8), [0] * 8)))
    first = Value(kit, ir.Constant(kind, list(range(8))))

    def spread(v: Value) -> Value:
        raw = kit.b.insert_element(ir.Constant(kind, ir.Undefined), v.raw, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
        return Value(kit, kit.b.shuffle_vector(raw, ir.Constant(kind, ir.Undefined), zeros))

    limit, never, end = spread(classes), spread(ignore), spread(n)
    heeded = Value(kit, kit.b.trunc(spread(ignoring).raw, ir.VectorType(BIT, 8)))
    with kit.loop(0, n, 8) as i:
        v = kit.load(p + i * 8, kind)
        wrong = Value(kit, kit.b.icmp_unsigned(">=", v.raw, limit.raw)) | (v.equals(never) & heeded)
        outside.set(outside.get() | (wrong & (first + spread(i) < end)))
    return Value(kit, kit.b.zext(kit.as_bits(outside.get()).equals(0).raw, INT64))


@emitted("iiiiii")
def transpose(kit: Kit, to: Value, line: Value, p: Value, step: Value, rows: Value, columns: Value) -> None:
    """Rows at p, `step` bytes apart, of so many columns, to lines at `to`, `line` bytes apart: one a column.

    Squares of as many as a vector has lanes go through registers: in log2 lanes rounds vectors swap every other
    element, then every other two ...
    """
    lanes, size = kit.lanes, kit.size
    whole_rows, whole_columns = rows & -lanes, columns & -lanes

    def swapped(a: Value, b: Value, by: int) -> tuple[Value, Value]:
        low = [i if not i & by else lanes + i - by for i in range(lanes)]
        high = [i + by if not i & by else lanes + i for i in range(lanes)]
        kind = ir.VectorType(ir.IntType(32), lanes)
        made = [kit.b.shuffle_vector(a.raw, b.raw, ir.Constant(kind, mask)) for mask in (low, high)]
        return Value(kit, made[0]), Value(kit, made[1])

    with kit.loop(0, whole_rows, lanes) as r, kit.loop(0, whole_columns, lanes) as c:
        vectors = [kit.load(p + (r + i) * step + c * size) for i in range(lanes)]
        by = 1
        while by < lanes:
            for i in range(lanes):
                if not i & by:
                    vectors[i], vectors[i + by] = swapped(vectors[i], vectors[i + by], by)
            by *= 2
        for i, v in enumerate(vectors):
            kit.store(to + (c + i) * line + r * size, v)

    def one(r: Value, c: Value) -> None:
        kit.store(to + c * line + r * size, kit.load(p + r * step + c * size, kit.real))

    with kit.loop(whole_columns, columns) as c, kit.loop(0, whole_rows) as r:
        one(r, c)
    with kit.loop(whole_rows, rows) as r, kit.loop(0, columns) as c:
        one(r, c)


@emitted("iiii")
def gather(kit: Kit, to: Value, p: Value, distance: Value, n: Value) -> None:
    """N values that lie `distance` bytes apart, to neighbours."""
    _each(kit, n, lambda i: kit.store(to + i * kit.size, kit.load(p + i * distance, kit.real)))


@emitted("iiii")
def scatter(kit: Kit, to: Value, distance: Value, p: Value, n: Value) -> None:
    """N neighbouring values to places `distance` bytes apart."""
    _each(kit, n, lambda i: kit.store(to + i * distance, kit.load(p + i * kit.size, kit.real)))


@emitted("iir")
def fill(kit: Kit, to: Value, n: Value, value: Value) -> None:
    """N times the same value; a last vector is written in full."""
    v = kit.full(value)
    with kit.loop(0, n, kit.lanes) as i:
        kit.store(to + i * kit.size, v)


@emitted("ii")
def zero_bytes(kit: Kit, to: Value, n: Value) -> None:
    """N zero bytes."""
    whole = n & -64
    nothing = Value(kit, constant(ir.VectorType(INT64, 8), 0))
    with kit.loop(0, whole, 64) as i:
        kit.store(to + i, nothing)
    with kit.loop(whole, n) as i:
        kit.store(to + i, Value(kit, ir.Constant(ir.IntType(8), 0)))


@emitted("i", "r", traits=INLINE)
def get(kit: Kit, p: Value) -> Value:
    """A value of the compute type."""
    return kit.load(p, kit.real)


@emitted("ir", traits=INLINE)
def put(kit: Kit, p: Value, value: Value) -> None:
    kit.store(p, value)


@emitted("i", "d", traits=INLINE)
def get_double(kit: Kit, p: Value) -> Value:
    return kit.load(p, DOUBLE)


@emitted("id", traits=INLINE)
def put_double(kit: Kit, p: Value, value: Value) -> None:
    kit.store(p, value)


@emitted("i", "i", traits=INLINE)
def get_integer(kit: Kit, p: Value) -> Value:
    return kit.load(p, INT64)


@emitted("ii", traits=INLINE)
def put_integer(kit: Kit, p: Value, value: Value) -> None:
    kit.store(p, value)


@emitted("i", "i", traits=INLINE)
def get_byte(kit: Kit, p: Value) -> Value:
    return Value(kit, kit.b.zext(kit.load(p, ir.IntType(8)).raw, INT64))


@emitted("", "i", traits=INLINE)
def get_size(kit: Kit) -> Value:
    """Bytes of a value of the compute type."""
    return kit.number(kit.size)


@emitted("iii")
def convert(kit: Kit, to: Value, p: Value, n: Value) -> None:
    """N float64 to the compute type; a last vector in full."""
    kind = ir.VectorType(DOUBLE, kit.lanes)
    with kit.loop(0, n, kit.lanes) as i:
        raw = kit.load(p + i * 8, kind).raw
        kit.store(to + i * kit.size, Value(kit, kit.b.fptrunc(raw, kit.vector) if kit.single else raw))


@emitted("iir")
def times(kit: Kit, p: Value, n: Value, factor: Value) -> None:
    """N neighbours, multiplied by a number; a last vector in full."""
    by = kit.full(factor)
    with kit.loop(0, n, kit.lanes) as i:
        kit.store(p + i * kit.size, kit.load(p + i * kit.size) * by)


@emitted("ii", "i")
def has_nan(kit: Kit, p: Value, n: Value) -> Value:
    """Whether there is a NaN among n neighbours."""
    with kit.loop(0, n) as i:
        v = kit.load(p + i * kit.size, kit.real)
        with kit.when(Value(kit, kit.b.fcmp_unordered("uno", v.raw, v.raw))):
            kit.give(kit.number(1))
    return kit.number(0)
