"""Functions over vectors as LLVM functions: for kernels to call, and for Numba as intrinsics."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from .vectors import DOUBLE, INT64, Kit, Value

KINDS = {"i": (types.int64, INT64), "d": (types.float64, DOUBLE)}
INLINE = ("alwaysinline",)
SMALL = ("noinline", "minsize", "optsize")  # no loop of it is worth several versions


class Emitted:
    """A function over a `Kit` and values that emits instructions, and the types of its parameters and results."""

    def __init__(
        self, function: Callable[..., Any], arguments: str, returns: str, names: list[str], traits: tuple[str, ...]
    ) -> None:
        self.function, self.arguments, self.returns, self.names = function, arguments, returns, names
        self.traits = traits  # LLVM's names of attributes
        self.name = f"fastxent.{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self.intrinsic = _as_intrinsic(self)

    def types_of(self, single: bool) -> tuple[Any, list[Any]]:
        """LLVM's types of the result and of the parameters."""
        real = ir.FloatType() if single else DOUBLE
        kinds = [real if letter == "r" else KINDS[letter][1] for letter in self.arguments]
        if len(self.returns) > 1:
            return ir.ArrayType(DOUBLE, len(self.returns)), kinds
        if self.returns:
            return real if self.returns == "r" else KINDS[self.returns][1], kinds
        return ir.VoidType(), kinds


def emitted(
    arguments: str, returns: str = "", name: str = "", traits: tuple[str, ...] = ("noinline",)
) -> Callable[[Callable[..., Any]], Any]:
    """Make of a function over a `Kit` and values one that kernels can call, and (`intrinsic`) Numba.

    `arguments` and `returns`: a letter each, "i" for int64, "d" for float64, "r" for the compute type. Several results
    are float64. A function is compiled once, not for each of its callers, unless `traits` say otherwise.
    """

    def decorate(function: Callable[..., Any]) -> Emitted:
        if name:
            function.__name__ = name
        names = list(inspect.signature(function).parameters)[1:]
        assert len(names) == len(arguments), function
        return Emitted(function, arguments, returns, names, traits)

    return decorate


def _as_intrinsic(of: Emitted) -> Any:
    """The same for Numba: an intrinsic whose first argument is any number of the compute type."""

    def definition(context: Any, *given: Any) -> Any:
        tag = given[0]
        if tag not in (types.float32, types.float64):
            raise TypingError(f"fastxent computes in float32 and float64, not in {tag}")
        seen = [tag if letter == "r" else KINDS[letter][0] for letter in of.arguments]
        result: Any
        if not of.returns:
            result = types.void
        elif len(of.returns) == 1:
            result = tag if of.returns == "r" else KINDS[of.returns][0]
        else:
            result = types.UniTuple(types.float64, len(of.returns))

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            outcome = builder.call(built(of, builder.module, tag == types.float32), values[1:])
            return outcome if of.returns else context.get_dummy_value()

        return result(tag, *seen), generate

    definition.__name__, definition.__doc__ = of.function.__name__, of.function.__doc__
    names = ("context", "tag", *of.names)
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    definition.__signature__ = inspect.Signature(parameters)
    definition.__module__ = of.function.__module__
    return intrinsic(definition)


def built(of: Emitted, module: Any, single: bool) -> Any:
    """The LLVM function in a module, made if it is not there."""
    name = f"{of.name}.{'f32' if single else 'f64'}"
    made = module.globals.get(name)
    if made:
        return made
    result, kinds = of.types_of(single)
    made = ir.Function(module, ir.FunctionType(result, kinds), name)
    made.linkage = "linkonce_odr"
    for trait in of.traits:
        made.attributes.add(trait)
    made.attributes.add("nounwind")
    builder = ir.IRBuilder(made.append_basic_block("entry"))
    kit = Kit(builder, single)
    outcome = of.function(kit, *(Value(kit, raw) for raw in made.args))
    if builder.block.is_terminated:
        return made
    if not of.returns:
        builder.ret_void()
    elif len(of.returns) == 1:
        builder.ret(outcome.raw)
    else:
        bundle = ir.Constant(result, ir.Undefined)
        for i, value in enumerate(outcome):
            bundle = builder.insert_value(bundle, kit.wide(value).raw, i)
        builder.ret(bundle)
    return made
