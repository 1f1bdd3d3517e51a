"""Means over seeds."""

import math

import numpy as np
import pytest

from lm.errors import UserError
from lm.statistics.seeds import seed_summary


def test_seed_summary():
    summary = seed_summary([1.0, 2.0, 3.0, 6.0])
    assert (summary.mean, summary.seeds) == (3.0, 4)
    np.testing.assert_allclose(summary.spread, math.sqrt(14 / 3))
    np.testing.assert_allclose(summary.standard_error, math.sqrt(14 / 12))
    assert math.isnan(seed_summary([5.0]).spread)
    with pytest.raises(UserError, match="at least one"):
        seed_summary([])
