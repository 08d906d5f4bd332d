"""Vectors of float32 for numba kernels: what the compiler may not see how to vectorize, a kernel can write down.

A `Lanes` value is LANES neighbouring channels. It lives in registers, as wide as the processor has them, from one step
of a recurrence to the next; a loop over an array of channels would load and store it every time. Lanes add, subtract,
multiply and divide with lanes and with float32 scalars.
"""

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba.core import types
from numba.core.extending import models, register_model
from numba.extending import intrinsic, overload

LANES = 32
"""Channels in a vector: two registers of AVX-512, four of AVX2, eight of NEON."""

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR, _INTEGERS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_NAME = f"v{LANES}f32"
FAST = ("nnan", "ninf", "nsz", "contract", "reassoc")
"""LLVM's liberties with float arithmetic but those with reciprocals and functions: with an estimate, 1 / 1 is not 1 on
every CPU, and nothing could be proved of a square root. Sums in any order can be bounded."""


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


lanes_type = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: _LanesType) -> None:
        super().__init__(manager, lanes, _VECTOR)


def _splat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, first, ir.Constant(_INTEGERS, [0] * LANES))


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES)


def _llvm(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value, **options: Any) -> ir.Value:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments, **options)


@intrinsic
def full(typing_context, value):
    """The scalar in every lane."""

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[0])

    return lanes_type(types.float32), generate


def _pointer(context: Any, builder: ir.IRBuilder, array_type: types.Array, array: ir.Value, at: ir.Value) -> ir.Value:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _VECTOR.as_pointer())


def _below(builder: ir.IRBuilder, width: ir.Value) -> ir.Value:
    """A mask of the lanes whose number is below the width."""
    narrow = builder.trunc(width, _INT)
    first = builder.insert_element(ir.Constant(_INTEGERS, ir.Undefined), narrow, ir.Constant(_INT, 0))
    widths = builder.shuffle_vector(first, first, ir.Constant(_INTEGERS, [0] * LANES))
    return builder.icmp_signed("<", ir.Constant(_INTEGERS, list(range(LANES))), widths)


@intrinsic
def read_lanes(typing_context, array, at, width):
    """array[at : at + width] of a flat float32 array; lanes from width on are 0."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        whole = builder.icmp_signed("==", arguments[2], ir.Constant(arguments[2].type, LANES))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                loaded, from_whole = builder.load(pointer, align=4), builder.block
            with otherwise:
                mask = _below(builder, arguments[2])
                masked = _llvm(
                    builder,
                    f"llvm.masked.load.{_NAME}.p0",
                    _VECTOR,
                    *(pointer, ir.Constant(_INT, 4), mask, _constant(0.0)),
                )
                from_part = builder.block
        result = builder.phi(_VECTOR)
        result.add_incoming(loaded, from_whole)
        result.add_incoming(masked, from_part)
        return result

    return lanes_type(array, types.intp, types.intp), generate


@intrinsic
def write_lanes(typing_context, array, at, value, width):
    """array[at : at + width] = the first lanes of value."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        value, width = arguments[2:]
        whole = builder.icmp_signed("==", width, ir.Constant(width.type, LANES))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                builder.store(value, pointer, align=4)
            with otherwise:
                _llvm(
                    builder,
                    f"llvm.masked.store.{_NAME}.p0",
                    ir.VoidType(),
                    *(value, pointer, ir.Constant(_INT, 4), _below(builder, width)),
                )
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes_type, types.intp), generate


@intrinsic
def sum_lanes(typing_context, value):
    """The sum of all lanes, a float32."""

    def generate(context, builder, signature, arguments):
        zero = ir.Constant(_FLOAT, 0.0)
        return _llvm(builder, f"llvm.vector.reduce.fadd.{_NAME}", _FLOAT, zero, arguments[0], fastmath=FAST)

    return types.float32(lanes_type), generate


# What follows is for a float32 as well as for lanes, so that a formula is written once for both.


def _numbers(*kinds: types.Type) -> bool:
    return all(kind in (types.float32, lanes_type) for kind in kinds) and len(set(kinds)) == 1


def _intrinsic_name(stem: str, kind: types.Type) -> str:
    return f"llvm.{stem}.{_NAME if kind == lanes_type else 'f32'}"


@intrinsic
def magnitude(typing_context, value):
    """The absolute value."""

    def generate(context, builder, signature, arguments):
        return _llvm(builder, _intrinsic_name("fabs", value), arguments[0].type, arguments[0])

    return (value(value), generate) if _numbers(value) else None


@intrinsic
def truncated(typing_context, value):
    """The value without what follows its point, for values that an int32 can hold."""

    def generate(context, builder, signature, arguments):
        whole = builder.fptosi(arguments[0], _INTEGERS if value == lanes_type else _INT)
        return builder.sitofp(whole, arguments[0].type)

    return (value(value), generate) if _numbers(value) else None


@intrinsic
def at_least(typing_context, value, bound):
    """The larger of the value and the bound, a float32."""

    def generate(context, builder, signature, arguments):
        limit = _splat(builder, arguments[1]) if value == lanes_type else arguments[1]
        return builder.select(builder.fcmp_ordered(">", arguments[0], limit, flags=FAST), arguments[0], limit)

    return (value(value, types.float32), generate) if _numbers(value) else None


@intrinsic
def where_nonnegative(typing_context, value, a, b):
    """a where value >= 0, else b."""

    def generate(context, builder, signature, arguments):
        zero = ir.Constant(arguments[0].type, [0.0] * LANES if value == lanes_type else 0.0)
        return builder.select(builder.fcmp_ordered(">=", arguments[0], zero, flags=FAST), *arguments[1:])

    return (value(value, value, value), generate) if _numbers(value, a, b) else None


@intrinsic
def times_power_of_two(typing_context, value, exponent):
    """value * 2**exponent for a value near 1 and a whole exponent from -126 to 126, by its bits."""

    def generate(context, builder, signature, arguments):
        integers = _INTEGERS if value == lanes_type else _INT
        shift = ir.Constant(integers, [23] * LANES if value == lanes_type else 23)
        moved = builder.shl(builder.fptosi(arguments[1], integers), shift)
        return builder.bitcast(builder.add(builder.bitcast(arguments[0], integers), moved), arguments[0].type)

    return (value(value, value), generate) if _numbers(value, exponent) else None


def _arithmetic(name: str) -> Callable:
    @intrinsic
    def operation(typing_context, a, b):
        if lanes_type not in (a, b):
            return None

        def generate(context, builder, signature, arguments):
            vectors = (
                value if kind == lanes_type else _splat(builder, value)
                for kind, value in zip(signature.args, arguments)
            )
            return getattr(builder, name)(*vectors, flags=FAST)

        return lanes_type(*(kind if kind == lanes_type else types.float32 for kind in (a, b))), generate

    return operation


def _overload_operator(symbol: Callable, name: str) -> None:
    operation = _arithmetic(name)

    @overload(symbol, inline="always")
    def apply(a, b):
        if lanes_type in (a, b):
            return lambda a, b: operation(a, b)
        return None


for _symbol, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _overload_operator(_symbol, _name)
