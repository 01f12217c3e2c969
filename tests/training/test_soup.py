"""Averages of weights that variants kept, on small prepared data and runs made by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from sklearn.metrics import r2_score
from torch import nn

from leapray.data.stream import Stream
from leapray.errors import UserError
from leapray.models.directory import WEIGHTS_FILE, load_info, load_model, save_model
from leapray.models.registry import build_network
from leapray.recipe import parse_recipe
from leapray.registry import Options
from leapray.training import soup
from leapray.training.run import Run
from leapray.training.soup import candidates, greedy, make_average
from tests.columns import CHANNELS, INPUTS, LEARNED, TARGETS
from tests.samples import recipe_values
from tests.training.test_scoring import CPU, predicted, prepared_shards

SCORES = {"x": (0.1, 0.5, 0.4, 0.3), "y": (0.2, 0.6, 0.5)}
"""Scores of the validations that each variant kept."""


class NormedOptions(Options):
    pass


class Normed(nn.Sequential):
    """A user's own network with batch normalisation."""

    Options = NormedOptions

    def __init__(self, options, features=0):
        super().__init__(nn.Linear(INPUTS.width, 6), nn.BatchNorm1d(6), nn.Linear(6, TARGETS.width))


def recipe(root, network=None, **averages):
    """Variants x and y, and averages of them."""
    values = recipe_values(root)
    if network:
        values["network"] = {"name": network}
    variants = {"x": {}, "y": {}, **{name: {"average": {"of": ["x", "y"]} | average} for name, average in averages.items()}}
    values["finetune"] = {"base": str(root / "base"), "directory": str(root / "variants"), "variants": variants}
    return parse_recipe(values)


def make_run(ours, name, transform, seed=0, finished=True):
    """A run that kept a model of each of its validations, the network nearly the same in all but the fourth."""
    run, history = Run(ours.variant(name).training.run), []
    torch.manual_seed(1)
    network = build_network(ours.network.name, ours.network.options, CHANNELS)
    generator = torch.Generator().manual_seed(seed + ord(name))
    for number, score in enumerate(SCORES[name], 1):
        history.append({"event": "validation", "epoch": number, "step": 10 * number, "score": score, "r2": -score})
        spread = 0.05 if number < 4 else 1.0
        state = {
            key: tensor + spread * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
            for key, tensor in network.state_dict().items()
        }
        save_model(run.validated_model(history[-1]), state, ours.network, transform, recipe=ours.to_dict(), history=history)
    if finished:
        save_model(run.model, state, ours.network, transform, recipe=ours.to_dict(), history=history)
    return run


@pytest.fixture
def prepared(tmp_path):
    return prepared_shards(tmp_path / "prepared")


@pytest.fixture
def make(tmp_path, prepared):
    """A recipe with an average of these settings, and what came of making it."""

    def average(**settings):
        ours = recipe(tmp_path, average=settings)
        for name in SCORES:
            if not Run(ours.variant(name).training.run).finished:
                make_run(ours, name, prepared[0].transform)
        make_average(ours, "average", prepared[0], CPU)
        return ours, f"{tmp_path}/variants/average/model"

    return average


def places(urls):
    """Variant and step of each model."""
    return [f"{Path(url).parts[-3]}{int(url.rsplit('-', 1)[1])}" for url in urls]


def plain_mean(urls):
    states = [load_file(f"{url}/{WEIGHTS_FILE}") for url in urls]
    return {name: np.mean([state[name].astype(np.float64) for state in states], axis=0) for name in states[0]}


def test_candidates_are_the_best_of_every_variant_from_the_best_on(tmp_path, prepared):
    ours = recipe(tmp_path, three={"members": 3}, one={"members": 1}, last={"take": "last", "members": 2}, all={"members": 9})
    for name in SCORES:
        make_run(ours, name, prepared[0].transform)
    found = {name: places(candidate.url for candidate in candidates(ours, name)) for name in ("three", "one", "last", "all")}
    assert found == {
        "three": ["y20", "x20", "y30", "x30", "x40", "y10"],
        "one": ["y20", "x20"],
        "last": ["y20", "y30", "x30", "x40"],
        "all": ["y20", "x20", "y30", "x30", "x40", "y10", "x10"],
    }
    assert [candidate.score for candidate in candidates(ours, "one")] == [0.6, 0.5]


def test_variants_that_did_not_finish_give_none(tmp_path, prepared):
    ours = recipe(tmp_path, average={})
    with pytest.raises(UserError, match="none of x, y finished, so there is nothing to average"):
        candidates(ours, "average")
    make_run(ours, "x", prepared[0].transform, finished=False)
    run = make_run(ours, "y", prepared[0].transform)
    assert {Path(candidate.url).parent.parent for candidate in candidates(ours, "average")} == {Path(run.url)}


def test_a_model_that_was_not_kept_is_named(tmp_path, prepared):
    ours = recipe(tmp_path, average={"members": 3})
    run = make_run(ours, "x", prepared[0].transform)
    (Path(run.validated) / "step-000000040" / "model.json").unlink()
    with pytest.raises(UserError, match=rf"step-000000040 is not kept, which an average now asks for; remove {run.url} to train it anew"):
        candidates(ours, "average")
    assert places(candidate.url for candidate in candidates(recipe(tmp_path, average={"members": 2}), "average")) == ["x20", "x30"]


