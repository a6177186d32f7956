"""Check and measure the CUDA backend on a machine with a GPU: everything, in one command.

    python benchmarks/cuda.py                   # builds, measures, tests, sanitises: under ten minutes
    python benchmarks/cuda.py --only measure    # only the rows, with the package that Python finds
    python benchmarks/cuda.py --output "$OUT"   # where cuda.md goes; benchmarks/results without it

Needs CUDA's compiler, CMake, nanobind, pytest, hypothesis and torch (scikit-image for photographs,
compute-sanitizer for that part), but no network and no installed package: it builds the sources of this
checkout in build/cuda-bench and uses them from there. cuda.md is written anew after every row and step, so
that nothing measured is lost when the time is up. Every row has a time limit of its own, and a row that
fails, hangs or takes its process down costs no other: the rest goes on in a new process.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from json import loads
from pathlib import Path
from typing import Any

from cuda_rows import COLUMNS, DONE, ROWS, START

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "cuda-bench"
ROW_SCRIPT = Path(__file__).with_name("cuda_rows.py")
STEPS = ("build", "measure", "test", "sanitise")

START_S = 60.0
"""What a process may take before its first row: importing torch, and loading what a bare machine has cold."""

BUILD_S, TEST_S, SANITISE_S = 300.0, 200.0, 150.0
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


# --- The report ------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What is known so far, in a file that is replaced whenever something is added."""

    path: Path
    steps: dict[str, str] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, text: str, log: str = "") -> None:
        """Add how a step went; `log` where it failed."""
        self.steps[name] = text
        if log:
            self.logs[name] = log
        print(f"{name}: {text}", flush=True)
        self.write()

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Add a row."""
        self.rows[name] = result
        print(f"{name}: {result}", flush=True)
        self.write()

    def write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(self.text(), encoding="utf-8")
        temporary.replace(self.path)

    def text(self) -> str:
        """Return the report in Markdown."""
        where = f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
        lines = [
            "# The lattice on a GPU",
            "",
            f"`python benchmarks/cuda.py`, {datetime.date.today()}, {where}",
            "",
        ]
        lines += ["| step | result |", "|---|---|"]
        lines += [f"| {name} | {text} |" for name, text in self.steps.items()]
        lines += ["", "| bar | |", "|---|---|"]
        lines += [f"| {row.bar} | {self.verdict(name)} |" for name, row in ROWS.items() if row.bar]
        lines += ["", "## Times", ""]
        lines += [
            "Milliseconds of wall time with the GPU's work, median of 15 (5 for the largest), features on",
            "the GPU before, theta 160/3/3, ten iterations. *all*: both lattices, norms and iterations;",
            "*image*: with the spatial lattice kept from an image of the same size; *iterations*: both kept;",
            "*general*: the same with full matrices. *error*: |ΔQ| against the CPU, 99.99th percentile /",
            "maximum / share of pixels with another argmax.",
            "",
            f"| case | {' | '.join(COLUMNS)} |",
            "|---" * (len(COLUMNS) + 1) + "|",
        ]
        timed = {name: result["cells"] for name, result in self.rows.items() if "cells" in result}
        lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in timed.items()]
        lines += ["", "## Beside these", ""]
        lines += [f"- {name}: {result['text']}" for name, result in self.rows.items() if "text" in result]
        for name, log in self.logs.items():
            lines += ["", f"## The end of the log of {name}", "", "```", log, "```"]
        return "\n".join([*lines, ""])

    def verdict(self, name: str) -> str:
        """Return what a row has found, in words."""
        if name not in self.rows:
            return "not measured"
        result = self.rows[name]
        if "passed" not in result or result.get("text", "").startswith("FAILED"):
            return str(result.get("text", "not measured"))
        found = f"{result['cells'][1]} ms" if "cells" in result else result["text"]
        return f"{'met' if result['passed'] else 'MISSED'}: {found}"


# --- The steps -------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Return the environment in which Python finds the package that `build` made."""
    return {**os.environ, "PYTHONPATH": str(WORK / "package"), "PYTHONUNBUFFERED": "1"}


