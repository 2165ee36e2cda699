"""The runner of ``gpu_check.py`` and ``bench_gpu.py``: sections in processes of their own, which lose nothing.

A section that fails, hangs or runs out of memory is ended when its time is up, and what it had found by then is
kept. A process serves several sections, since starting one takes seconds. The JSON file is written after each
section, whole or not at all. This file needs nothing but Python.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Set before JAX starts: memory taken as it is needed, and how much of the card at most; CuPy gets the rest.
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.8",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
}
# Seconds between two looks at a running section, and the least that one is started with.
LOOK, LEAST = 0.05, 3.0


@dataclass(frozen=True)
class Section:
    """A part of a run, carried out by one function.

    Attributes
    ----------
    name : str
        Of its function, without ``check_`` or ``bench_``.
    process : str
        Sections in a row with one name share a process.
    seconds : float
        After which it is ended.
    is_long : bool
        Run only if that is asked for.
    """

    name: str
    process: str
    seconds: float
    is_long: bool = False


def carried_out(script: Path, sections, options, found: dict) -> int:
    """Run sections one after the other, and return the exit status.

    Parameters
    ----------
    script : Path
        Called with ``--results FOLDER --only NAME ...`` it runs these sections, each to its file in the folder.
    sections : list of Section
    options : Namespace
        ``out``, ``toy``, ``seconds`` in all, ``cache`` and ``wheels``.
    found : dict
        What else is written to the JSON file.

    Returns
    -------
    int
        0 if nothing has failed, 1 if something has, 2 if there is no GPU.
    """
    out = Path(options.out)
    found = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "toy": options.toy,
        "seconds": options.seconds,
        **found,
    }
    found["sections"] = {section.name: {"status": "not run", "reason": "no time was left"} for section in sections}
    # also to find out now whether it can be written
    if options.wheels and not Path(options.wheels).is_dir():
        sys.exit(f"--wheels must be a folder, got {options.wheels}")
    try:
        if out.is_dir():
            raise IsADirectoryError("it is a folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, found)
    except OSError as error:
        sys.exit(f"--out must be a file that can be written, got {out}: {error}")
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        environment = environment_of(options, folder)
        for name, result in results(script, sections, Path(folder), options.toy, environment, deadline):
            found["sections"][name] = result
            write_atomically(out, found)
            print(line_of(name, result), flush=True)
    write_atomically(out, found)
    failed = [name for name, result in found["sections"].items() if result["status"] not in ("passed", "not run")]
    print(f"{out}: " + (f"failed: {', '.join(failed)}" if failed else "nothing has failed"))
    without = found["sections"].get("device", {}).get("status") == "not run"
    return 1 if failed else 2 if without else 0


def environment_of(options, folder) -> dict:
    """Return the environment of the sections' processes; what is set already stays."""
    places = [str(HERE), str(HERE.parent), *map(str, sorted(Path(options.wheels or os.devnull).glob("*.whl")))]
    path = os.pathsep.join(filter(None, [*places, os.environ.get("PYTHONPATH")]))
    cache = {"JAX_COMPILATION_CACHE_DIR": options.cache or os.path.join(folder, "cache")}
    return {**ENVIRONMENT, **cache, **os.environ, "PYTHONPATH": path}


def results(script, sections, folder, toy, environment, deadline):
    """Pairs of a section's name and what it found, as they come."""
    left = list(sections)
    while left and deadline - time.monotonic() > LEAST:
        batch = [left[0]]
        while len(batch) < len(left) and left[len(batch)].process == left[0].process:
            batch.append(left[len(batch)])
        for name, result in of_one_process(script, batch, folder, toy, environment, deadline):
            left.pop(0)
            yield name, result


def of_one_process(script, batch, folder, toy, environment, deadline):
    """Run the sections of one process, and return what they found, to the first that did not end by itself."""
    names = [section.name for section in batch]
    command = [sys.executable, str(script), "--results", str(folder), "--only", *names]
    command += ["--toy"] if toy else []
    log = folder / f"{names[0]}.log"
    with log.open("w") as output:
        child = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        for section in batch:
            started = time.monotonic()
            until = min(deadline, started + section.seconds)
            path = folder / f"{section.name}.json"
            while time.monotonic() < until and child.poll() is None and not is_done(path):
                time.sleep(LOOK)
            if time.monotonic() >= until and started >= deadline - LEAST and not path.exists():
                return
            taken = time.monotonic() - started
            reason = f"ended after {taken:.0f} s" + (", when all time was up" if until == deadline else "")
            yield section.name, outcome(path, child, log, taken, reason)
            if not is_done(path):
                return
    finally:
        end(child, grace=3 if is_done(folder / f"{names[-1]}.json") else 0)


def is_done(path) -> bool:
    """Tell whether a section has ended by itself."""
    return path.exists() and json.loads(path.read_text())["status"] != "running"


def outcome(path, child, log, seconds, reason) -> dict:
    """Return what a section found, or how it ended."""
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("status", "running") != "running":
        return found
    code = child.poll()
    if code is None:
        return {**found, "status": "timed out", "reason": reason, "seconds": seconds}
    last = log.read_text(errors="replace")[-2000:]
    return {**found, "status": "crashed", "reason": f"its process ended with {code}", "output": last}


def end(child, grace) -> None:
    """End a process and what it has started; one that is done has a moment to go by itself."""
    try:
        child.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def line_of(name, result) -> str:
    """One line for people."""
    checks, figures = result.get("checks", []), result.get("figures", {})
    wrong = [f"WRONG: {check['what']}: {check['value']}" for check in checks if not check["ok"]]
    shares = [f"{key} {value:.2g}" for key, value in figures.items() if "share" in key or "/s" in key]
    counted = f"{sum(check['ok'] for check in checks)} of {len(checks)} checks hold" if checks else ""
    text = f"{name:<11} {result['status']:<9} {result.get('seconds', 0):6.1f} s  "
    return text + "; ".join(filter(None, [result.get("reason", ""), counted, *wrong, *shares]))


def write_atomically(path: Path, content) -> None:
    """JSON, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1, default=str) + "\n")
    beside.replace(path)
