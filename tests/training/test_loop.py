import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from leapray.climsim.schema import KAGGLE
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.recipe import Choice, Training
from leapray.training import checkpoint
from leapray.training.effort import Effort
from leapray.training.loop import Loop, chosen, ranked
from leapray.training.pace import Peers
from tests.columns import INPUTS, LEARNED, SCORED, TARGETS

CPU = torch.device("cpu")
LANES = 8


class Batches:
    """Rows of a linear map in memory, of two sources in turn, ``world`` ranks sharing them; the arrays are read-only."""

    sources, kinds = ("lr", "hr"), ("low-res", "high-res")
    transform = Transform.identity(KAGGLE)

    def __init__(self, steps=8, batch=32, validation=(20, 7, 13), rank=0, world=1, good_epochs=99):
        generator = np.random.default_rng(5)
        matrix = generator.normal(size=(INPUTS.width, TARGETS.width)) / INPUTS.width**0.5

        def rows(count):
            inputs = generator.normal(size=(count, INPUTS.width)).astype(np.float32)
            targets = (inputs @ matrix).astype(np.float32)
            inputs.flags.writeable = targets.flags.writeable = False
            return {"inputs": inputs, "targets": targets, "row": np.arange(count), "source": np.arange(count, dtype=np.int16) % 2}

        self.steps = steps
        self.good_epochs = good_epochs
        self.part = slice(*(number * LANES // world * batch // LANES for number in (rank, rank + 1)))
        self.training = [rows(batch) for _ in range(steps)]
        self.validation_rows = sum(validation)
        self.validation = [rows(count) for count in validation][rank::world]

    def train(self, epoch, first_step=0):
        order = np.random.default_rng(epoch).permutation(self.steps)
        for index in order[first_step:]:
            batch = {key: values[self.part] for key, values in self.training[index].items()}
            yield batch if epoch < self.good_epochs else batch | {"targets": -batch["targets"]}

    def validate(self):
        yield from self.validation


def training(**changes):
    options = {"lr": 1e-2, "weight_decay": 0.0}
    settings = {"run": "unused", "epochs": 3, "batch_size": 32, "optimizer": {"name": "adamw", "options": options}} | changes
    return Training.model_validate(settings)


def linear(dropout=0.0):
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(INPUTS.width, TARGETS.width))


def normed():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(INPUTS.width, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, TARGETS.width))


def fit(loop):
    return loop.fit()


def timeless(history):
    measured = Effort(steps=1, seconds=1.0, memory=1, gpu_use=(1.0, 1), gpu_memory=1).figures(1).keys() | {"val_seconds"}
    return [{key: value for key, value in record.items() if key not in measured} for record in history]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def predictions(weights, batches):
    network = linear()
    network.load_state_dict(weights)
    rows = list(batches.validate())
    with torch.no_grad():
        found = network.eval()(torch.tensor(np.concatenate([batch["inputs"] for batch in rows]))).numpy()
    return np.concatenate([batch["targets"] for batch in rows]), found


def test_learns_a_linear_map():
    batches = Batches(steps=24, batch=128, validation=(200,))
    fitted = fit(Loop(linear(), batches, training(epochs=12, batch_size=128), CPU))
    assert fitted.best["r2"] > 0.9
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"] / 4


def test_validation_is_scored_over_the_whole_set_as_scikit_learn_does():
    batches = Batches()
    fitted = fit(Loop(linear(), batches, training(epochs=1), CPU))
    truth, prediction = predictions(fitted.weights, batches)
    r2 = r2_score(truth, prediction, multioutput="raw_values")[LEARNED]
    record = fitted.best
    gained = (truth**2).mean(axis=0) - ((truth - prediction) ** 2).mean(axis=0)
    # the identity's training mean is 0 and its variance 1
    skill = np.maximum(gained / np.maximum(truth.var(axis=0), 1), -1)[LEARNED]
    assert record["score"] == record["skill"] == pytest.approx(skill.mean(), abs=1e-6)
    attainable = (truth**2).mean(axis=0) / np.maximum(truth.var(axis=0), 1)
    assert record["attainable"] == pytest.approx(attainable[LEARNED].mean(), abs=1e-6)
    by_variable = np.mean([record["skill_by_variable"][name] * LEARNED[TARGETS[name]].sum() for name in record["skill_by_variable"]])
    assert by_variable * len(record["skill_by_variable"]) == pytest.approx(skill.sum(), abs=1e-4)
    assert record["r2"] == pytest.approx(r2.mean(), abs=1e-6)
    assert record["r2_median"] == pytest.approx(np.median(r2), abs=1e-6)
    assert record["r2_below_zero"] == (r2 < 0).sum()
    assert (record["r2_varying"], record["r2_silent"]) == (pytest.approx(r2.mean(), abs=1e-6), 0)
    assert record["r2_scored"] == pytest.approx((r2.sum() + 15) / SCORED.sum(), abs=1e-6)
    assert record["leaderboard"] == pytest.approx((r2.sum() + 75) / TARGETS.width, abs=1e-6)
    error = np.abs(truth - prediction)[:, LEARNED].astype(np.float64)
    assert record["val_loss"] == pytest.approx(np.where(error < 1, error**2 / 2, error - 0.5).mean(), rel=1e-5)
    assert record["val_rows"] == len(truth) == 40


