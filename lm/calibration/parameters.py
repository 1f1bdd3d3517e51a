"""What the parameters of a calibrator may be: their types, shapes and ranges, checked when one is read from a file.

Shapes are checked against lists that the file holds, before any array is made: a number in a file allocates nothing.

Axes: C classes, K fitted classes (C, or 1 of 2).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.calibration.affine import EVERYTHING

Parameters = dict[str, Any]

_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)  # smaller ones are 0 where programs are compiled


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A number or an array of numbers.

    Attributes:
      shape: of numbers and of names of axes, "C" or "K"; () for a single number.
      low: the lowest allowed.
      high: the highest allowed.
      kind: "float" (32 bits), "double", "integer" or "bool".
      default: where a file lacks it; None: it may not.
    """

    shape: tuple[int | str, ...] = ()
    low: float = -_LARGEST
    high: float = _LARGEST
    kind: str = "float"
    default: Any = None

    def read(self, name: str, value: Any, axes: Mapping[str, int]) -> Any:
        """The parameter from JSON's types.

        Raises:
          ValueError: if it is something else.
        """
        shape = tuple(axes[length] if isinstance(length, str) else length for length in self.shape)
        _check_numbers(name, value, shape, self)
        if self.shape:
            return np.array(value, np.float32 if self.kind == "float" else self.kind)
        return {"float": np.float32, "double": float}.get(self.kind, lambda same: same)(value)


@dataclasses.dataclass(frozen=True)
class Curves:
    """A curve for each fitted class, each with a number of points of its own; rising edges or values in [0, 1].

    Attributes:
      rising: whether numbers must not fall.
    """

    rising: bool = False
    default: None = None

    def read(self, name: str, value: Any, axes: Mapping[str, int]) -> list[np.ndarray]:
        """As `Numbers.read`."""
        if not isinstance(value, list) or len(value) != axes["K"]:
            raise ValueError(f"{name} must be a list for each of {axes['K']} classes")
        curves = []
        for curve in value:
            if not isinstance(curve, list):
                raise ValueError(f"{name} must hold lists of numbers")
            curves.append(Numbers((len(curve),), 0.0, 1.0).read(name, curve, axes))
            if self.rising and (np.diff(curves[-1]) < 0).any():
                raise ValueError(f"{name} must not fall")
        return curves


Spec = Mapping[str, Numbers | Curves]

POSITIVE = Numbers(low=_SMALLEST)
FLAG = Numbers(kind="bool", default=False)
TEMPERATURE: Spec = {"temperature": POSITIVE, "converged": FLAG, "at_bound": FLAG}


def affine(scale: Numbers) -> Spec:
    """Parameters of W z + b, W being a diagonal or a matrix."""
    return {
        "scale": scale,
        "bias": Numbers(("C",)),
        "reach": Numbers(low=_SMALLEST, default=EVERYTHING),
        "converged": FLAG,
        "at_bound": FLAG,
    }


ONE_SCALE = affine(Numbers(("C",), low=_SMALLEST))
VECTOR = affine(Numbers(("C",)))
MATRIX = affine(Numbers(("C", "C")))
_ITEMS: Spec = {
    "items": Numbers(low=1, kind="integer"),
    "kept": Numbers(("K",), kind="bool", default=()),
}
PLATT: Spec = {"weights": Numbers(("K", 2)), **_ITEMS, "converged": FLAG}
BETA: Spec = {"weights": Numbers(("K", 3)), **_ITEMS, "converged": FLAG}
CURVES: Spec = {"edges": Curves(rising=True), "values": Curves(), **_ITEMS}


def read_parameters(record: Any, spec: Spec, classes: int) -> Parameters:
    """The parameters of a calibrator from JSON's types.

    Raises:
      ValueError: if one is missing, unknown, or not what `spec` says.
    """
    if not isinstance(record, dict):
        raise ValueError("parameters must be an object")
    unknown = [name for name in record if name not in spec]
    if unknown:
        raise ValueError(f"it has no parameter {unknown[0]!r}")
    axes = {"C": classes, "K": 1 if classes == 2 else classes}
    found = {}
    for name, of_spec in spec.items():
        if name in record:
            found[name] = of_spec.read(name, record[name], axes)
        elif of_spec.default is None:
            raise ValueError(f"the parameter {name} is missing")
    return found


def check_curves(parameters: Parameters, more_values: int) -> None:
    """Checks that each curve has as many values as edges, and `more_values` more.

    Raises:
      ValueError: if not.
    """
    for edges, values in zip(parameters["edges"], parameters["values"], strict=True):
        if not values.size or values.size != edges.size + more_values:
            raise ValueError(f"a curve of {edges.size} edges has {values.size} values")


def _check_numbers(name: str, value: Any, shape: tuple[int, ...], spec: Numbers) -> None:
    """Raises ValueError for anything but nested lists of this shape."""
    if shape:
        if not isinstance(value, list) or len(value) != shape[0]:
            raise ValueError(f"{name} must be a list of {shape[0]:,}")
        for one in value:
            _check_numbers(name, one, shape[1:], spec)
    elif not _is_number(value, spec):
        most = "" if spec.high == _LARGEST else f" and at most {spec.high:g}"
        least = "" if spec.low == -_LARGEST else f" of at least {spec.low:.3g}{most}"
        kind = {"bool": "true or false", "integer": "a whole number"}.get(spec.kind, "a finite number")
        raise ValueError(f"{name} must be {kind}{least}")


def _is_number(value: Any, spec: Numbers) -> bool:
    if spec.kind == "bool":
        return isinstance(value, bool)
    allowed = int if spec.kind == "integer" else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        return False
    # Compared as they are: an integer of 400 digits is no float.
    return spec.low <= value <= spec.high and not (isinstance(value, float) and math.isnan(value))
