"""An experiment by several processes: the folder of one, whatever happens to a worker."""

import json
import os
import signal
import time
import warnings
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
import scipy.linalg

from ntkrobust_sk import KernelEvolution
from ntkrobust_sk.cli.command import main
from ntkrobust_sk.datasets.splits import load_splits
from ntkrobust_sk.evolution import workers
from ntkrobust_sk.evolution.experiment import settings_of
from ntkrobust_sk.evolution.progress import Progress
from ntkrobust_sk.evolution.run_directory import RunDirectory
from ntkrobust_sk.evolution.schedule import OrderedResults, Schedule, needs_of, program
from ntkrobust_sk.evolution.states import States, own_epochs
from ntkrobust_sk.evolution.tasks import Measurements, tasks_of
from ntkrobust_sk.execution.devices import blas, host_threads, one_thread_each, planned_for, planned_threads
from ntkrobust_sk.training.state import TrainingDivergedError

SMALL = KernelEvolution(
    network="mlp",
    n_train=100,
    n_test=30,
    n_kernel=20,
    epochs=2,
    flip_epoch=1,
    fractions=(0.5,),
    train_steps=2,
    test_steps=2,
    stage2_epochs=1,
    stage2_from=(("adversarial", 2.0),),
    dynamics=("centered",),
    stage2=("benign",),
    n_features=1,
    batch_size=50,
)
# four states of one network, and nothing else
TINY = replace(SMALL, regimes=("benign",), stage2_from=(), n_features=0)


