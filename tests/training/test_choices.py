from pathlib import Path

import pytest

from leapray.errors import UserError
from leapray.recipe import parse_recipe
from leapray.training.choices import check_choices, with_defaults
from tests.samples import recipe_values


def recipe(**changes):
    training = {key: value for key, value in changes.items() if key not in ("network", "resources")}
    sections = {key: value for key, value in changes.items() if key in ("network", "resources")}
    return parse_recipe(recipe_values(Path("nowhere"), **training) | sections)


def test_a_recipe_says_the_same_however_it_is_spelt():
    short = recipe(network="mlp", loss="huber", optimizer={"name": "adamw", "options": {"lr": "1e-3"}})
    options = {"lr": 0.001, "weight_decay": 0.01, "betas": [0.9, 0.999]}
    long = recipe(
        network={"name": "mlp", "options": {"hidden": [512, 512, 512], "dropout": 0}},
        loss={"name": "huber", "options": {"delta": 1, "columns": "learned"}},
        optimizer={"name": "adamw", "options": options},
    )
    assert short != long
    assert with_defaults(short) == with_defaults(long)
    assert with_defaults(long).to_dict()["training"]["optimizer"]["options"] == options


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "fp16"}, "precision fp16 needs a GPU"),
        ({"schedule": {"name": "cosine", "options": {"warmup": 1}}}, "warmup is 1 epochs; expected fewer than training.epochs, 1"),
        ({"network": "collections:OrderedDict"}, "torch.nn.Module"),
        ({"network": "ridge", "start": {"model": "somewhere"}}, "network ridge is solved for and not trained by steps; remove"),
        ({"network": {"name": "ridge", "options": {"alpha": 0}}}, "alpha is 0"),
        ({"network": {"name": "climatology", "options": {"alpha": 1}}}, "takes no options, but network.options gives alpha"),
        ({"loss": "hubert"}, "'hubert'; known ones are huber, mae"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_runs(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        check_choices(recipe(**changes))


def test_kinds_that_are_weighed_apart_need_fixed_shares():
    values = recipe_values(Path("nowhere"), batch_size=16, loss="pair")
    low_res = values["data"]["sources"]["low_res"]
    values["data"]["sources"]["high_res"] = {"kind": "high-res", "path": "elsewhere", "train": low_res["train"]}
    with pytest.raises(UserError, match=r"pair weighs kinds apart.*training\.pairs"):
        check_choices(parse_recipe(values))
    values["training"]["pairs"] = True
    check_choices(parse_recipe(values))
    # one kind alone is not weighed against another
    values["training"] |= {"pairs": False, "sources": ["low_res"]}
    check_choices(parse_recipe(values))
