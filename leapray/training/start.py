"""The model that a training begins with: whether it is of the same network and scaling, and its weights."""

from __future__ import annotations

from torch import Tensor

from leapray import storage
from leapray.data.shards import Prepared
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.models.directory import INFO_FILE, load_info, load_model
from leapray.models.registry import network_options
from leapray.recipe import Recipe, Start
from leapray.settings import difference
from leapray.training.choices import check_choices


def check_trainable(recipe: Recipe, prepared: Prepared) -> None:
    """Raise UserError for a choice that cannot be built, or a model to begin with that does not fit. The data is the recipe's own."""
    check_choices(recipe)
    check_start(recipe, prepared.transform)


def check_start(recipe: Recipe, transform: Transform) -> None:
    """Raise UserError when the model that the recipe begins with is of another network, or its data was scaled otherwise."""
    start = recipe.training.start
    if start is None:
        return
    info = load_info(start.model)
    ours, theirs = (
        {"name": network.name, "options": network_options(network).model_dump(mode="json")} for network in (recipe.network, info.network)
    )
    if changed := difference({"network": ours}, {"network": theirs}):
        raise UserError(f"{start.model}: its network is not the recipe's ({changed})")
    theirs_transform = Transform.from_dict(info.transform, start.model)
    transform.variables.require(theirs_transform.variables, start.model)
    if theirs_transform.feature_names != transform.feature_names:
        raise UserError(
            f"{start.model}: takes the engineered features {theirs_transform.feature_names}, but the data has {transform.feature_names}"
        )
    if start.transform == "same" and theirs_transform.digest() != transform.digest():
        raise UserError(
            f"{start.model}: its data was scaled by transform {theirs_transform.digest()}, but this data was prepared with "
            f"{transform.digest()}; prepare it with data.statistics: {start.model}/{INFO_FILE}, or set transform: any beside it"
        )


def start_digest(start: Start | None) -> str | None:
    """The sha256 of the weights to begin with; None where there are none, or none any more."""
    if start is None or not storage.exists(storage.join(start.model, INFO_FILE)):
        return None
    return load_info(start.model).weights_sha256


def starting_weights(start: Start) -> dict[str, Tensor]:
    """The weights of the model's network. Raises UserError when it is missing or damaged."""
    weights: dict[str, Tensor] = load_model(start.model).emulator.network.state_dict()
    return weights
