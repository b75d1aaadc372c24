"""Histogram of grades: nothing is lost, pieces add up, thresholds are edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.kernel.grade_histogram import GradeHistogram


@given(
    st.lists(st.one_of(st.floats(0, 30), st.sampled_from([np.inf, np.nan, 1.0, 1.5])), min_size=1, max_size=60),
    st.integers(0, 60),
)
def test_pieces_add_up_and_nothing_is_lost(values, cut):
    novelty, numbers = np.array(values), np.array([29, 79] * 30)[: len(values)]
    whole, pieces = GradeHistogram(), GradeHistogram()
    whole.add(novelty, numbers)
    pieces.add(novelty[:cut], numbers[:cut])
    pieces.add(novelty[cut:], numbers[cut:], np.arange(cut, len(values)))
    assert pieces.as_dict() == whole.as_dict()
    assert whole.total == len(values)
    assert GradeHistogram.from_dict(whole.as_dict()).as_dict() == whole.as_dict()


@given(st.integers(0, 199), st.integers(0, 200))
def test_edges_belong_to_the_bin_above(bin_of_value, bin_of_threshold):
    histogram = GradeHistogram()
    histogram.add(np.array([bin_of_value * 0.05]), np.array([29]))
    assert histogram.above(bin_of_threshold * 0.05) == int(bin_of_value >= bin_of_threshold)


def test_the_largest_the_median_and_what_is_no_number():
    histogram = GradeHistogram(top=2.0, width=0.5)
    histogram.add(np.array([0.1, 0.6, np.nan, 1.9, 7.0]), np.full(5, 29), np.array([5, 6, 7, 8, 9]))
    assert (histogram.largest, histogram.largest_atom) == (7.0, 9)
    assert histogram.as_dict()["counts"] == {"Cu": [1, 1, 0, 1, 1, 1]}
    assert histogram.above(1.5) == 3
    assert histogram.quantile(0.4) == 1.0
    assert histogram.quantile(1.0) is None


def test_bad_input_is_refused():
    with pytest.raises(InvalidInputError, match="0 < width <= top"):
        GradeHistogram(top=1.0, width=0.0)
    good = GradeHistogram(top=1.0, width=0.5)
    good.add(np.array([0.2]), np.array([29]))
    for change in ({"counts": {"Cu": [1]}}, {"counts": {"Qq": [1, 0, 0, 0]}}, {"top": None}, {"counts": 3}):
        with pytest.raises(FileFormatError, match="not a histogram of grades"):
            GradeHistogram.from_dict({**good.as_dict(), **change})
