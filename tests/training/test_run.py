import pytest

from leapray.errors import UserError
from leapray.recipe import parse_recipe
from leapray.training.run import RecordLog, Run, following


def recipe(run, **training):
    return parse_recipe(
        {
            "name": "a",
            "data": {
                "prepared": "/data/prepared",
                "sources": {"lr": {"kind": "low-res", "path": "flat", "train": {"start": "0001-02", "stop": "0001-03"}}},
            },
            "network": {"name": "mlp"},
            "training": {"run": str(run), "epochs": 2, "batch_size": 8} | training,
        }
    )


def step(epoch, number):
    return {"event": "step", "epoch": epoch, "step": number}


def end(epoch, number):
    return {"event": "epoch", "epoch": epoch, "step": number}


def test_a_directory_stays_with_its_recipe(tmp_path):
    ours = recipe(tmp_path / "run")
    run = Run(ours.training.run)
    run.claim(ours)
    run.claim(ours)
    with pytest.raises(UserError, match=r"another recipe \(training\.epochs: 2, now 3\)"):
        run.claim(recipe(tmp_path / "run", epochs=3))


def test_name_place_and_resources_do_not_change_a_model_but_lanes_do(tmp_path):
    ours = recipe(tmp_path / "run", lanes=2)
    run = Run(ours.training.run)
    run.claim(ours)
    workers = ours.resources.model_copy(update={"workers": 2})
    elsewhere = ours.training.model_copy(update={"run": "/elsewhere", "lanes": None})
    run.claim(ours.model_copy(update={"name": "b", "resources": workers, "training": elsewhere}))
    with pytest.raises(UserError, match=r"training\.lanes: 2, now 1"):
        run.claim(ours.model_copy(update={"training": elsewhere}))


def test_refuses_a_directory_whose_recipe_is_none(tmp_path):
    (tmp_path / "recipe.yaml").write_text("- just\n- a list\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: not the recipe of a run"):
        Run(str(tmp_path)).claim(recipe(tmp_path))


def test_a_resumed_log_forgets_what_happens_again(tmp_path):
    run = Run(str(tmp_path))
    log = RecordLog(run, 0)
    for record in (step(1, 1), end(1, 2), step(2, 3), end(2, 4), step(3, 5), end(3, 6)):
        log.add(record)
    RecordLog(run, 2).add(end(3, 6))
    assert run.records() == [step(1, 1), end(1, 2), step(2, 3), end(2, 4), end(3, 6)]


def test_progress_gets_each_new_record_once_and_in_order(tmp_path):
    run = Run(str(tmp_path))
    RecordLog(run, 0).add(end(1, 2))
    seen = []
    with following(run, seen.append):
        log = RecordLog(run, 1)
        log.add(step(2, 3))
        log.add(end(2, 4))
        restarted = RecordLog(run, 1)
        restarted.add(step(2, 3))
        restarted.add(end(2, 4))
        restarted.add(end(3, 6))
    assert seen == [step(2, 3), end(2, 4), end(3, 6)]


def test_a_failing_progress_is_heard(tmp_path):
    run = Run(str(tmp_path))
    with pytest.raises(ZeroDivisionError), following(run, lambda record: 1 / 0):
        RecordLog(run, 0).add(end(1, 2))
