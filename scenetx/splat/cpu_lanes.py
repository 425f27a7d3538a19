"""Eight floats as one value inside numba kernels: an LLVM vector, so that a row of pixels stays in registers.

numba's own loops leave vectorising to LLVM, which then keeps sums over rows in memory and reloads every constant. Here
the vectors are written down; LLVM maps them to AVX, SSE or NEON. Arithmetic is elementwise and takes float32 scalars
too; comparisons give a mask.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN002, ANN201, ANN202, ANN204, ARG001
# mypy: disallow-untyped-defs=False, ignore-errors
from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

WIDTH = 8
_FLOAT, _INDEX = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_FLAGS = ("contract", "nsz")  # fused multiply-add; NaN and infinity stay what they are


class _Lanes(types.Type):
    def __init__(self):
        super().__init__(name="Lanes")


class _Mask(types.Type):
    def __init__(self):
        super().__init__(name="Mask")


lanes, mask = _Lanes(), _Mask()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VECTOR)


@register_model(_Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(ir.IntType(1), WIDTH))


def _shuffle(builder, a, b, places):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INDEX, len(places)), places))


def _vector(builder, value, kind):
    """The value as a vector: a scalar goes into every lane."""
    if kind == lanes:
        return value
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _INDEX(0))
    return _shuffle(builder, one, ir.Constant(_VECTOR, ir.Undefined), [0] * WIDTH)


def _fits(*kinds):
    return lanes in kinds and all(kind in (lanes, types.float32) for kind in kinds)


def _arithmetic(function, instruction):
    @intrinsic
    def both(typingctx, a, b):
        def codegen(context, builder, signature, values):
            left, right = (_vector(builder, *pair) for pair in zip(values, signature.args, strict=True))
            return getattr(builder, instruction)(left, right, flags=_FLAGS)

        return lanes(a, b), codegen

    @overload(function)
    def choose(a, b):
        return (lambda a, b: both(a, b)) if _fits(a, b) else None


def _comparison(function, sign):
    @intrinsic
    def both(typingctx, a, b):
        def codegen(context, builder, signature, values):
            left, right = (_vector(builder, *pair) for pair in zip(values, signature.args, strict=True))
            return builder.fcmp_ordered(sign, left, right)

        return mask(a, b), codegen

    @overload(function)
    def choose(a, b):
        return (lambda a, b: both(a, b)) if _fits(a, b) else None


for _function, _instruction in (
    (operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv"),
):  # fmt: skip
    _arithmetic(_function, _instruction)
for _function, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">=")):
    _comparison(_function, _sign)


@intrinsic
def _and(typingctx, a, b):
    def codegen(context, builder, signature, values):
        return builder.and_(*values)

    return mask(a, b), codegen


@overload(operator.and_)
def _and_masks(a, b):
    return (lambda a, b: _and(a, b)) if a == mask and b == mask else None


@intrinsic
def some(typingctx, condition):
    """Does the condition hold in any lane?"""

    def codegen(context, builder, signature, values):
        bits = ir.IntType(WIDTH)
        return builder.icmp_unsigned("!=", builder.bitcast(values[0], bits), bits(0))

    return types.boolean(condition), codegen


@intrinsic
def prefetch(typingctx, array, index):
    """Begin to bring ``array[index]`` to the nearest cache; never faults."""

    def codegen(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        at = builder.gep(data, [values[1]])
        kind = ir.FunctionType(ir.VoidType(), [at.type, _INDEX, _INDEX, _INDEX])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [at, _INDEX(0), _INDEX(3), _INDEX(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def where(typingctx, condition, yes, no):
    """Lane by lane: ``yes`` where the condition holds, else ``no``."""

    def codegen(context, builder, signature, values):
        picked = (_vector(builder, *pair) for pair in zip(values[1:], signature.args[1:], strict=True))
        return builder.select(values[0], *picked)

    return lanes(condition, yes, no), codegen


@intrinsic
def magnitude(typingctx, a):
    """The absolute value of each lane."""

    def codegen(context, builder, signature, values):
        fabs = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.fabs.v{WIDTH}f32"
        )
        return builder.call(fabs, values)

    return lanes(a), codegen


@intrinsic
def spread(typingctx, value):
    """A scalar in every lane."""

    def codegen(context, builder, signature, values):
        return _vector(builder, values[0], types.float32)

    return lanes(types.float32), codegen


@intrinsic
def lane_numbers(typingctx):
    """0, 1, 2, ..."""

    def codegen(context, builder, signature, values):
        return ir.Constant(_VECTOR, [float(lane) for lane in range(WIDTH)])

    return lanes(), codegen


def _address(context, builder, kind, array, index, vector):
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load(typingctx, array, index):
    """The lanes at ``array[index:]`` of a contiguous float32 array; nothing checks the bounds."""

    def codegen(context, builder, signature, values):
        at = _address(context, builder, signature.args[0], *values, _VECTOR)
        return builder.load(at, align=4)

    return lanes(array, types.int64), codegen


@intrinsic
def store(typingctx, array, index, value):
    """Write the lanes to ``array[index:]``."""

    def codegen(context, builder, signature, values):
        at = _address(context, builder, signature.args[0], values[0], values[1], _VECTOR)
        builder.store(values[2], at, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), codegen


@intrinsic
def store_sums(typingctx, array, index, a, b, c, d):
    """Write the sums over the lanes of four vectors to ``array[index:index + 4]``."""

    def codegen(context, builder, signature, values):
        def pairwise(x, y):  # within each half, as the hardware does it: x01 x23 y01 y23
            even, odd = [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]
            return builder.fadd(_shuffle(builder, x, y, even), _shuffle(builder, x, y, odd))

        halves = pairwise(pairwise(*values[2:4]), pairwise(*values[4:6]))
        low, high = (_shuffle(builder, halves, halves, list(range(at, at + 4))) for at in (0, 4))
        at = _address(context, builder, signature.args[0], values[0], values[1], ir.VectorType(_FLOAT, 4))
        builder.store(builder.fadd(low, high), at, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes, lanes, lanes, lanes), codegen