def whole(path):
    """Everything in a folder, by its place."""
    return {str(file.relative_to(path)): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A whole run by one process."""
    return SMALL.run(tmp_path_factory.mktemp("alone") / "run", progress=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TINY.run(tmp_path_factory.mktemp("alone") / "run", progress=False)


@pytest.fixture
def watched(monkeypatch):
    """Calls ``watched.before(number, task)`` in the parent with each task that a worker has been given."""

    class Watched(workers.Processes):
        before = staticmethod(lambda processes, number, task: None)
        begun = []

        def submit(self, number, task, records):
            future = super().submit(number, task, records)
            Watched.begun.append(task.name)
            Watched.before(self, number, task)
            return future

        def kill(self, number):
            for pid in list(self._pools[number]._processes):
                os.kill(pid, signal.SIGKILL)

        def pids(self):
            return [pid for pool in self._pools for pid in pool._processes]

    monkeypatch.setattr(workers, "Processes", Watched)
    return Watched


# Whole runs


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_two_processes_leave_the_folder_of_one_to_the_byte(result, tmp_path):
    found = SMALL.run(tmp_path / "run", progress=False, n_jobs=2)
    assert whole(found.path) == whole(result.path)
    assert found.results == result.results


@pytest.mark.slow
def test_the_command_takes_a_number_of_jobs(tiny, tmp_path, capsys):
    out = str(tmp_path / "run")
    options = "--network mlp --n-train 100 --n-test 30 --n-kernel 20 --epochs 2 --flip-epoch 1 --fractions 0.5"
    options += (
        " --train-steps 2 --test-steps 2 --stage2-epochs 1 --dynamics centered --stage2 benign --n-features 0"
    )
    options += " --batch-size 50 --regimes benign --stage2-from"
    assert main(["evolve", "--out", out, "--jobs", "2", *options.split()]) == 0
    assert "5 results" in capsys.readouterr().out
    found = whole(out)
    del found["report.html"]
    assert found == whole(tiny.path)
    assert main(["evolve", "--out", out, "--jobs", "0", *options.split()]) == 2
    assert "--jobs must be None or an integer other than 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.sweep
def test_seeds_that_are_added_are_computed_by_several_processes(tiny, tmp_path):
    alone = replace(TINY, seeds=2).run(tmp_path / "alone", progress=False)
    TINY.run(tmp_path / "run", progress=False)
    found = replace(TINY, seeds=2).run(tmp_path / "run", progress=False, n_jobs=2)
    assert whole(found.path) == whole(alone.path)


@pytest.mark.slow
@pytest.mark.sweep
def test_early_stopping_is_that_of_one_process(tmp_path):
    # a learning rate that changes nothing: the first state is the best
    experiment = replace(
        SMALL, regimes=("benign", "flip"), stage2_from=(("benign", 4.0),), epochs=4, flip_epoch=3, fractions=(),
        learning_rate=1e-6, patience=1, n_validation=30, stage2_epochs=0, n_features=0,
    )  # fmt: skip
    alone = experiment.run(tmp_path / "alone", progress=False)
    assert [record["epoch"] for record in alone.of_kind("stopped", regime="benign")] == [2.0, 3.0, 4.0]
    assert whole(experiment.run(tmp_path / "run", progress=False, n_jobs=2).path) == whole(alone.path)


# What happens to workers


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("0/adversarial/training", marks=pytest.mark.sweep),
        "0/adversarial/2/centered/benign",
        pytest.param("0/transfer", marks=pytest.mark.sweep),
    ],
)
def test_the_task_of_a_worker_that_is_killed_is_done_again_with_a_warning(result, tmp_path, watched, victim):
    killed = []

    def kill_once(processes, number, task):
        if task.name == victim and not killed:
            killed.extend(processes._pools[number]._processes)
            processes.kill(number)

    watched.before = staticmethod(kill_once)
    watched.begun.clear()
    with pytest.warns(
        RuntimeWarning, match=rf"a worker was lost \(SIGKILL.*\); its task {victim} is done again.*memory="
    ) as told:
        found = SMALL.run(tmp_path / "run", progress=False, n_jobs=2)
    assert len([one for one in told if "lost" in str(one.message)]) == 1
    # nobody else's work is done twice
    assert sorted(watched.begun) == sorted([*set(watched.begun), victim])
    assert whole(found.path) == whole(result.path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a worker was lost:RuntimeWarning")
def test_a_task_that_loses_its_worker_every_time_is_an_error_that_names_it(tiny, tmp_path, watched):
    def kill(processes, number, task):
        if task.name == "0/benign/1":
            processes.kill(number)

    watched.before = staticmethod(kill)
    watched.begun.clear()
    with pytest.raises(RuntimeError, match=r"the task 0/benign/1 has lost its worker 4 times.*memory="):
        TINY.run(tmp_path / "run", progress=False, n_jobs=2)
    assert watched.begun.count("0/benign/1") == 4
    watched.before = staticmethod(lambda *_: None)
    assert whole(TINY.run(tmp_path / "run", progress=False, n_jobs=2).path) == whole(tiny.path)


@pytest.mark.slow
def test_an_interrupt_ends_the_workers_and_keeps_what_is_finished(result, tmp_path, watched, monkeypatch):
    pids, add = [], OrderedResults.add

    def interrupted(self, record):
        add(self, record)
        if len(self.records) == 4:
            raise KeyboardInterrupt

    watched.before = staticmethod(lambda processes, *_: pids.extend(processes.pids()))
    monkeypatch.setattr(OrderedResults, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SMALL.run(tmp_path / "run", progress=False, n_jobs=2)
    assert len(set(pids)) == 2
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    run = RunDirectory(tmp_path / "run")
    assert len({record["task"] for record in [*run.results(), *run.waiting.read()]}) == 4
    # what is read meanwhile is what one process would have written so far
    there = run.lines.file.read_bytes() if run.lines.file.exists() else b""
    assert whole(result.path)["results.jsonl"].startswith(there)
    monkeypatch.setattr(OrderedResults, "add", add)
    watched.begun.clear()
    taken, take = [], Measurements.take
    monkeypatch.setattr(Measurements, "take", lambda self, task: (taken.append(task), take(self, task))[1])
    assert whole(SMALL.run(tmp_path / "run", progress=False).path) == whole(result.path)
    assert len(taken) == len(result.results) - 4 and not watched.begun


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_error_names_its_task_and_leaves_what_comes_before(tmp_path, n_jobs):
    experiment = replace(SMALL, learning_rate=1e30, regimes=("benign", "adversarial"), fractions=())
    with pytest.raises(TrainingDivergedError, match="training diverged in epoch 0") as raised:
        experiment.run(tmp_path / "run", progress=False, n_jobs=n_jobs)
    (note,) = raised.value.__notes__
    assert note == ("in the task 0/benign/1" if n_jobs == 1 else "in the task 0/benign/training")
    lines = (tmp_path / "run" / "results.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["task"] for line in lines] == ["0/benign/0"]
    if n_jobs == 2:
        assert "in a worker" in str(raised.value.__cause__) and "_check_finite" in str(raised.value.__cause__)


@pytest.mark.slow
def test_warnings_of_workers_reach_the_user(tmp_path):
    folder = tmp_path / "run"
    TINY.run(folder, progress=False)
    before = whole(folder)
    (folder / "results.jsonl").unlink()
    file = folder / "checkpoints" / "seed-0" / "benign" / "0001.000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.warns(RuntimeWarning, match=r"0001\.000\.safetensors is damaged"):
        TINY.run(folder, progress=False, n_jobs=2)
    assert whole(folder) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_dask_cluster_leaves_the_same_folder(tiny, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    options = {"threads_per_worker": 1, "dashboard_address": None, "local_directory": str(tmp_path / "dask")}
    with (
        distributed.LocalCluster(n_workers=2, **options) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        found = TINY.run(tmp_path / "run", progress=False)
    assert whole(found.path) == whole(tiny.path)


# What they are


def given_environment(monkeypatch, **variables):
    for name in ("XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_each_worker_sees_a_gpu_of_its_own_where_there_are_several(monkeypatch):
    given_environment(monkeypatch, CUDA_VISIBLE_DEVICES="3, GPU-5")
    assert [workers.environment(number, 2, 8) for number in range(2)] == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "GPU-5"},
    ]
    shared = workers.environment(2, 3, 8)
    assert shared == {"CUDA_VISIBLE_DEVICES": "3", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def test_gpus_are_counted_by_their_driver_unless_the_environment_names_them(monkeypatch, tmp_path):
    given_environment(monkeypatch)
    monkeypatch.setattr(workers, "CARDS", tmp_path)
    assert workers.visible_cards() == []
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert workers.visible_cards() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert workers.visible_cards() == [] and workers.environment(0, 2, 4) == {}


def test_a_worker_with_one_thread_keeps_the_flags_that_are_set(monkeypatch):
    given_environment(monkeypatch, CUDA_VISIBLE_DEVICES="", XLA_FLAGS="--xla_dump_to=/tmp/x")
    assert workers.environment(0, 2, 1) == {"XLA_FLAGS": "--xla_dump_to=/tmp/x --xla_cpu_multi_thread_eigen=false"}
    assert workers.environment(0, 2, 2) == {}


@pytest.mark.parametrize("n_jobs", [0, 1.5, "2", True, float("nan")])
def test_what_is_no_number_of_jobs_is_refused_before_anything_is_written(tmp_path, n_jobs):
    with pytest.raises(ValueError, match="n_jobs must be None or an integer other than 0"):
        TINY.run(tmp_path / "run", n_jobs=n_jobs)
    assert not (tmp_path / "run").exists()


def test_jobs_are_counted_as_joblib_does():
    assert workers.count_processes(None) == workers.count_processes(1) == 1
    assert workers.count_processes(-1) == joblib.effective_n_jobs(-1)
    with joblib.parallel_config(n_jobs=3):
        assert workers.count_processes(None) == 3
    with joblib.parallel_config(backend="threading"):
        assert workers.count_processes(1) == 1
        with pytest.raises(ValueError, match="must be 'loky', its default, or 'dask', got ThreadingBackend"):
            workers.count_processes(2)


# Which task comes next


@pytest.fixture
def scheduled(tmp_path):
    """Makes the schedule of an experiment in an empty folder, and the records that it looks at."""

    def schedule(experiment):
        splits = load_splits("digits", n_train=100, n_test=30)
        run = RunDirectory.open(tmp_path / "run", settings_of(experiment, splits))
        records = {}
        return Schedule(States(experiment, run, splits), records), records

    return schedule


def carried_out(schedule, records, n_workers=2):
    """The order in which tasks are given out, where all take as long; training writes its states at its end."""
    order, known = [], [set() for _ in range(n_workers)]
    while True:
        running = []
        for number in range(n_workers):
            others = set().union(*(kinds for at, kinds in enumerate(known) if at != number))
            task = schedule.next(known[number], others, [task.name for task in running])
            if task is not None:
                running.append(task)
                known[number].add(program(task))
        if not running:
            return order
        for task in running:
            order.append(task.name)
            if task.measure is Measurements.training:
                regime, states = task.on["regime"], schedule.states
                for epoch in own_epochs(schedule.experiment, regime):
                    file = states.file(task.on["seed"], regime, epoch)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
            else:
                records[task.name] = {"task": task.name}
            schedule.done(task)


@pytest.mark.parametrize(
    "experiment",
    [
        KernelEvolution(),
        KernelEvolution(seeds=2, regimes=("flip", "benign"), stage2_from=(("flip", 20.0),)),
        KernelEvolution(patience=3, n_validation=20),
        KernelEvolution(stage2_from=()),
        KernelEvolution(epochs=0, flip_epoch=0, regimes=("benign",)),
    ],
)
@pytest.mark.parametrize("n_workers", [1, 2, 7])
def test_every_task_is_given_out_once_and_after_what_it_needs(scheduled, experiment, n_workers):
    schedule, records = scheduled(experiment)
    order = carried_out(schedule, records, n_workers)
    names = [task.name for task in tasks_of(experiment)]
    assert sorted(name for name in order if not name.endswith("training")) == sorted(names)
    assert len(set(order)) == len(order) and schedule.left == []
    place = {name: at for at, name in enumerate(order)}
    for name, before in needs_of(experiment).items():
        assert all(place[one] < place[name] for one in before)
    for task in tasks_of(experiment):
        if experiment.patience is None and "regime" in task.on:
            assert place[f"{task.on['seed']}/{task.on['regime']}/training"] < place[task.name]


def test_training_comes_first_and_flip_waits_for_its_state(scheduled):
    schedule, records = scheduled(KernelEvolution())
    order = carried_out(schedule, records)
    assert order[:2] == ["0/benign/training", "0/adversarial/training"] and order[2] == "0/flip/training"


def test_states_that_are_there_are_measured_while_training_goes_on(scheduled):
    schedule, _ = scheduled(KernelEvolution(regimes=("benign",)))
    training = schedule.next((), (), ())
    assert training.name == "0/benign/training" and training.on["epoch"] == 20.0
    assert schedule.next((), (), [training.name]) is None
    file = schedule.states.file(0, "benign", 0.125)
    file.parent.mkdir(parents=True)
    file.touch()
    assert schedule.next((), (), [training.name]).name == "0/benign/0.125"


def test_after_an_error_only_what_comes_before_is_done(scheduled):
    experiment = KernelEvolution(epochs=2, fractions=(), flip_epoch=1)
    schedule, records = scheduled(experiment)
    trainings = [schedule.next((), (), ()), schedule.next((), (), ["0/benign/training"])]
    for epoch in (0.0, 1.0):
        file = schedule.states.file(0, "adversarial", epoch)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    names = [task.name for task in tasks_of(experiment)]
    assert schedule.failed(trainings[1]) == names.index("0/adversarial/2")
    order = carried_out(schedule, records)
    assert sorted(records) == sorted(names[: names.index("0/adversarial/2")])
    assert "0/flip/training" not in order


def test_a_worker_is_given_what_it_has_compiled_and_others_have_not(scheduled):
    schedule, _ = scheduled(KernelEvolution(seeds=1))
    for regime in ("benign", "adversarial", "flip"):
        schedule._training.pop((0, regime))
    measured, drawn = (("checkpoint", None, None, None), ("images", None, None, None))
    # closed forms, and then the transfer matrix, wait for the states that stage 2 starts from
    assert schedule.next({measured}, (), ()).name == "0/benign/20"
    assert schedule.next({measured}, (), ["0/benign/20", "0/adversarial/20"]).name == "0/benign/0"
    assert schedule.next({drawn}, {measured}, ()).name == "0/benign/images"
    assert schedule.next((), {measured, drawn}, ()).measure is Measurements.stage_two


class Pretended:
    """A worker that does nothing for the tasks of stage 1, and is killed now and then while it is idle."""

    n_workers, lost = 1, (BrokenExecutor,)

    def __init__(self, states):
        self.states, self.alive, self.renewed = states, True, 0

    def submit(self, number, task, records):
        if not self.alive:
            raise BrokenExecutor("it was killed")
        self.alive = task.name != "0/benign/1"
        if task.measure is Measurements.training:
            for epoch in own_epochs(self.states.experiment, task.on["regime"]):
                file = self.states.file(0, task.on["regime"], epoch)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        future = Future()
        future.set_result(workers.Outcome({"task": task.name}))
        return future

    def renew(self, number):
        self.alive, self.renewed = True, self.renewed + 1


@pytest.mark.filterwarnings("error")
def test_a_worker_that_is_killed_while_it_is_idle_is_replaced_without_a_word(scheduled):
    schedule, records = scheduled(replace(TINY, stage2=(), epochs=2))
    names = [task.name for task in schedule.tasks]
    results = OrderedResults(schedule.states.run, names, records, ())
    pretended = Pretended(schedule.states)
    workers.share(schedule, results, pretended, Progress([], 0, shown=False))
    assert [record["task"] for record in schedule.states.run.results()] == names and pretended.renewed == 1


def test_results_are_written_in_their_order_and_wait_for_each_other(tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"epochs": 1})
    results = OrderedResults(run, ["a", "b", "c", "d"], {}, ())
    for name, there, waiting in (("b", "", "b"), ("a", "ab", ""), ("d", "ab", "d"), ("c", "abcd", "")):
        results.add({"task": name})
        assert "".join(record["task"] for record in run.results()) == there
        assert [record["task"] for record in run.waiting.read()] == list(waiting)
    assert not run.waiting.file.exists()
    run.waiting.append({"task": "e"})
    again = OrderedResults(run, "abcde", {name: {"task": name} for name in "abcde"}, "abcd")
    assert [record["task"] for record in run.results()] == list("abcde") and list(again.records) == list("abcde")
    assert not run.waiting.file.exists()


# Bits


def test_factorisations_have_the_same_bits_in_any_number_of_threads():
    A = np.random.default_rng(0).normal(size=(300, 600))
    K = A @ A.T
    found = []
    for threads in (1, max(2, host_threads())):
        with blas().limit(limits=threads), one_thread_each():
            assert host_threads() == threads
            found.append((scipy.linalg.cholesky(K), *scipy.linalg.eigh(K)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_worker_plans_memory_for_the_threads_of_its_parent():
    with planned_for(7):
        assert planned_threads() == 7 and host_threads() != 7
    assert planned_threads() == host_threads()


def test_an_error_that_cannot_be_copied_is_told_in_words():
    class Odd(Exception):
        def __init__(self, a, b):
            super().__init__(a)

    error = workers._sendable(Odd("it is odd", 2))
    assert type(error) is RuntimeError and str(error) == "Odd: it is odd"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(workers._sendable(ValueError("plain"))) == "plain"