def test_a_uniform_average_is_the_mean_of_its_members_weights(make, prepared):
    _, url = make(members=2)
    record = load_info(url).history[-1]
    assert places(record["members"]) == ["y20", "x20", "y30", "x30"]
    assert (record["event"], record["chosen_on"]) == ("average", None)
    found, expected = load_file(f"{url}/{WEIGHTS_FILE}"), plain_mean(record["members"])
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        np.testing.assert_allclose(found[name], weights, rtol=0, atol=1e-6)
    rows = prepared[1]["validation"]
    prediction = predicted(load_model(url).emulator.network, rows)
    assert record["r2"] == pytest.approx(r2_score(rows["targets"][:, LEARNED], prediction[:, LEARNED]), abs=1e-6)


def r2_of_mean(ours, urls, rows):
    network = build_network(ours.network.name, ours.network.options, CHANNELS)
    network.load_state_dict({name: torch.from_numpy(weights.astype(np.float32)) for name, weights in plain_mean(urls).items()})
    return r2_score(rows["targets"][:, LEARNED], predicted(network, rows)[:, LEARNED])


@pytest.mark.parametrize("split", ["blend", "validation"])
def test_a_greedy_average_takes_in_what_raises_r2_on_the_blend_months_or_without_them_on_validation(tmp_path, split):
    splits = ("train", "validation", "blend", "test") if split == "blend" else ("train", "validation", "test")
    prepared, held = prepared_shards(tmp_path / "prepared", splits)
    ours = recipe(tmp_path, average={"members": 4, "greedy": True})
    for name in SCORES:
        make_run(ours, name, prepared.transform)
    make_average(ours, "average", prepared, CPU)
    members, rest = [], [candidate.url for candidate in candidates(ours, "average")]
    for url in rest:
        if not members or r2_of_mean(ours, [*members, url], held[split]) > r2_of_mean(ours, members, held[split]):
            members.append(url)
    record = load_info(f"{tmp_path}/variants/average/model").history[-1]
    assert record["members"] == members
    assert 1 < len(members) < len(rest)
    assert record["chosen_on"] == split
    for name, weights in plain_mean(members).items():
        np.testing.assert_allclose(load_file(f"{tmp_path}/variants/average/model/{WEIGHTS_FILE}")[name], weights, rtol=0, atol=1e-6)
    assert record["r2"] == pytest.approx(r2_of_mean(ours, members, held["validation"]), abs=1e-6)


def test_an_average_that_is_there_is_not_made_again(make, monkeypatch):
    _, url = make(members=2)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(url).iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(soup, "load_model", lambda _: pytest.fail("read weights again"))
        make(members=2)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(url).iterdir()} == before


@pytest.mark.parametrize("settings", [{"members": 1}, {"members": 2, "take": "last"}, {"members": 2, "greedy": True}])
def test_an_average_of_other_settings_is_made_anew(make, settings):
    _, url = make(members=2)
    before = load_info(url)
    make(**settings)
    after = load_info(url)
    assert after.history[-1]["asked"] != before.history[-1]["asked"]
    assert len(after.history) == 1


def test_an_average_of_variants_that_were_trained_anew_is_made_anew(make, prepared):
    ours, url = make(members=2)
    for name in SCORES:
        make_run(ours, name, prepared[0].transform, seed=100)
    make(members=2)
    for name, weights in plain_mean(load_info(url).history[-1]["members"]).items():
        np.testing.assert_allclose(load_file(f"{url}/{WEIGHTS_FILE}")[name], weights, rtol=0, atol=1e-6)


def test_an_average_with_batch_normalisation_has_statistics_of_its_own(tmp_path, prepared):
    ours = recipe(tmp_path, "tests.training.test_soup:Normed", average={"members": 2})
    for name in SCORES:
        make_run(ours, name, prepared[0].transform)
    make_average(ours, "average", prepared[0], CPU)
    url = f"{tmp_path}/variants/average/model"
    found, mean = load_file(f"{url}/{WEIGHTS_FILE}"), plain_mean(load_info(url).history[-1]["members"])
    stream = Stream(prepared[0], batch_size=ours.training.batch_size, lanes=ours.lanes, seed=0)
    outputs = [batch["inputs"].astype(np.float64) @ mean["0.weight"].T + mean["0.bias"] for batch in stream.train(0)]
    assert len(outputs) > 1
    np.testing.assert_allclose(found["1.running_mean"], np.mean([y.mean(axis=0) for y in outputs], axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["1.running_var"], np.mean([y.var(axis=0, ddof=1) for y in outputs], axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["0.weight"], mean["0.weight"], rtol=0, atol=1e-6)


@given(
    # of whole numbers the mean is the same in whatever order they are summed
    points=st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=9),
    goal=st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
)
def test_greedy_takes_in_exactly_what_raises_the_score_at_its_turn(points, goal):
    points = np.array(points, dtype=float)

    def score(mean):
        return -float(np.abs(mean - goal).sum())

    states = [{"w": torch.from_numpy(point)} for point in points]
    members = greedy(states, lambda state: score(state["w"].numpy()))
    assert members[0] == 0
    assert members == sorted(set(members))
    for place in range(1, len(points)):
        before = [member for member in members if member < place]
        rises = score(points[[*before, place]].mean(axis=0)) > score(points[before].mean(axis=0))
        assert rises == (place in members)


def test_greedy_asks_once_for_each_candidate():
    asked = []
    greedy([{"w": torch.tensor([float(place)])} for place in range(6)], lambda state: asked.append(state["w"].item()) or 0.0)
    assert asked == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
