"""The line of progress of a run: what is done now in words, and a time left that knows kinds of tasks."""

import re

from ntkrobust_sk import KernelEvolution
from ntkrobust_sk.evolution.progress import Progress, in_words, kind_of
from ntkrobust_sk.evolution.tasks import tasks_of

TASKS = tasks_of(KernelEvolution(epochs=2, fractions=(), seeds=2, regimes=("benign", "adversarial")))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def spend(progress, clock, tasks, seconds):
    for task, took in zip(tasks, seconds, strict=True):
        progress.works_on([task])
        clock.now += took
        progress.done(task)


def test_each_task_is_said_in_words():
    said = [in_words(task, 2) for task in TASKS]
    assert said[4] == "seed 1 of 2 · adversarial · epoch 1 · training and kernel"
    assert "seed 2 of 2 · benign · epoch 2 · stage 2, linearized, adversarial" in said
    assert len(set(said)) == len(said) and not any("seed" in in_words(task, 1) for task in TASKS)


def test_tasks_of_one_kind_measure_and_train_alike():
    kinds = [kind_of(task) for task in TASKS]
    assert kinds[0] == ("checkpoint", "benign") and kinds[3] == ("checkpoint", "adversarial")
    assert kinds[: len(kinds) // 2] == kinds[len(kinds) // 2 :]


def test_the_time_left_is_that_of_each_kind():
    clock = Clock()
    cheap, dear = (
        [task for task in TASKS if kind_of(task) == ("checkpoint", kind)] for kind in ("benign", "adversarial")
    )
    with Progress([*cheap, *dear], len(TASKS), 2, shown=False, clock=clock) as progress:
        assert progress.time_left() == ""
        # the first compiles
        spend(progress, clock, cheap[:3], [50, 2, 2])
        assert progress.time_left() == "more than 6 s left"
        spend(progress, clock, dear[:1], [20])
        assert progress.time_left() == "about 2 min left"
        spend(progress, clock, dear[1:3], [20, 20])
        # 3 cheap ones and 3 dear ones
        assert progress.time_left() == "about 66 s left"
        progress.works_on(dear[3:4])
        clock.now += 10
        assert progress.time_left() == "about 56 s left"


def test_workers_share_the_time_that_is_left():
    clock, tasks = Clock(), [task for task in TASKS if kind_of(task) == ("checkpoint", "benign")]
    with Progress(tasks, len(tasks), 2, 2, shown=False, clock=clock) as progress:
        progress.works_on(tasks[:2])
        clock.now += 20
        progress.done(tasks[0])
        progress.done(tasks[1])
        assert progress.time_left() == "about 40 s left"


def test_a_run_shows_its_line_on_stderr(tmp_path, capsys):
    settings = {"regimes": ("benign",), "epochs": 1, "fractions": (), "stage2_from": (), "n_features": 0}
    few = {"n_train": 60, "n_test": 20, "n_kernel": 20, "network": "mlp", "test_steps": 2, "seeds": 2}
    KernelEvolution(**settings, **few).run(tmp_path / "run")
    captured = capsys.readouterr()
    assert captured.out == "" and "6 of 6" in captured.err
    assert "seed 2 of 2 · benign · epoch 1 · training and kernel" in captured.err
    assert re.search(r"about \d+ s left", captured.err)
