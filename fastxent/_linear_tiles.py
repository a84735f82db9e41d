"""A tile of logits, from a matrix product to sums or to a gradient: the three things an engine may do faster.

An engine that has them offers ``tile(plan)``, with the plans below; for one that has not, plain NumPy does the same
here. Rows of a tile are hidden states, columns are consecutive classes. What is known of a row so far is its state,
`STATE` float64 numbers that each tile of classes is merged into; the state of a row that has met no class yet is
that of `new_state`.

State, by column (logits are in the units in which `_arguments.Plan` has them, z where `bent`, else x):
MAX the largest logit; REST the sum of exp(z - max z) without one maximum; TARGET the target's logit; for sums,
DOT the sum of coefficient * (max - logit) and MASS the sum of the coefficients; for scores, MOMENT the sum of
exp(z - max z) (max z - z), RANK, ARGMAX, GIVEN_MAX the largest x, and GIVEN_TARGET, which the caller has filled in: the
target's x, which the tile's own entry is made equal to, so that all of a row's statistics are of the same logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _backends
from ._options import (
    COEFFICIENTS_CLASS_WEIGHT,
    COEFFICIENTS_NONE,
    TILE_GRADIENT,
    TILE_SCORES,
)

Array = NDArray[Any]

STATE = 8
MAX, REST, TARGET, DOT, MASS, ARGMAX, GIVEN_MAX, GIVEN_TARGET = range(STATE)
MOMENT, RANK = DOT, MASS
TERMS = 4
TERM_MAX, TERM_FACTOR, TERM_SPREAD, TERM_VALUE = range(TERMS)

_BLOCK = 1 << 17  # elements that the plain form takes at once


class TilePlan(NamedTuple):
    """One tile. A compiled engine reads it by position; a test compares the order of the fields."""

    operation: int  # a TILE_* code
    tile: Array  # (rows, classes) of float32 or float64, each row contiguous; TILE_GRADIENT and `bias` write into it
    first: int  # which class the tile's first column is
    targets: Array  # int64 (rows,), contiguous: among all classes, checked
    bias: Any  # of the tile's dtype (classes,), contiguous: added to the tile before all else; None in TILE_GRADIENT
    class_weight: Any  # of the tile's dtype (classes,), contiguous, or None
    coefficients: int  # a COEFFICIENTS_* code: of the classes in DOT and MASS, or times the spread in a gradient
    logit_scale: float
    softcap: float  # 0: none
    state: Any  # float64 (rows, STATE), contiguous: merged into; None in TILE_GRADIENT
    top: Any  # float64 (rows,), contiguous: written, the tile's own MAX; or None
    terms: Any  # of the tile's dtype (rows, TERMS), contiguous, for TILE_GRADIENT
    num_threads: int


def bent(logit_scale: float, softcap: float) -> bool:
    """Whether z is formed before anything else; otherwise `logit_scale` multiplies differences of x."""
    return softcap > 0.0 or logit_scale < 1e-30


def new_state(rows: int) -> Array:
    """The states of rows before their first tile."""
    state = np.zeros((rows, STATE))
    state[:, [MAX, TARGET, GIVEN_MAX]] = -np.inf
    return state


def run(plan: TilePlan) -> None:
    """Do one tile, by the engine in use if it can.

    TILE_SUMS and TILE_SCORES merge the tile into the state. TILE_GRADIENT writes, over the tile,
    (factor * exp(z - max z) - spread * coefficient) * dz/dx, without the last factor unless `bent`, and value * dz/dx
    at the target's class.
    """
    engine = _backends.chosen()
    if hasattr(engine, "tile"):
        engine.tile(plan)
    else:
        numpy_tile(plan)


def numpy_tile(plan: TilePlan) -> None:
    """The same in plain NumPy, for engines without tiles."""
    rows, classes = plan.tile.shape
    step = max(1, _BLOCK // max(classes, 1))
    work = _gradient if plan.operation == TILE_GRADIENT else _merge
    with np.errstate(all="ignore"):
        for begin in range(0, rows, step):
            work(plan, slice(begin, min(begin + step, rows)))


def _bend(plan: TilePlan, x: Array) -> tuple[Array, Any]:
    """Logits as a state has them, and dz/dx (1 unless `bent`)."""
    if not bent(plan.logit_scale, plan.softcap):
        return x, 1
    infinite = np.isinf(x)
    if plan.softcap <= 0:
        return np.where(infinite, x, x * x.dtype.type(plan.logit_scale)), plan.logit_scale
    inside = np.tanh(x * x.dtype.type(plan.logit_scale / plan.softcap))
    z = np.where(infinite, x, x.dtype.type(plan.softcap) * inside)
    return z, np.where(infinite, plan.logit_scale, plan.logit_scale * ((1 - inside) * (1 + inside))).astype(x.dtype)


def _scale(plan: TilePlan) -> float:
    return 1.0 if bent(plan.logit_scale, plan.softcap) else plan.logit_scale


def _coefficients(plan: TilePlan, dtype: Any) -> Any:
    return plan.class_weight if plan.coefficients == COEFFICIENTS_CLASS_WEIGHT else dtype.type(1)


def _here(plan: TilePlan, rows: slice) -> tuple[Array, Array]:
    """The rows (counted from the first of `rows`) whose targets are in this tile, and where."""
    local = plan.targets[rows] - plan.first
    found = np.flatnonzero((local >= 0) & (local < plan.tile.shape[1]))
    return found, local[found]


def _gradient(plan: TilePlan, rows: slice) -> None:
    x, terms = plan.tile[rows], plan.terms[rows]
    top, factor, spread, value = (terms[:, k : k + 1] for k in range(TERMS))
    z, slope = _bend(plan, x)
    y = factor * np.exp((z - top) * x.dtype.type(_scale(plan)))
    if plan.coefficients != COEFFICIENTS_NONE:
        y -= spread * _coefficients(plan, x.dtype)
    found, local = _here(plan, rows)
    y[found, local] = value[found, 0]
    np.multiply(y, slope, out=x, casting="same_kind")


def _merge(plan: TilePlan, rows: slice) -> None:
    x, state, scale = plan.tile[rows], plan.state[rows], _scale(plan)
    if plan.bias is not None:
        x += plan.bias
    found, local = _here(plan, rows)
    if plan.operation == TILE_SCORES:
        x[found, local] = state[found, GIVEN_TARGET]
        _merge_order(plan, x, state, plan.targets[rows] - plan.first)
    z, _ = _bend(plan, x)
    state[found, TARGET] = z[found, local]
    place = np.argmax(np.where(np.isnan(z), -np.inf, z), axis=1)[:, None]
    top = np.fmax(np.take_along_axis(z, place, axis=1), -np.inf).astype(np.float64)
    if plan.top is not None:
        plan.top[rows] = top[:, 0]
    below = (z - np.where(np.isinf(top), 0, top).astype(z.dtype)) * z.dtype.type(scale)
    e = np.exp(below)
    e[np.isposinf(z)] = 0  # beside +inf only a NaN counts
    np.put_along_axis(e, place, np.where(np.isnan(np.take_along_axis(z, place, axis=1)), np.nan, 0), axis=1)
    rest = e.sum(axis=1, dtype=np.float64)
    dot, mass = np.zeros(len(x)), np.zeros(len(x))
    if plan.operation == TILE_SCORES:
        dot = np.where(e == 0, 0, -e * below).sum(axis=1, dtype=np.float64)
    elif plan.coefficients != COEFFICIENTS_NONE:
        c = np.broadcast_to(_coefficients(plan, x.dtype), x.shape)
        dot = np.where(c == 0, 0, c * (top.astype(x.dtype) - z)).sum(axis=1, dtype=np.float64)
        dot = np.where(np.isneginf(top[:, 0]), np.where((c != 0).any(axis=1), np.inf, 0), dot)
        mass = c.sum(axis=1, dtype=np.float64)
    merge_sums(state, top[:, 0], rest, dot, mass, scale, plan.operation == TILE_SCORES)


def merge_sums(state: Array, top: Array, rest: Array, dot: Array, mass: Array, scale: float, scores: bool) -> None:
    """Add a tile's own MAX, REST, DOT (MOMENT) and MASS to a state's. A side of nothing but -inf adds nothing."""
    m, s = state[:, MAX].copy(), state[:, REST].copy()
    up = np.maximum(m, top)
    fall, fall_tile = (np.where(np.isneginf(own), np.inf, scale * (up - own)) for own in (m, top))
    keep, keep_tile = np.exp(-fall), np.exp(-fall_tile)
    total = np.where(m >= top, s + (1 + rest) * keep_tile, rest + (1 + s) * keep)
    state[:, REST] = np.where(np.isposinf(up), np.where(np.isnan(s + rest), np.nan, 0), total)
    state[:, MAX] = up
    if scores:
        fall, fall_tile = np.where(np.isinf(fall), 0, fall), np.where(np.isinf(fall_tile), 0, fall_tile)
        state[:, MOMENT] = keep * (state[:, MOMENT] + fall * (1 + s)) + keep_tile * (dot + fall_tile * (1 + rest))
        return
    for own, weight in ((m, state[:, MASS]), (top, mass)):
        lift = (up - own) * weight
        state[:, DOT] += np.where(np.isfinite(lift), lift, 0)  # of -inf with a coefficient DOT is infinite already
    state[:, DOT] += dot
    state[:, MASS] += mass


def _merge_order(plan: TilePlan, x: Array, state: Array, local: Array) -> None:
    """RANK, ARGMAX and GIVEN_MAX, of the logits as they are given."""
    target = state[:, GIVEN_TARGET].astype(x.dtype)[:, None]
    before = np.arange(x.shape[1]) < local[:, None]
    state[:, RANK] += ((x > target) | ((x == target) & before)).sum(axis=1)
    place = np.argmax(np.where(np.isnan(x), -np.inf, x), axis=1)[:, None]
    top = np.take_along_axis(x, place, axis=1)[:, 0]
    better = top > state[:, GIVEN_MAX]
    state[better, GIVEN_MAX] = top[better]
    state[better, ARGMAX] = plan.first + place[better, 0]

