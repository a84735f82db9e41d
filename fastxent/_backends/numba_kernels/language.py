"""Control flow for the kernels: plain Python functions of numbers, translated to LLVM.

`kernel` takes the subset of Python in which ``positions.py``, ``blocks.py`` and the rest are written: int64 and
float64 variables, arrays of them by address, if, for over range, while, return, and calls of other kernels and of
what `emitted` made. Numba would compile these functions as well, and did; but it optimises each one for itself and
then again inside of every caller, which took 17 seconds where this takes less than one. What Numba compiles is the
entry (`entries.py`).

Parameters are int64 (truth values and addresses too), or float64 where annotated `float`; those called c and r are
arrays of int64, f and d of float64. The first, `tag`, stands for the compute type and is not passed on. A variable
keeps the type of its first value.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .emission import Emitted, built
from .vectors import BIT, DOUBLE, INT64, Kit, Value

TRAITS = ("noinline", "optsize")
ARRAYS = {"c": INT64, "r": INT64, "f": DOUBLE, "d": DOUBLE}
COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
OPERATIONS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.FloorDiv: "sdiv", ast.Mod: "srem"}


def kernel(returns: str = "", traits: tuple[str, ...] = TRAITS) -> Callable[[Callable[..., Any]], Any]:
    """Translate a function; `returns` has a letter for each result, "i" or "d"."""

    def decorate(function: Callable[..., Any]) -> Emitted:
        parameters = list(inspect.signature(function).parameters.values())
        assert parameters[0].name == "tag", function
        letters = "".join("d" if p.annotation in ("float", float) else "i" for p in parameters[1:])

        def body(kit: Kit, *values: Value) -> Any:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
            names = [p.name for p in parameters[1:]]
            return Translation(kit, function, names, values, returns).run(tree)

        body.__name__, body.__module__, body.__doc__ = function.__name__, function.__module__, function.__doc__
        return Emitted(body, letters, returns, [p.name for p in parameters[1:]], traits)

    return decorate


class Translation:
    """One function on its way: its variables and the loops it is in."""

    def __init__(self, kit: Kit, function: Callable[..., Any], names: list[str], values: Any, returns: str) -> None:
        self.kit, self.b, self.returns = kit, kit.b, returns
        self.globals = function.__globals__
        self.slots: dict[str, Any] = {}
        self.loops: list[tuple[Any, Any]] = []  # where continue and break go
        for name, value in zip(names, values, strict=True):
            self.assign(name, value)

    def run(self, tree: Any) -> None:
        self.suite(tree.body)
        if not self.b.block.is_terminated:
            if self.returns:
                self.b.unreachable()
            else:
                self.b.ret_void()

    # statements

    def suite(self, statements: list[Any]) -> None:
        for statement in statements:
            if self.b.block.is_terminated:
                return
            getattr(self, "do_" + type(statement).__name__)(statement)

    def assign(self, name: str, value: Value) -> None:
        if value.raw.type == BIT:
            value = self.integer(value)
        if name not in self.slots:
            self.slots[name] = cgutils.alloca_once(self.b, value.raw.type, name=name)
        slot = self.slots[name]
        wanted = slot.allocated_type if hasattr(slot, "allocated_type") else slot.type.pointee
        self.b.store(self.coerced(value, wanted).raw, slot)

    def do_Expr(self, node: Any) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring is one
            self.value(node.value)

    def do_Assign(self, node: Any) -> None:
        target = node.targets[0]
        if isinstance(target, ast.Tuple):
            if isinstance(node.value, ast.Tuple):
                values = [self.value(v) for v in node.value.elts]
            else:
                values = self.several(node.value)
            for one, value in zip(target.elts, values, strict=True):
                self.assign(one.id, value)
        else:
            value = self.value(node.value)
            for target in node.targets:
                self.put(target, value)

    def do_AugAssign(self, node: Any) -> None:
        self.put(node.target, self.operate(type(node.op), self.value(node.target), self.value(node.value)))

    def put(self, target: Any, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.assign(target.id, value)
        else:
            kind = ARRAYS[target.value.id]
            self.kit.store(self.element(target), self.coerced(value, kind))

    def do_If(self, node: Any) -> None:
        with self.b.if_else(self.truth(self.value(node.test)).raw) as (then, otherwise):
            with then:
                self.suite(node.body)
            with otherwise:
                self.suite(node.orelse)

    def do_Return(self, node: Any) -> None:
        if node.value is None:
            self.b.ret_void()
            return
        parts = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        if len(self.returns) > 1 and len(parts) == 1:
            values = self.several(node.value)
        else:
            values = [self.value(part) for part in parts]
        kinds = [INT64 if letter == "i" else DOUBLE for letter in self.returns]
        values = [self.coerced(v, kind) for v, kind in zip(values, kinds, strict=True)]
        if len(values) == 1:
            self.b.ret(values[0].raw)
            return
        bundle = ir.Constant(self.b.function.function_type.return_type, ir.Undefined)
        for i, v in enumerate(values):
            bundle = self.b.insert_value(bundle, self.coerced(v, DOUBLE).raw, i)
        self.b.ret(bundle)

    def do_While(self, node: Any) -> None:
        self.loop(lambda: self.truth(self.value(node.test)), lambda: None, node.body)

    def do_For(self, node: Any) -> None:
        bounds = [self.value(a) for a in node.iter.args]
        start, stop = (self.kit.number(0), bounds[0]) if len(bounds) == 1 else bounds[:2]
        step = node.iter.args[2] if len(bounds) > 2 else None
        backwards = isinstance(step, ast.UnaryOp)
        by = bounds[2] if step is not None else self.kit.number(1)
        name = node.target.id
        self.assign(name, start)

        def more() -> Value:
            i = self.name(name)
            return i > stop if backwards else i < stop

        self.loop(more, lambda: self.assign(name, self.name(name) + by), node.body)

    def loop(self, more: Callable[[], Value], advance: Callable[[], None], statements: list[Any]) -> None:
        test, body, following, end = (self.b.append_basic_block(n) for n in ("test", "body", "next", "end"))
        self.b.branch(test)
        self.b.position_at_end(test)
        self.b.cbranch(more().raw, body, end)
        self.b.position_at_end(body)
        self.loops.append((following, end))
        self.suite(statements)
        self.loops.pop()
        if not self.b.block.is_terminated:
            self.b.branch(following)
        self.b.position_at_end(following)
        advance()
        self.b.branch(test)
        self.b.position_at_end(end)

    def do_Continue(self, node: Any) -> None:
        self.b.branch(self.loops[-1][0])

    def do_Break(self, node: Any) -> None:
        self.b.branch(self.loops[-1][1])

    # expressions

    def value(self, node: Any) -> Value:
        made: Value = getattr(self, "of_" + type(node).__name__)(node)
        return made

    def integer(self, value: Value) -> Value:
        return Value(self.kit, self.b.zext(value.raw, INT64)) if value.raw.type.width < 64 else value

    def coerced(self, value: Value, kind: Any) -> Value:
        """An int64, a float64 or a number of the compute type from any of them; never an integer from a fraction."""
        have = value.raw.type
        if have == kind:
            return value
        if isinstance(have, ir.IntType):
            value = self.integer(value)
            if kind == INT64:
                return value
            return Value(self.kit, self.b.sitofp(value.raw, kind))
        assert kind != INT64, "a fraction where an integer is wanted"
        return self.kit.wide(value) if kind == DOUBLE else Value(self.kit, self.b.fptrunc(value.raw, kind))

    def truth(self, value: Value) -> Value:
        if value.raw.type == BIT:
            return value
        if value.raw.type == DOUBLE:
            return Value(self.kit, self.b.fcmp_unordered("!=", value.raw, DOUBLE(0.0)))
        return Value(self.kit, self.b.icmp_signed("!=", value.raw, INT64(0)))

    def alike(self, a: Value, b: Value) -> tuple[Value, Value]:
        kind = DOUBLE if DOUBLE in (a.raw.type, b.raw.type) else INT64
        return self.coerced(a, kind), self.coerced(b, kind)

    def name(self, name: str) -> Value:
        if name in self.slots:
            return Value(self.kit, self.b.load(self.slots[name]))
        found = self.globals[name]
        return Value(self.kit, DOUBLE(found) if isinstance(found, float) else INT64(int(found)))

    def of_Name(self, node: Any) -> Value:
        return self.name(node.id)

    def of_Constant(self, node: Any) -> Value:
        return Value(self.kit, DOUBLE(node.value) if isinstance(node.value, float) else INT64(int(node.value)))

    def element(self, node: Any) -> Value:
        return self.name(node.value.id) + self.value(node.slice) * 8

    def of_Subscript(self, node: Any) -> Value:
        return self.kit.load(self.element(node), ARRAYS[node.value.id])

    def operate(self, operation: Any, a: Value, b: Value) -> Value:
        if operation is ast.Div:
            a, b = self.coerced(a, DOUBLE), self.coerced(b, DOUBLE)
            return a / b
        a, b = self.alike(a, b)
        name = OPERATIONS[operation]
        if a.raw.type == DOUBLE:
            name = "f" + name
        return Value(self.kit, getattr(self.b, name)(a.raw, b.raw))

    def of_BinOp(self, node: Any) -> Value:
        return self.operate(type(node.op), self.value(node.left), self.value(node.right))

    def of_UnaryOp(self, node: Any) -> Value:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            return Value(self.kit, self.b.not_(self.truth(value).raw))
        return Value(self.kit, self.b.fneg(value.raw) if value.raw.type == DOUBLE else self.b.neg(value.raw))

    def of_Compare(self, node: Any) -> Value:
        left, outcome = self.value(node.left), None
        for how, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.value(right_node)
            a, b = self.alike(left, right)
            symbol = COMPARISONS[type(how)]
            if a.raw.type != DOUBLE:
                raw = self.b.icmp_signed(symbol, a.raw, b.raw)
            elif symbol == "!=":
                raw = self.b.fcmp_unordered(symbol, a.raw, b.raw)
            else:
                raw = self.b.fcmp_ordered(symbol, a.raw, b.raw)
            outcome = raw if outcome is None else self.b.and_(outcome, raw)
            left = right
        return Value(self.kit, outcome)

    def of_BoolOp(self, node: Any) -> Value:
        """With Python's short cut: what is to the right is not looked at if it does not matter."""
        slot = cgutils.alloca_once(self.b, BIT)
        end = self.b.append_basic_block("decided")
        for i, part in enumerate(node.values):
            raw = self.truth(self.value(part)).raw
            self.b.store(raw, slot)
            if i + 1 == len(node.values):
                self.b.branch(end)
                break
            more = self.b.append_basic_block("or" if isinstance(node.op, ast.Or) else "and")
            self.b.cbranch(raw, *((end, more) if isinstance(node.op, ast.Or) else (more, end)))
            self.b.position_at_end(more)
        self.b.position_at_end(end)
        return Value(self.kit, self.b.load(slot))

    def of_IfExp(self, node: Any) -> Value:
        test = self.truth(self.value(node.test))
        blocks = [self.b.append_basic_block(n) for n in ("if", "else", "either")]
        self.b.cbranch(test.raw, blocks[0], blocks[1])
        made = []
        for block, part in zip(blocks, (node.body, node.orelse), strict=False):
            self.b.position_at_end(block)
            made.append((self.value(part), self.b.block))
        kind = DOUBLE if any(v.raw.type == DOUBLE for v, _ in made) else INT64
        for i, (v, block) in enumerate(made):
            self.b.position_at_end(block)
            made[i] = self.coerced(v, kind), block
            self.b.branch(blocks[2])
        self.b.position_at_end(blocks[2])
        phi = self.b.phi(kind)
        for v, block in made:
            phi.add_incoming(v.raw, block)
        return Value(self.kit, phi)

    def of_Call(self, node: Any) -> Value:
        name = node.func.id
        callee = self.globals.get(name)
        if isinstance(callee, Emitted):
            raw = self.call(callee, node)
            if callee.returns == "r":
                return self.kit.wide(Value(self.kit, raw))
            return Value(self.kit, raw)
        values = [self.value(a) for a in node.args]
        if name in ("min", "max"):
            a, b = self.alike(*values)
            return Value(self.kit, self.b.select((a < b if name == "min" else a > b).raw, a.raw, b.raw))
        if name == "abs":
            minus = 0 - values[0]
            return Value(self.kit, self.b.select((values[0] < 0).raw, minus.raw, values[0].raw))
        if name == "int":
            return Value(self.kit, self.b.fptosi(values[0].raw, INT64))
        if name == "float":
            return self.coerced(values[0], DOUBLE)
        raise TypeError(f"no translation of {name}")

    def several(self, node: Any) -> list[Value]:
        """The results of a call that has several."""
        callee = self.globals[node.func.id]
        raw = self.call(callee, node)
        values = [Value(self.kit, self.b.extract_value(raw, i)) for i in range(len(callee.returns))]
        return [
            Value(self.kit, self.b.fptosi(v.raw, INT64)) if letter == "i" else v
            for v, letter in zip(values, callee.returns, strict=True)
        ]

    def call(self, callee: Emitted, node: Any) -> Any:
        given = node.args[1:]  # without the tag
        made = built(callee, self.b.module, self.kit.single)
        values = [self.coerced(self.value(a), kind) for a, kind in zip(given, made.function_type.args, strict=True)]
        return self.b.call(made, [v.raw for v in values])
