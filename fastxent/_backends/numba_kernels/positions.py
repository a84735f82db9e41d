"""Positions: which are valid, with which target and weight. The siblings of ``src/kernels/positions.inl``.

A block is cut into runs: neighbours on one line of the innermost axis, so that every operand is a base address and a
step. Index and validity are read once, checked, and used from a private copy: an array that another thread changes
meanwhile cannot lead outside memory.
"""

from __future__ import annotations

from .emission import INLINE
from .language import kernel
from .layout import (
    BASE,
    BLOCKS,
    BLOCKS_OF_A_SUM,
    CLASS_WEIGHT,
    CLASSES,
    CLOSED,
    COUNT,
    DATA,
    DTYPE,
    FIRST,
    FOCAL,
    HAS_IGNORE,
    HEADER,
    IGNORE,
    INDEX,
    LENGTH,
    LENGTHS,
    LINES,
    MASK,
    ND,
    OPERANDS,
    PARTIAL,
    PIECE,
    PIECES,
    POSITION_WEIGHT,
    POSITIONS,
    PROBS,
    SAMPLE,
    SCALE,
    SEQUENCE_SCALE,
    SHIFT,
    SLOPES,
    STEP,
    STRIDES,
    TARGET,
    UNIFORM_UPSTREAM,
    UPSTREAM,
    VALID,
    WEIGHT,
    Y,
)  # fmt: skip
from .memory import all_inside, get_byte, get_double, get_integer, put_double, read_indices


@kernel("i", INLINE)
def operand(tag, c, which, what):
    """A number of one operand."""
    return c[HEADER + c[ND] + which * (STRIDES + c[ND]) + what]


@kernel("ii")
def block_range(tag, c, block):
    """The first position of a block, and the one after its last."""
    line = c[HEADER + c[ND] - 1] if c[ND] else 1
    if c[PIECES] > 1:
        piece = block % c[PIECES] * c[PIECE]
        first = block // c[PIECES] * line + piece
        return first, first + min(line - piece, c[PIECE])
    first = block * c[LINES] * line
    return first, min(c[POSITIONS], first + c[LINES] * line)


@kernel()
def run_at(tag, c, r, first, end):
    """Fill `r` with the run that starts at flat position `first` and ends at `end` at the latest."""
    nd = c[ND]
    last = nd - 1
    r[FIRST] = first
    r[CLOSED] = 0
    for o in range(OPERANDS):
        at = HEADER + nd + o * (STRIDES + nd)
        r[BASE + o] = c[at + DATA]
        r[STEP + o] = c[at + STRIDES + last] if last >= 0 else 0
    outer, inner, line = first, 0, 1
    for d in range(last, -1, -1):
        i = outer % c[HEADER + d]
        outer //= c[HEADER + d]
        if d == last:
            inner, line = i, c[HEADER + d]
        if i:
            for o in range(OPERANDS):
                if r[BASE + o]:
                    r[BASE + o] += i * c[HEADER + nd + o * (STRIDES + nd) + STRIDES + d]
    r[COUNT] = min(line - inner, end - first)


@kernel("i", INLINE)
def place(tag, r, k):
    """The place in the run of valid position number k."""
    return r[INDEX + k] if r[CLOSED] else k


@kernel()
def close_up(tag, c, r, d):
    """Close up what read_positions left, to the valid positions alone."""
    weighted, uniform = operand(tag, c, WEIGHT, DATA) != 0, c[UNIFORM_UPSTREAM] != 0
    k = 0
    for i in range(r[COUNT]):
        if r[TARGET + i] < 0:
            continue
        r[INDEX + k] = i
        r[TARGET + k] = r[TARGET + i]
        if weighted:
            d[SAMPLE + k] = d[SAMPLE + i]
        if not uniform:
            d[SLOPES + k] = d[SLOPES + i]
        k += 1
    r[CLOSED] = 1