def test_ranks_merge_their_moments_and_losses():
    # with a rate too small to change any weight, two ranks need no exchange of gradients
    still = training(epochs=1, optimizer={"name": "adamw", "options": {"lr": 1e-30, "weight_decay": 0.0}})
    whole = fit(Loop(linear(), Batches(), still, CPU)).best
    arrays, together = [None, None], Barrier(2, timeout=30)

    def rank_loop(rank):
        def gather(array):
            arrays[rank] = array
            together.wait()
            gathered = list(arrays)
            together.wait()
            return gathered

        return Loop(linear(), Batches(rank=rank, world=2), still, CPU, Peers(rank, 2, gather))

    with ThreadPoolExecutor(2) as pool:
        ranks = [fitted.best for fitted in pool.map(fit, [rank_loop(0), rank_loop(1)])]
    for key in ("loss", "loss_curve", "val_loss", "score", "skill", "r2", "leaderboard", "val_rows"):
        assert ranks[0][key] == ranks[1][key] == pytest.approx(whole[key], rel=1e-6), key


def test_the_best_weights_are_kept_as_they_were():
    kept = []
    loop = Loop(linear(), Batches(good_epochs=3), training(epochs=5), CPU)
    fitted = loop.fit(lambda record: record["event"] == "validation" and kept.append(copy.deepcopy(loop.bare.state_dict())))
    assert np.argmax([record["score"] for record in fitted.history]) == 2
    assert fitted.best["epoch"] == 3
    assert same(fitted.weights, kept[2])
    assert not same(fitted.weights, kept[4])


def test_stops_after_patience_validations_without_a_better_one():
    fitted = fit(Loop(linear(), Batches(good_epochs=3), training(epochs=50, patience=2), CPU))
    assert [record["epoch"] for record in fitted.history] == [1, 2, 3, 4, 5]
    assert fitted.best["epoch"] == 3


