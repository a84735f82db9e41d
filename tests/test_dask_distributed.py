"""A real cluster of processes: the same answers, also when a worker is killed half-way."""

import contextlib
import os
import signal
import tempfile
import time
import warnings

import cases
import numpy as np
import pytest

import fastxent

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
import fastxent.dask as chunked  # noqa: E402


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two workers, each a process with one thread and a nanny that starts another in its place."""
    settings = {
        "temporary-directory": str(tmp_path_factory.mktemp("dask")),
        "distributed.worker.daemon": True,
        "distributed.scheduler.allowed-failures": 10,
    }
    with dask.config.set(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sockets and loops that are closing
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client


def padded_batch(shape):
    random = cases.rng(*shape)
    logits = random.normal(size=shape).astype("f4")
    return logits, random.integers(0, shape[-1], shape[:-1]), random.integers(0, shape[1] + 1, shape[0])


@pytest.mark.parametrize("chunks", [(2, 8, 50), (4, 4, 13)])
def test_a_cluster_gives_the_same_answer(client, chunks):
    logits, targets, lengths = padded_batch((8, 16, 50))
    keywords = {"lengths": lengths, "shift": 1}
    x = da.from_array(logits, chunks=chunks)
    got = client.compute(chunked.cross_entropy_and_grad(x, targets, reduction="sequence_mean", **keywords), sync=True)
    expected = fastxent.cross_entropy_and_grad(logits, targets, reduction="sequence_mean", **keywords)
    assert got[0] == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-9)
    found = client.compute(tuple(chunked.token_statistics(x, targets, **keywords)), sync=True)
    for mine, theirs in zip(found, fastxent.token_statistics(logits, targets, **keywords), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_an_index_out_of_range_comes_back_as_it_is(client):
    targets = np.zeros((4, 6), int)
    targets[3, 5] = -7
    with pytest.raises(IndexError, match=r"position \(3, 5\) is -7"):
        client.compute(chunked.cross_entropy(da.zeros((4, 6, 8), chunks=(2, 3, 4)), targets), sync=True)


def test_a_worker_is_killed_half_way(client, tmp_path):
    logits, targets, lengths = padded_batch((24, 16, 40))

    def slow(block, folder=str(tmp_path)):
        time.sleep(0.05)
        tempfile.mkstemp(dir=folder)
        return block

    x = da.from_array(logits, chunks=(2, 8, 10)).map_blocks(slow, dtype=logits.dtype, meta=np.empty((0, 0, 0), "f4"))
    before = client.run(os.getpid)
    future = client.compute(chunked.cross_entropy(x, targets, lengths=lengths))
    deadline = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < x.npartitions / 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not future.done()
    with contextlib.suppress(ProcessLookupError):
        os.kill(next(iter(before.values())), signal.SIGKILL)
    expected = fastxent.cross_entropy(logits, targets, lengths=lengths)
    assert future.result(timeout=60) == pytest.approx(expected, rel=1e-6)
    client.wait_for_workers(2, timeout=60)
    assert set(client.run(os.getpid).values()) != set(before.values())


def test_states_of_evaluators_are_merged_by_tasks(client):
    logits, targets, lengths = padded_batch((12, 16, 30))

    def score(logits, targets, lengths):
        part = fastxent.Evaluator(num_threads=1)
        part.update(logits, targets, lengths=lengths)
        return part.state_dict()

    def merge(states):
        total = fastxent.Evaluator(num_threads=1)
        for state in states:
            part = fastxent.Evaluator()
            part.load_state_dict(state)
            total.merge(part)
        return total.state_dict()

    rows = [slice(i, i + 3) for i in range(0, 12, 3)]
    parts = [dask.delayed(score)(logits[r], targets[r], lengths[r]) for r in rows]
    state = client.compute(dask.delayed(merge)(parts), sync=True)
    total = fastxent.Evaluator()
    total.load_state_dict(state)
    expected = fastxent.cross_entropy(logits, targets, lengths=lengths)
    assert total.compute().nll == pytest.approx(expected, rel=1e-12)
