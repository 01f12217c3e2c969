"""What a recipe chooses for a training: checked as a whole before anything starts, and written out with every default."""

from __future__ import annotations

import torch

from leapray.data.features import channels_of
from leapray.data.fitting import SCALINGS
from leapray.errors import UserError
from leapray.models.registry import NETWORKS, SOLVED, build_network, network_options
from leapray.recipe import Choice, Recipe
from leapray.training.losses import LOSSES
from leapray.training.optimizers import OPTIMIZERS
from leapray.training.schedules import SCHEDULES
from leapray.training.trackers import check_trackers


def with_defaults(recipe: Recipe) -> Recipe:
    """The recipe with all options of its network and training, so that it says the same when a default changes.

    Raises UserError for an unknown name and for a wrong option.
    """
    network = Choice(name=recipe.network.name, options=network_options(recipe.network).model_dump(mode="json"))
    training = recipe.training
    chosen = {
        key: Choice(name=choice.name, options=registry.options(choice).model_dump(mode="json"))
        for key, registry, choice in (
            ("loss", LOSSES, training.loss),
            ("optimizer", OPTIMIZERS, training.optimizer),
            ("schedule", SCHEDULES, training.schedule),
        )
    }
    return recipe.model_copy(update={"network": network, "training": training.model_copy(update=chosen)})


def check_choices(recipe: Recipe) -> None:
    """Check that what a recipe chooses exists, can be built and goes together. Raises UserError for the first thing that does not."""
    with_defaults(recipe)
    training = recipe.training
    SCALINGS.options(recipe.data.scaling)
    check_trackers(training.trackers)
    # a schedule must fit the epochs
    SCHEDULES.build(training.schedule, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), 1, training.epochs)
    if training.precision == "fp16" and not recipe.resources.use_gpu:
        raise UserError("training.precision fp16 needs a GPU (resources.use_gpu); on a CPU take bf16 or float32")
    if recipe.network.name in SOLVED and (training.start or recipe.finetune):
        raise UserError(f"network {recipe.network.name} is solved for and not trained by steps; remove training.start and finetune")
    kinds = {recipe.data.sources[name].kind for name in recipe.trained}
    if training.loss.name == "pair" and len(kinds) > 1 and recipe.shares is None:
        raise UserError("training.loss pair weighs kinds apart, so every step needs fixed shares of them; set training.pairs or weights")
    if recipe.network.name not in NETWORKS.entries:
        # a user's own is tried out
        build_network(recipe.network.name, recipe.network.options, channels_of(recipe.data))
    for name in recipe.finetune.trained if recipe.finetune else ():
        try:
            check_choices(recipe.variant(name))
        except UserError as error:
            raise UserError(f"finetune.variants.{name}: {error}") from error