VARIANTS = {
    "plain": {},
    "dropout": {},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "pair": {"loss": {"name": "pair"}},
    "accumulated and clipped": {"accumulate": 4, "clip_norm": 0.1},
    "average": {"ema": {"every": 2, "after": 3, "ramp": True}},
    "average over epochs": {"swa": {"start": 1, "lr": 1e-3, "anneal": 1}, "validations": 2},
    "average over the last epoch": {"swa": {"start": 2, "lr": 1e-3, "anneal": 2}, "patience": 1},
    "average with batch norm": {"swa": {"start": 1, "lr": 1e-3, "anneal": 1}},
    "validations": {"validations": 3, "keep_best": 2},
    "plateau": {"schedule": {"name": "plateau", "options": {"patience": 1, "factor": 0.5}}},
    "cosine": {"schedule": {"name": "cosine", "options": {"warmup": 0.5}}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_between_any_two_steps_equals_an_undisturbed_run(variant, tmp_path):
    schedule = {"name": "multistep", "options": {"milestones": [1], "gamma": 0.5}}
    settings = training(**{"epochs": 2, "schedule": schedule, "checkpoint_seconds": 1e-9} | VARIANTS[variant])
    dropout = 0.3 if variant == "dropout" else 0.0
    states = []

    def make():
        made = Loop(normed() if "norm" in variant else linear(dropout), Batches(steps=4), settings, CPU)
        # so that the scale is not what it was at first
        made.step.scaler.set_growth_interval(1) if settings.precision == "fp16" else None
        return made

    loop = make()

    def keep():
        checkpoint.save(f"{tmp_path}/{len(states)}", loop.state())
        states.append(loop.done)

    whole = loop.fit(keep=keep, report_seconds=0)
    assert set(states) == set(range(1, 9))
    for number in range(len(states)):
        torch.manual_seed(999)
        resumed = make()
        resumed.restore(checkpoint.load(f"{tmp_path}/{number}"))
        assert resumed.done == states[number]
        fitted = resumed.fit(report_seconds=0)
        assert same(fitted.weights, whole.weights)
        assert same(resumed.bare.state_dict(), loop.bare.state_dict())
        assert timeless(resumed.history) == timeless(loop.history)


def test_resuming_between_blocks_of_steps_equals_an_undisturbed_run(tmp_path):
    settings = training(epochs=2, validations=2, checkpoint_seconds=1e-9)
    kept = {}

    def make():
        made = Loop(linear(0.3), Batches(steps=8), settings, CPU)
        made.block = 3
        return made

    loop = make()
    whole = loop.fit(keep=lambda: kept.update({loop.done: copy.deepcopy(loop.state())}), report_seconds=0)
    assert list(kept) == [3, 4, 6, 8, 11, 12, 14, 16]
    for state in kept.values():
        resumed = make()
        resumed.restore(state)
        assert same(resumed.fit(report_seconds=1e9).weights, whole.weights)
        assert same(resumed.bare.state_dict(), loop.bare.state_dict())


def test_a_state_of_before_rows_were_counted_goes_on():
    state = Loop(linear(), Batches(), training(), CPU).state()
    del state["tally"]
    resumed = Loop(linear(), Batches(), training(), CPU)
    resumed.restore(state)
    assert resumed.fit().history[-1]["trained_rows"]


def test_a_state_of_epochs_of_another_length_is_refused():
    state = Loop(linear(), Batches(), training(), CPU).state()
    with pytest.raises(UserError, match="epochs of 8 steps, but the data gives 9"):
        Loop(linear(), Batches(steps=9), training(), CPU).restore(state)


def test_how_often_ranks_meet_changes_nothing():
    seldom, often = (Loop(linear(0.3), Batches(), training(), CPU) for _ in range(2))
    seldom.fit(report_seconds=1e9)
    often.fit(report_seconds=0)
    assert same(seldom.bare.state_dict(), often.bare.state_dict())
    assert timeless(seldom.history) == timeless(often.history)


def test_validates_inside_an_epoch():
    fitted = fit(Loop(linear(), Batches(steps=8), training(epochs=2, validations=3), CPU))
    assert [record["step"] for record in fitted.history] == [3, 5, 8, 11, 13, 16]
    assert [record["epoch"] for record in fitted.history] == [1, 1, 1, 2, 2, 2]
    assert [len(record["loss_curve"]) for record in fitted.history] == [3, 2, 3, 3, 2, 3]


def test_accumulated_gradients_are_those_of_the_whole_batch():
    found = {}
    for parts in (1, 5):
        loop = Loop(linear(), Batches(steps=1), training(epochs=1, accumulate=parts), CPU)
        weights = list(loop.bare.parameters())
        loop.optimizer.register_step_pre_hook(lambda *_, n=parts, w=weights: found.update({n: [p.grad.clone() for p in w]}))
        fit(loop)
    for whole, accumulated in zip(found[1], found[5], strict=True):
        torch.testing.assert_close(accumulated, whole, rtol=1e-4, atol=1e-9)


def test_the_gradient_is_clipped_to_its_largest_norm():
    norms = []
    loop = Loop(linear(), Batches(), training(epochs=1, clip_norm=1e-3), CPU)
    loop.optimizer.register_step_pre_hook(lambda *_: norms.append(sum(float(p.grad.square().sum()) for p in loop.bare.parameters()) ** 0.5))
    fit(loop)
    assert norms == pytest.approx([1e-3] * 8, rel=1e-3)


def test_the_average_is_what_is_validated_and_saved():
    settings = training(epochs=2, ema={"decay": 0.9, "every": 1, "after": 0})
    loop = Loop(linear(), Batches(), settings, CPU)
    fitted = fit(loop)
    truth, prediction = predictions(fitted.weights, loop.batches)
    assert fitted.best["r2"] == pytest.approx(r2_score(truth, prediction, multioutput="raw_values")[LEARNED].mean(), abs=1e-6)
    assert fitted.best is fitted.history[-1]
    assert not same(fitted.weights, loop.bare.state_dict())
    assert same(fitted.weights, loop.evaluated.state_dict())


def test_validations_are_ranked_by_members_of_their_average_then_by_score_then_by_age():
    def record(step, score, averaged=None):
        return {"step": step, "score": score} | ({"averaged": averaged} if averaged else {})

    history = [record(1, 0.9), record(2, 0.5), record(3, 0.5), record(4, 0.7)]
    assert [one["step"] for one in ranked(history)] == [1, 4, 2, 3]
    averaged = [*history, record(5, 0.3, 1), record(6, 0.1, 2), record(7, 0.2, 2)]
    assert [one["step"] for one in ranked(averaged)] == [7, 6, 5, 1, 4, 2, 3]


@pytest.mark.parametrize(
    ("best", "last", "steps"), [(0, 0, []), (1, 0, [1]), (2, 0, [1, 4]), (0, 2, [3, 4]), (2, 2, [1, 3, 4]), (9, 9, [1, 2, 3, 4])]
)
def test_chosen_validations_are_the_best_and_the_last_each_once_oldest_first(best, last, steps):
    history = [{"step": step, "score": score} for step, score in enumerate((0.9, 0.5, 0.5, 0.7), 1)]
    assert [record["step"] for record in chosen(history, best, last)] == steps


def test_training_and_validation_loss_of_a_pair_are_the_same_measure():
    still = training(
        epochs=1, batch_size=40, loss={"name": "pair"}, optimizer={"name": "adamw", "options": {"lr": 1e-30, "weight_decay": 0.0}}
    )
    batches = Batches(steps=1, batch=40, validation=(40,))
    batches.validation = batches.training
    record = fit(Loop(linear(), batches, still, CPU)).best
    assert record["val_loss"] == pytest.approx(record["loss"], rel=1e-6)


def test_dropout_differs_between_ranks_and_epochs():
    losses = {}
    for rank in (0, 1):
        still = training(epochs=2, optimizer={"name": "adamw", "options": {"lr": 1e-30, "weight_decay": 0.0}})
        batches = Batches(steps=1)
        losses[rank] = [record["loss"] for record in fit(Loop(linear(0.5), batches, still, CPU, Peers(rank))).history]
    assert len({*losses[0], *losses[1]}) == 4


def test_the_loss_curve_has_every_step_of_a_short_epoch_and_a_mean_of_each_part_of_a_long_one():
    short = fit(Loop(linear(), Batches(steps=7), training(epochs=1), CPU)).best
    assert len(short["loss_curve"]) == 7
    assert np.mean(short["loss_curve"]) == pytest.approx(short["loss"], rel=1e-12)
    long = fit(Loop(linear(), Batches(steps=205, batch=2), training(epochs=1, batch_size=2), CPU)).best
    assert len(long["loss_curve"]) == 100


def test_logs_where_it_stands():
    logged = []
    loop = Loop(linear(), Batches(steps=5), training(epochs=2), CPU)
    fitted = loop.fit(lambda record: record["event"] == "step" and logged.append(record), report_seconds=0)
    assert [record["step"] for record in logged] == list(range(1, 11))
    assert [record["epoch"] for record in logged] == [1] * 5 + [2] * 5
    assert {record["steps"] for record in logged} == {10}
    assert [record["loss"] for record in logged[:5]] == fitted.history[0]["loss_curve"]
    assert all(record["rows_per_s"] > 0 for record in logged)


def test_lost_or_doubled_validation_rows_are_an_error():
    for change, arrived in ((lambda parts: parts[1:], 20), (lambda parts: [*parts, parts[0]], 60)):
        batches = Batches()
        batches.validation = change(batches.validation)
        with pytest.raises(RuntimeError, match=f"step 8: {arrived} validation rows arrived of 40"):
            fit(Loop(linear(), batches, training(), CPU))


def test_names_epoch_step_columns_and_source_of_a_loss_that_is_not_finite():
    batches = Batches(steps=4)
    # the first epoch passes over the poisoned batch, which comes third in the second one
    poisoned = batches.training[int(np.random.default_rng(1).permutation(4)[2])]
    targets = poisoned["targets"].copy()
    # one that is not learned may be what it likes
    targets[5, [TARGETS["ptend_t"].start + 7, TARGETS["ptend_q0001"].start + 1, TARGETS["ptend_u"].start + 20]] = np.nan
    poisoned["targets"] = targets
    batches.train = lambda epoch, first, train=batches.train: train(1) if epoch == 1 else iter(list(train(1))[:2] * 2)
    expected = "nan at epoch 2, step 3 of 4, in rows of hr, in columns ptend_t_7, ptend_u_20; a lower"
    for report_seconds in (0, 1e9):
        with pytest.raises(UserError, match=expected):
            Loop(linear(), batches, training(), CPU).fit(report_seconds=report_seconds)


def test_takes_wrong_choices_as_the_users_mistake():
    with pytest.raises(UserError, match=r"training\.optimizer.*'sgd'.*adamw"):
        Loop(linear(), Batches(), training(optimizer=Choice(name="sgd")), CPU)
