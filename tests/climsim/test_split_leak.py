"""Why splits are by month: neighbouring steps are nearly the same, so a random split rewards memory."""

import numpy as np
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsRegressor

from leapray.climsim.calendar import Month
from leapray.climsim.synthetic import World
from tests.columns import INPUTS, LEARNED


def rows(world: World, steps: range) -> tuple[np.ndarray, np.ndarray]:
    inputs = []
    for step in steps:
        fields = world.inputs(step)
        inputs.append(np.concatenate([np.atleast_2d(fields[variable.name]) for variable in INPUTS.variables]).T)
    return np.concatenate(inputs), np.concatenate([world.targets(step)[:, LEARNED] for step in steps])


def test_a_random_row_split_scores_higher_than_a_month_split() -> None:
    world = World("low-res", columns=64)
    january, march = (Month(2, month).first_step for month in (1, 3))
    x, y = rows(world, range(january, january + 120, 2))
    x_later, y_later = rows(world, range(march, march + 40, 2))
    held_out = np.random.default_rng(0).random(len(x)) < 0.25
    train_x, train_y = x[~held_out], y[~held_out]
    scale = np.where(train_x.std(axis=0) > 1e-12 * np.abs(train_x).max(axis=0), train_x.std(axis=0), np.inf)
    nearest = KNeighborsRegressor(n_neighbors=2).fit(train_x / scale, train_y / y.std(axis=0))
    by_row = r2_score(y[held_out] / y.std(axis=0), nearest.predict(x[held_out] / scale))
    by_month = r2_score(y_later / y.std(axis=0), nearest.predict(x_later / scale))
    assert by_row > by_month + 0.2
