import numpy as np

from leapray.climsim.schema import FLUXES
from leapray.evaluation.distributions import JointCounts, PrecipitationCounts, precipitation_edges, scalar_edges
from tests.columns import TARGETS

RNG = np.random.default_rng(0)
MM_PER_DAY = 1 / 86.4e6
"""In m/s."""
RAIN = TARGETS["cam_out_PRECC"].start


def test_pairs_of_truth_and_prediction_are_counted_as_numpy_counts_them():
    edges = scalar_edges(TARGETS)
    truth, prediction = RNG.uniform(0, 1, (2, TARGETS.width, 500))
    for index in range(len(FLUXES)):
        # a little beyond both ends
        truth[360 + index] = truth[360 + index] * edges[index, -1] * 1.1 - 0.05 * edges[index, -1]
        prediction[360 + index] = prediction[360 + index] * edges[index, -1] * 1.1
    counts = JointCounts(TARGETS)
    for part in (slice(0, 123), slice(123, 500)):
        counts.update(truth[:, part], prediction[:, part])
    found = counts.result()
    for index in range(len(FLUXES)):
        inside = [np.clip(array[360 + index], edges[index, 0], edges[index, -1]) for array in (truth, prediction)]
        expected, _, _ = np.histogram2d(*inside, bins=[edges[index]] * 2)
        np.testing.assert_array_equal(found.counts[index], expected)


def test_bins_of_fluxes_are_even_and_those_of_rain_and_snow_logarithmic():
    edges = scalar_edges(TARGETS)
    for index, flux in enumerate(FLUXES):
        assert (np.diff(edges[index]) > 0).all()
        if flux.units == "m/s":
            np.testing.assert_allclose(edges[index], precipitation_edges() * MM_PER_DAY)
        else:
            np.testing.assert_allclose(np.diff(edges[index]), edges[index, 1] - edges[index, 0])
    rain = precipitation_edges()
    assert rain[:2].tolist() == [0.0, 0.01]
    np.testing.assert_allclose(rain[2:] / rain[1:-1], rain[2] / rain[1])


def test_rain_is_counted_in_mm_per_day():
    truth, prediction = np.zeros((2, TARGETS.width, 4))
    truth[RAIN] = np.array([0.0, 0.005, 0.0101, 5000.0]) * MM_PER_DAY
    prediction[RAIN] = np.array([-1.0, 0.02, 0.0101, 0.0101]) * MM_PER_DAY
    counts = PrecipitationCounts(TARGETS)
    counts.update(truth, prediction, None)
    found = counts.result()
    assert found.truth[[0, 1, -1]].tolist() == [2, 1, 1]
    assert found.prediction[:2].tolist() == [1, 2]
    assert found.truth.sum() == found.prediction.sum() == 4
    assert np.isnan(found.moistening).all()


def test_moistening_is_a_mean_over_each_bin_of_true_rain():
    truth, prediction = np.zeros((2, TARGETS.width, 3))
    truth[RAIN] = np.array([0.0, 100.0, 100.0]) * MM_PER_DAY
    truth[TARGETS["ptend_q0001"].start + 50] = [1e-8, -2e-8, -4e-8]
    prediction[TARGETS["ptend_q0003"].start + 50] = [3e-8, 0, -2e-8]
    mass = np.full((60, 3), 200.0)
    counts = PrecipitationCounts(TARGETS)
    for row in range(3):
        counts.update(truth[:, [row]], prediction[:, [row]], mass[:, [row]])
    found = counts.result()
    wet = int(np.searchsorted(found.edges, 100.0, side="right")) - 1
    np.testing.assert_allclose(found.moistening[0], [1e-8 * 200 * 86400, 3e-8 * 200 * 86400])
    np.testing.assert_allclose(found.moistening[wet], [-3e-8 * 200 * 86400, -1e-8 * 200 * 86400])
    assert np.isnan(np.delete(found.moistening, [0, wet], axis=0)).all()
