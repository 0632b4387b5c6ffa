"""Symbolic numbers that record formulas as C++ statements.

An :class:`Expression` stands for one number. numpy's operators and elementwise functions act on it; each use adds a
statement to its :class:`Program`. As elements of a :class:`~riemannian_ode.compiled.components.ComponentArray`
they pass through the formulas of this package and record their program.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

# numpy's name to C++; {0} and {1} are variables or literals of type T. NaN propagates, as in numpy.
_NUMBERS = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "negative": "-{0}",
    "positive": "{0}",
    "absolute": "std::abs({0})",
    "square": "{0} * {0}",
    "reciprocal": "T(1) / {0}",
    "sqrt": "std::sqrt({0})",
    "sign": "{0} != {0} ? {0} : T({0} > 0) - T({0} < 0)",
    "maximum": "({0} > {1}) | ({0} != {0}) ? {0} : {1}",
    "minimum": "({0} < {1}) | ({0} != {0}) ? {0} : {1}",
}
_TRUTHS = {
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "isfinite": "{0} - {0} == 0",
    "isnan": "{0} != {0}",
    "logical_and": "{0} & {1}",
    "logical_or": "{0} | {1}",
    "logical_not": "!{0}",
}
_OF_TRUTHS = {"bitwise_and": "logical_and", "bitwise_or": "logical_or", "invert": "logical_not"}
# numpy name to C library name.
_LIBRARY = {
    **{name: name for name in ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan")},
    **{name: name for name in ("sinh", "cosh", "tanh", "cbrt", "hypot", "floor", "ceil", "trunc")},
    **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "tan2", "sinh", "cosh", "tanh")},
    "power": "pow",
}
_CIRCULAR = {"sin": "sine", "cos": "cosine"}  # in double: one function has both
_LARGEST_PRODUCT = 16  # largest exponent written as products


class UntraceableError(TypeError):
    """An operation that cannot be part of an elementwise program."""


class Program:
    """Statements in order, each a constant of type T or bool.

    Args:
        suffix: Suffix of the C library's functions for T: ``""`` for double, ``"f"`` for float.

    Attributes:
        statements: The statements.
        library: C library functions that they use.
        angles: Variables whose sine or cosine is taken together (:mod:`riemannian_ode.compiled.circular`).
    """

    def __init__(self, suffix: str = "") -> None:
        self.suffix = suffix
        self.statements: list[str] = []
        self.library: set[str] = set()
        self.angles: set[str] = set()
        self._known: dict[str, Expression] = {}

    def variable(self, code: str, *, is_truth: bool = False) -> Expression:
        """Name of a constant that holds ``code``; the same name for the same code."""
        if code not in self._known:
            self._known[code] = Expression(self, f"x{len(self.statements)}", is_truth)
            self.statements.append(f"const {'bool' if is_truth else 'T'} {self._known[code].name} = {code};")
        return self._known[code]

    def apply(self, function: str, *arguments: Any) -> Expression:
        """Apply the numpy function of that name.

        Raises:
            UntraceableError: for a function without a C++ counterpart here.
        """
        truths = [x.is_truth for x in arguments if isinstance(x, Expression)]
        if all(truths):
            function = _OF_TRUTHS.get(function, function)
        is_truth = function in _TRUTHS
        if any(truths) and not (is_truth or function == "multiply"):
            raise UntraceableError(f"numpy.{function} of truth values is not translated")
        if function == "power" and not isinstance(arguments[1], Expression):
            return self._power(*arguments)
        codes = [self.code(x) for x in arguments]
        if function in _LIBRARY:
            name = _LIBRARY[function] + self.suffix
            self.library.add(name)
            if name in _CIRCULAR:
                return self.variable(f"{self._circle(codes[0])}.{_CIRCULAR[name]}")
            return self.variable(f"{name}({', '.join(codes)})")
        template = _TRUTHS.get(function) or _NUMBERS.get(function)
        if template is None:
            raise UntraceableError(f"numpy.{function} has no counterpart in a compiled loop")
        return self.variable(template.format(*codes), is_truth=is_truth)

    def where(self, condition: Any, x: Any, y: Any) -> Expression:
        """numpy.where."""
        return self.variable(f"{self.code(condition)} ? {self.code(x)} : {self.code(y)}")

    def code(self, value: Any) -> str:
        """A variable's name, or a number as a literal."""
        if isinstance(value, Expression):
            return value.name
        number = float(value)
        if math.isfinite(number):
            return f"T({number!r})"
        limit = "quiet_NaN" if math.isnan(number) else "infinity"
        return f"({'-' if number < 0 else ''}std::numeric_limits<T>::{limit}())"

    def _circle(self, angle: str) -> str:
        """The variable with sine and cosine of an angle."""
        name = f"circle_{angle}"
        if angle not in self.angles:
            self.angles.add(angle)
            self.statements.append(f"const Circle {name} = circle<anywhere>({angle});")
        return name

    def _power(self, base: Expression, exponent: float) -> Expression:
        size = abs(float(exponent))
        if size == 0.5:
            result = self.apply("sqrt", base)
        elif size.is_integer() and 0 < size <= _LARGEST_PRODUCT:
            result = self._product(base, int(size))
        else:
            return self.apply("power", base, self.variable(self.code(exponent)))
        return self.apply("reciprocal", result) if exponent < 0 else result

    def _product(self, base: Expression, exponent: int) -> Expression:
        """base^exponent by repeated squaring."""
        if exponent == 1:
            return base
        half = self._product(base, exponent // 2)
        squared = self.apply("square", half)
        return self.apply("multiply", squared, base) if exponent % 2 else squared


class Expression(NDArrayOperatorsMixin):
    """A number or truth value that the program refers to by name.

    Args:
        program: Program that receives the statements for operations on it.
        name: Name of its variable.
        is_truth: Whether it is a truth value.
    """

    def __init__(self, program: Program, name: str, is_truth: bool) -> None:
        self.program, self.name, self.is_truth = program, name, is_truth

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options or any(isinstance(x, np.ndarray) for x in inputs):
            return NotImplemented  # component arrays apply it element by element
        return self.program.apply(ufunc.__name__, *inputs)

    def __bool__(self) -> bool:
        raise UntraceableError("the control flow of a compiled formula cannot depend on its numbers")