@kernel("di")
def read_positions(tag, c, f, r, d, with_upstream):
    """Targets (-1: invalid), weights and upstream of the run; returns its share of the divisor, and a bad position."""
    n, first, bad = r[COUNT], r[FIRST], -1
    classes, shift = c[CLASSES], c[SHIFT]
    indexed = c[PROBS] == 0 and r[BASE + Y] != 0
    live = n
    if c[LENGTHS] or shift:
        t, b = first % c[LENGTH], first // c[LENGTH]
        length = c[LENGTH]
        if c[LENGTHS]:
            length = min(length, get_integer(tag, c[LENGTHS] + 8 * b))
        live = max(0, min(n, length - shift - t))
    if indexed and live:
        y_step = r[STEP + Y]
        read_indices(
            tag, r + 8 * TARGET, r[BASE + Y] + shift * y_step, operand(tag, c, Y, DTYPE), y_step, live
        )
    else:
        for i in range(live):
            r[TARGET + i] = 0
    for i in range(live, n):
        r[TARGET + i] = -1

    mask, weight = r[BASE + MASK], r[BASE + WEIGHT]
    mask_step, weight_step = r[STEP + MASK], r[STEP + WEIGHT]
    ignoring, ignore = c[HAS_IGNORE] != 0 and indexed, c[IGNORE]
    plain = live == n and not mask and not weight
    if plain and (not indexed or all_inside(tag, r + 8 * TARGET, n, classes, ignoring, ignore)):
        r[VALID] = n
        put_upstream(tag, c, f, r, d, with_upstream)
        return divisor_of(tag, c, r, d, indexed), -1
    valid = 0
    for i in range(live):
        t = r[TARGET + i]
        ok = not (ignoring and t == ignore)
        if mask and get_byte(tag, mask + (i + shift) * mask_step) == 0:
            ok = False
        if weight:
            w = get_double(tag, weight + (i + shift) * weight_step)
            ok = ok and w != 0
            d[SAMPLE + i] = w if ok else 0.0
        if ok and (t < 0 or t >= classes):
            if bad < 0:
                bad = first + i
            ok = False
        if ok:
            valid += 1
        else:
            r[TARGET + i] = -1
    if weight:
        for i in range(live, n):
            d[SAMPLE + i] = 0.0
    r[VALID] = valid

    put_upstream(tag, c, f, r, d, with_upstream)
    return divisor_of(tag, c, r, d, indexed), bad


@kernel()
def put_upstream(tag, c, f, r, d, wanted):
    """The run's incoming gradients, where they are wanted and not all the same."""
    if not wanted or c[UNIFORM_UPSTREAM]:
        return
    up, up_step, first, weight = r[BASE + UPSTREAM], r[STEP + UPSTREAM], r[FIRST], r[BASE + WEIGHT]
    for i in range(r[COUNT]):
        u = f[SCALE]
        if c[SEQUENCE_SCALE]:
            u *= get_double(tag, c[SEQUENCE_SCALE] + 8 * ((first + i) // c[LENGTH]))
        if up:
            u *= get_double(tag, up + i * up_step)
        d[SLOPES + i] = u * d[SAMPLE + i] if weight else u


@kernel("d")
def divisor_of(tag, c, r, d, indexed):
    """The run's share of the divisor; each position's is kept where that is wanted."""
    share, weight = c[POSITION_WEIGHT], r[BASE + WEIGHT]
    classed = indexed and c[CLASS_WEIGHT] != 0 and not c[FOCAL]
    if not (weight or classed or share):
        return float(r[VALID])
    divisor, lost = 0.0, 0.0  # compensated: many equal weights would drift
    for i in range(r[COUNT]):
        t = r[TARGET + i]
        one = 0.0
        if t >= 0:
            one = d[SAMPLE + i] if weight else 1.0
            if classed:
                one *= get_double(tag, c[CLASS_WEIGHT] + 8 * t)
        together = divisor + one
        if abs(one) > abs(divisor):
            lost += (one - together) + divisor
        else:
            lost += (divisor - together) + one
        divisor = together
        if share:
            put_double(tag, share + 8 * (r[FIRST] + i), one)
    return divisor + lost if lost == lost else divisor


@kernel()
def put_block(tag, c, block, total: float, divisor: float, bad):
    """Add what a run of a block leaves to the sums that it belongs to, with compensation; their first bad position."""
    at = c[PARTIAL] + 40 * (block // c[BLOCKS_OF_A_SUM])
    add_to(tag, at, at + 24, total)
    add_to(tag, at + 8, at + 32, divisor)
    if bad >= 0 and get_double(tag, at + 16) == 0:
        put_double(tag, at + 16, float(bad + 1))


@kernel()
def add_to(tag, at, lost_at, term: float):
    """Add to the sum at one address, and to what it lost at another (Neumaier)."""
    total = get_double(tag, at)
    together = total + term
    big, small = total, term
    if abs(term) > abs(total):
        big, small = term, total
    put_double(tag, lost_at, get_double(tag, lost_at) + ((big - together) + small))
    put_double(tag, at, together)


@kernel()
def prepare_all(tag, c, f, r, d, s, start, stop):
    """Read only what describes targets: check indices, sum the divisor."""
    for block in range(start, min(stop, c[BLOCKS])):
        at, end = block_range(tag, c, block)
        while at < end:
            run_at(tag, c, r, at, end)
            share, wrong = read_positions(tag, c, f, r, d, False)
            put_block(tag, c, block, 0.0, share, wrong)
            at += r[COUNT]
