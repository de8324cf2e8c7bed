"""The same bits for any number of threads, for several Python threads at once and in forks."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cases
import normkit as nk
from normkit.kernels import threads as threads_module
from normkit.kernels.cpu import access, launch

ROWS = [
    cases.Row("batch", ((32, 24, 28, 28), 1)),
    cases.Row("batch", ((32, 28, 28, 24), -1), memory="plain"),
    cases.Row("batch", ((8, 640, 7, 7), 1), "bfloat16", affine_dtype="float32"),
    cases.Row("batch", ((3, 2, 70001), 1), "float64"),
    cases.Row("layer", ((16, 24, 28, 28), 1)),
    cases.Row("tokens", ((700, 384), -1), gamma="channel"),
    cases.Row("tokens", ((8, 96, 31, 31), 1)),
    cases.Row("group", ((9, 24, 31, 31), 1), residual=True, activation="silu"),
    cases.Row("instance", ((9, 31, 31, 24), -1)),
    cases.Row("ghost", ((9, 24, 31, 31), 1), gamma="sample"),
    cases.Row("rms", ((700, 384), -1), gamma="channel", beta="none"),
    cases.Row("batch", ((16, 24, 28, 28), 1), mask="positions"),
]


@pytest.fixture
def threads(monkeypatch):
    """Set the number of threads; however small the input, all of them get work."""

    def forget():
        access.access_for.cache_clear()
        launch.launcher.cache_clear()

    before = nk.get_num_threads()
    monkeypatch.setattr(access, "THREAD_BYTES", 0)
    forget()
    yield nk.set_num_threads
    nk.set_num_threads(before)
    monkeypatch.undo()
    forget()


def step(problem):
    y, saved = problem.norm.forward(problem.x, problem.gamma, problem.beta, **problem.options)
    grads = problem.norm.backward(problem.dy, saved)
    arrays = [y, grads.x, grads.gamma, grads.beta, saved.statistics.mean, saved.statistics.m2]
    return [np.ascontiguousarray(a).tobytes() for a in arrays if a is not None]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_same_bits_for_any_number_of_threads(row, threads, monkeypatch):
    problem = cases.Problem(row)
    seen = []
    monkeypatch.setattr(
        launch, "run_tasks", lambda *a: seen.append(a) or threads_module.run_tasks(*a)
    )
    results = []
    for n in (1, 2, 3, 4):
        threads(n)
        assert nk.get_num_threads() == n
        results.append(step(problem))
    assert all(result == results[0] for result in results[1:])
    if row.mask is None:  # masks run on the portable kernels
        assert seen
        assert all(worth and tasks > 1 for _, _, tasks, _, worth in seen)


def test_several_python_threads_at_once(threads):
    threads(2)
    problems = [cases.Problem(row) for row in ROWS]
    want = [step(problem) for problem in problems]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(ROWS)), 4))
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda i: step(problems[i]), order))
    for i, result in zip(order, got, strict=True):
        assert result == want[i], ROWS[i]


def test_setting_threads_while_others_compute(threads):
    problem = cases.Problem(ROWS[0])
    want = step(problem)

    def work(i):
        nk.set_num_threads(1 + i % 4)
        return step(problem)

    with ThreadPoolExecutor(4) as pool:
        assert all(result == want for result in pool.map(work, range(16)))


# Forks run in a process of their own: a test process with JAX in it must not fork.
COMMON = """
import multiprocessing, threading, sys
import numpy as np
import normkit as nk

x = np.random.default_rng(0).standard_normal((16, 24, 40, 40)).astype(np.float32)
norm = nk.BatchNorm()
nk.set_num_threads(2)

def step():
    y, saved = norm.forward(x)
    return y.tobytes() + norm.backward(x[::-1].copy(), saved).x.tobytes()

want = step()

def child(queue):
    queue.put((step() == want, nk.cache_size() >= 0))
    nk.set_num_threads(4)
    queue.put((step() == want, True))

def fork(n=2):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=child, args=(queue,)) for _ in range(n)]
    for one in children:
        one.start()
    answers = [queue.get(timeout=60) for _ in range(2 * n)]
    for one in children:
        one.join(60)
        assert one.exitcode == 0, one.exitcode
    assert all(all(answer) for answer in answers), answers
"""

SCRIPTS = {
    "fork after the kernels ran": """
        fork()
        assert step() == want
        """,
    "fork of a fork": """
        def grandchild(queue):
            fork(1)
            queue.put(step() == want)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        one = context.Process(target=grandchild, args=(queue,))
        one.start()
        assert queue.get(timeout=60)
        one.join(60)
        assert one.exitcode == 0
        """,
    "fork while threads are running": """
        stop, bad = threading.Event(), []
        def loop():
            while not stop.is_set():
                if step() != want:
                    bad.append(1)
        loops = [threading.Thread(target=loop) for _ in range(2)]
        for one in loops:
            one.start()
        for _ in range(5):
            fork()
        stop.set()
        for one in loops:
            one.join()
        assert not bad
        """,
    "child that computes first": """
        fork()
        fork()
        assert step() == want
        nk.empty_cache()
        fork()
        """,
}


@pytest.mark.skipif(
    not hasattr(sys, "getwindowsversion") and sys.platform == "darwin",
    reason="macOS does not fork safely",
)
@pytest.mark.parametrize("name", list(SCRIPTS))
def test_fork(name):
    code = COMMON + textwrap.dedent(SCRIPTS[name])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stderr[-3000:]


def test_a_process_that_only_ever_computes_in_children():
    code = textwrap.dedent("""
        import multiprocessing
        import numpy as np
        import normkit as nk
        x = np.random.default_rng(0).standard_normal((64, 32, 16)).astype(np.float32)
        def child(seed):
            return nk.BatchNorm().forward(x)[0].tobytes()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            a = pool.map(child, range(6))
        assert all(b == a[0] for b in a)
        assert nk.BatchNorm().forward(x)[0].tobytes() == a[0]
    """)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stderr[-3000:]
