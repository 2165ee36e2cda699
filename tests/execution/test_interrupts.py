"""Ctrl-C ends what runs: where a callback would swallow it, and while compiled programs ask a classifier."""

import gc
import os
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from ntkrobust_sk import Square, robust_accuracy
from ntkrobust_sk.cli.command import main, process
from ntkrobust_sk.execution.interrupts import heard, pressed

X, Y = np.linspace(0, 1, 8).reshape(4, 2), np.array([0, 0, 1, 1])


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """As in a terminal; what runs in the background may have been started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Thing:
    """What may be referred to weakly."""


def interrupt(*_):
    raise KeyboardInterrupt


def lose_an_interrupt():
    """As if Ctrl-C had come while Python clears a weak reference; then work that should not go on."""
    thing = Thing()
    reference = weakref.ref(thing, interrupt)
    del thing
    assert reference() is None
    time.sleep(2)
    raise AssertionError("it was lost")


def test_an_interrupt_in_the_callback_of_a_weak_reference_ends_the_block():
    with pytest.raises(KeyboardInterrupt), heard():
        lose_an_interrupt()


@pytest.mark.slow
def test_an_interrupt_in_a_callback_of_the_garbage_collector_ends_the_block():
    once = iter([interrupt])

    def callback(*_):
        for last in once:
            last()

    gc.callbacks.append(callback)
    try:
        with pytest.raises(KeyboardInterrupt), heard():
            gc.collect()
            time.sleep(2)
            raise AssertionError("it was lost")
    finally:
        gc.callbacks.remove(callback)


def test_the_command_ends_with_130_though_a_callback_has_swallowed_the_interrupt(monkeypatch, capsys):
    monkeypatch.setattr("ntkrobust_sk.reports.demo.run_demo", lambda *_: lose_an_interrupt())
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "ntkrobust demo: stopped\n"


@pytest.mark.parametrize("status", [0, 2, 130])
def test_the_process_of_the_command_ends_at_once_after_an_interrupt_and_in_order_otherwise(
    status, monkeypatch, capfd
):
    class EndedError(BaseException):
        pass

    def end(status):
        raise EndedError(status)

    def command():
        sys.stdout.write("said before")
        return status

    monkeypatch.setattr("ntkrobust_sk.cli.command.main", command)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(EndedError if status == 130 else SystemExit) as ended:
        process()
    assert ended.value.args == (status,)
    assert capfd.readouterr().out == "said before"


def test_what_else_cannot_be_raised_is_told_of_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))

    def fail(_):
        raise LookupError

    with heard():
        thing = Thing()
        reference = weakref.ref(thing, fail)
        del thing
    assert reference() is None and told == [LookupError]


def test_after_the_block_signals_and_hooks_are_what_they_were():
    before = sys.unraisablehook, signal.getsignal(signal.SIGINT)
    with heard(), heard():
        assert sys.unraisablehook is not before[0]
    assert (sys.unraisablehook, signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1 and not pressed()


def test_where_others_handle_the_signal_or_in_another_thread_nothing_is_changed():
    hook, seen = sys.unraisablehook, []

    def inside():
        with heard():
            seen.append(sys.unraisablehook is hook)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        inside()
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert seen == [True, True]


class Interrupted(ClassifierMixin, BaseEstimator):
    """Answers, and is interrupted at the n-th question."""

    def __init__(self, at=30):
        self.at = at

    def fit(self, X, y):
        self.classes_, self.asked_, self.n_features_in_ = np.unique(y), 0, X.shape[1]
        return self

    def predict_proba(self, X):
        self.asked_ += 1
        if self.asked_ == self.at:
            os.kill(os.getpid(), signal.SIGINT)
            # the system hands it to the main thread when that is given a processor
            until = time.monotonic() + 10
            while not pressed() and time.monotonic() < until:
                time.sleep(0.001)
        first = np.asarray(X)[:, 0] < 0.5
        return np.where(first[:, None], [0.9, 0.1], [0.1, 0.9])

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(1)]


@pytest.mark.slow
def test_a_black_box_that_is_attacked_is_not_asked_for_long_after_the_interrupt(caplog):
    model, attack = Interrupted().fit(X, Y), Square(0.01, n_queries=2000)
    with pytest.raises(KeyboardInterrupt):
        robust_accuracy(model, X, Y, attack)
    assert model.at <= model.asked_ <= model.at + 3
    assert "pure_callback failed" not in caplog.text
    # the same attack goes well afterwards, in the same process
    again = Interrupted(at=None).fit(X, Y)
    assert robust_accuracy(again, X, Y, attack) == 1.0
    assert again.asked_ > 1000