def stop(process: subprocess.Popen[str]) -> None:
    """End a process with all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def build(limit_s: float) -> None:
    """Compile the sources and lay the package out in WORK/package."""
    package = WORK / "package" / "napari_crfasrnn"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(
        ROOT / "src" / "napari_crfasrnn", package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    env = dict(os.environ)
    toolkit = Path("/usr/local/cuda/bin/nvcc")
    if "CUDACXX" not in env and shutil.which("nvcc") is None and toolkit.exists():
        env["CUDACXX"] = str(toolkit)
    cmake = ["cmake"] if shutil.which("cmake") else [sys.executable, "-m", "cmake"]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    where = [sys.executable, "-m", "nanobind", "--cmake_dir"]
    nanobind = subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()
    settings = {
        "CRFASRNN_CUDA": "on",
        "CRFASRNN_HOST_LOOPS": "ON",
        "CMAKE_CUDA_FLAGS": "-lineinfo",  # for the sanitizer and for profiles; the code is the same
        "Python_EXECUTABLE": sys.executable,
        "nanobind_DIR": nanobind,
    }
    folder = WORK / "cmake"
    options = [f"-D{name}={value}" for name, value in settings.items()]
    targets = ("_lattice", "_lattice_items", "_lattice_cuda")
    start = time.monotonic()
    with (WORK / "build.log").open("w") as log:
        for command in (
            [*cmake, "-S", str(ROOT), "-B", str(folder), *generator, *options],
            [*cmake, "--build", str(folder), "-j", str(len(os.sched_getaffinity(0))), "--target", *targets],
        ):
            process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, text=True, start_new_session=True
            )
            try:
                status = process.wait(limit_s - (time.monotonic() - start))
            finally:
                stop(process)
            if status != 0:
                raise subprocess.CalledProcessError(status, command)
    for target in targets:
        newest = max(folder.glob(f"{target}.*so"), key=lambda path: path.stat().st_mtime)
        shutil.copy(newest, package / "_ext")


def measure(names: Sequence[str], env: dict[str, str], deadline: float, report: Report) -> None:
    """Do the rows, in new processes as long as some are left."""
    pending = list(names)
    while pending and time.monotonic() < deadline:
        started = _measure_in_one_process(pending, env, deadline, report)
        if not started:
            for name in pending:  # what keeps the first from starting keeps all
                report.rows.setdefault(name, {"text": "FAILED: see above", "passed": False})
            break
    for name in pending:
        report.rows.setdefault(name, {"text": "not measured: no time was left"})
    report.write()


def _measure_in_one_process(pending: list[str], env: dict[str, str], deadline: float, report: Report) -> bool:
    """Do rows until one fails, and take them from the list; return whether any was started."""
    command = [sys.executable, str(ROW_SCRIPT), *pending]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    started = False
    tail: list[str] = []
    limit = time.monotonic() + START_S
    reason = ""
    while pending:
        try:
            line = lines.get(timeout=max(0.0, min(limit, deadline) - time.monotonic()))
        except queue.Empty:
            if time.monotonic() >= deadline:
                reason = "the time for everything was up"
            else:
                reason = f"took more than {ROWS[pending[0]].limit_s:g} s"
            break
        if line is None:
            reason = f"exit status {process.wait()}: {tail[-1] if tail else 'nothing was printed'}"
            break
        if line.startswith(START):
            limit = time.monotonic() + ROWS[pending[0]].limit_s + (0.0 if started else START_S)
            started = True
            tail = []
        elif line.startswith(DONE):
            report.add(pending.pop(0), loads(line.removeprefix(DONE)))
            limit = time.monotonic() + START_S
        else:
            tail = [*tail[-30:], line]
    stop(process)
    if pending:
        name = pending[0]
        if started:
            pending.pop(0)
        report.logs[f"row {name}"] = "\n".join(tail)
        report.add(name, {"text": f"FAILED: {reason.replace('|', '/')}", "passed": False})
    return started


def test_command(*files: str) -> list[str]:
    """Return how to run the tests in these files that are about the GPU."""
    # Without the project's pytest settings: they name plugins that a bare machine lacks.
    settings = ["-q", "-rfE", "-c", os.devnull, f"--rootdir={ROOT}", "-p", "no:cacheprovider"]
    return [
        sys.executable,
        "-m",
        "pytest",
        *settings,
        "-k",
        "cuda",
        *[str(ROOT / "tests" / name) for name in files],
    ]


def sanitise_command(tool: str) -> list[str]:
    """Return how to run every kernel once under a tool of compute-sanitizer."""
    options = ["--tool", tool, "--error-exitcode", "9"]
    if tool != "initcheck":  # which must see what other kernels write
        options += ["--kernel-name", "kns=crfasrnn"]
    return ["compute-sanitizer", *options, sys.executable, str(ROW_SCRIPT), "small"]


def check(
    commands: dict[str, tuple[list[str], dict[str, str], float]], deadline: float, report: Report
) -> None:
    """Run commands side by side, each within its time, and report their last lines and exit statuses."""
    running = {}
    for name, (command, env, limit_s) in commands.items():
        log = (WORK / f"{name.replace(' ', '_')}.log").open("w")
        process = subprocess.Popen(
            command,
            env=env,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        running[name] = (process, Path(log.name), min(deadline, time.monotonic() + limit_s), time.monotonic())
        log.close()
    while running:
        for name, (process, log_path, limit, start) in list(running.items()):
            is_late = time.monotonic() >= limit
            if process.poll() is None and not is_late:
                continue
            stop(process)
            lines = log_path.read_text(errors="replace").strip().splitlines() or ["nothing was printed"]
            outcome = "NOT DONE in time" if is_late else "clean" if process.returncode == 0 else "FAILED"
            text = f"{outcome}: {lines[-1].strip('= ')} ({time.monotonic() - start:.0f} s)"
            report.note(name, text.replace("|", "/"), "" if outcome == "clean" else "\n".join(lines[-60:]))
            del running[name]
        time.sleep(0.2)


def attempt(name: str, report: Report, work: Callable[[], None], log: Path) -> bool:
    """Do a step, report how it went and how long it took."""
    start = time.monotonic()
    try:
        work()
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        tail = log.read_text(errors="replace").splitlines()[-60:] if log.exists() else []
        report.note(name, f"FAILED: {type(error).__name__}: {error}".replace("|", "/"), "\n".join(tail))
        return False
    report.note(name, f"done ({time.monotonic() - start:.0f} s)")
    return True


def main() -> int:
    """Run the steps; 0 when all was done and every bar was met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", choices=STEPS, action="append", help="a step (may come several times); all without"
    )
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), metavar="ROW", help="only these rows")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder for cuda.md"
    )
    parser.add_argument("--budget", type=float, default=570.0, help="seconds for everything")
    arguments = parser.parse_args()
    steps = arguments.only or STEPS
    deadline = time.monotonic() + arguments.budget
    arguments.output.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    report = Report(arguments.output / "cuda.md")
    if "build" in steps and not attempt("build", report, lambda: build(BUILD_S), WORK / "build.log"):
        return 1
    env = environment() if (WORK / "package").is_dir() and arguments.only != ["measure"] else dict(os.environ)
    # The figures first: they are what the machine was asked for.
    if "measure" in steps:
        measure(arguments.rows or list(ROWS), env, deadline, report)
    commands = {}
    if "test" in steps:
        commands["tests"] = (test_command("ext/test_cuda.py", "ext/test_lattice.py"), env, TEST_S)
        if importlib.util.find_spec("pydantic") is not None:  # which CrfRnn's configuration needs
            of_layer = test_command("ext/test_cuda_items.py", "core/test_crf.py")
            commands["tests of CrfRnn"] = (of_layer, env, TEST_S)
    if "sanitise" in steps and shutil.which("compute-sanitizer") is None:
        report.note("compute-sanitizer", "NOT DONE: it is not here")
    elif "sanitise" in steps:
        # Without torch's cache every block is one allocation, whose ends the sanitizer knows.
        alone = {**env, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        for tool in SANITIZERS:
            commands[f"compute-sanitizer {tool}"] = (sanitise_command(tool), alone, SANITISE_S)
    check(commands, deadline, report)
    print(report.path.read_text(encoding="utf-8"))
    failed = [text for text in report.steps.values() if not text.startswith(("done", "clean"))]
    return 1 if failed or not all(result.get("passed", True) for result in report.rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
