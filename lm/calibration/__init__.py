"""Calibration of any model's probabilities: errors, noise floor, calibrators, conformal and selective prediction.

error = lm.calibration.calibration_error(labels, probabilities=probabilities)
print(error.value, error.interval, error.floor)
lm.calibration.reliability_diagram(labels, probabilities=probabilities).figure.savefig("reliability.png")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.calibration.errors import calibration_error
    from lm.calibration.reliability import reliability_diagram

__all__ = ["calibration_error", "reliability_diagram"]


def __getattr__(name: str) -> Any:
    # Importing one module of this package must not import the others.
    if name == "calibration_error":
        from lm.calibration.errors import calibration_error

        return calibration_error
    if name == "reliability_diagram":
        from lm.calibration.reliability import reliability_diagram

        return reliability_diagram
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
