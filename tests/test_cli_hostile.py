"""Broken and hostile files: one line that names file and fault, exit code 1, no memory taken, nothing loaded."""

import _thread
import io
import json
import os
import pickle
import struct
import sys
import threading
import time
import zipfile
from pathlib import Path

import cli_files as files
import numpy as np
import pytest

from fastxent.cli import main
from fastxent.cli._scores import Scores

LOGITS, TARGETS = files.model((4, 7, 11), "float16")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("good.npy", LOGITS)
    np.save("t.npy", TARGETS)


def fault(capsys, *arguments, code=1):
    """The one line that a command says."""
    assert main([*arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"fastxent {arguments[0]}: ")
    return err


def header(text, version=b"\x01\x00"):
    text = text if isinstance(text, bytes) else text.encode()
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + size + text


def described(shape, descr="<f2", order="False"):
    return f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"


GOOD = files.npy(LOGITS)
DATA = LOGITS.tobytes()
NPY = {
    "empty": (b"", "is empty"),
    "magic": (b"PK\3\4" + GOOD[4:], "does not begin with"),
    "version": (GOOD[:6] + b"\x09\x00" + GOOD[8:], "unknown .npy version 9.0"),
    "no header": (GOOD[:9], "ends within its header"),
    "half a header": (GOOD[:60], "ends within its header"),
    "header of 4 GB": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + GOOD, "header of 4294967295 bytes"),
    "no dict": (header("[1, 2]".ljust(60)) + DATA, "unreadable .npy header"),
    "nested": (header("(" * 5000 + ")" * 5000), "unreadable .npy header"),
    "code": (header("__import__('os').abort()".ljust(60)), "unreadable .npy header"),
    "truncated": (GOOD[:-1], "is cut short"),
    "spare bytes": (GOOD + b"\0", "bytes to spare"),
    "10^18 elements": (header(described("(1000000000, 1000000000)")) + DATA, "takes 2000000000000000000 bytes"),
    "wraps to 616 bytes": (header(described(f"({2**63 + 308}, 2)")) + DATA, "its header has the shape"),
    "product wraps": (header(described(f"({2**32}, {2**32}, 1)")) + DATA, "takes 36893488147419103232 bytes"),
    "negative": (header(described("(-4, -77)")) + DATA, "its header has the shape"),
    "boolean": (header(described("(True, 308)")) + DATA, "its header has the shape"),
    "many axes": (header(described(str((1,) * 60 + (308,)))) + DATA, "shape of at most 32 axes"),
    "object": (files.npy(np.array([{"a": 1}], object)), "pickle"),
    "record": (header(described("(4,)", [("a", "<f2", (77,))])) + DATA, "has the dtype"),
    "huge element": (header(described("(4,)", "S1000000000")) + DATA, "has the dtype"),
    "complex": (files.npy(np.zeros((3, 2), complex)), "has the dtype complex128"),
    "long double": (files.npy(np.zeros((3, 2), np.longdouble)), "has the dtype"),
    "text": (files.npy(np.array(["a"])), "has the dtype"),
    "no classes": (files.npy(np.zeros((3, 0))), "logits without a class"),
    "no axis": (files.npy(np.float32(3)), "is a single number"),
    "boolean logits": (files.npy(np.zeros((3, 2), bool)), "logits are floats or integers"),
}


@pytest.mark.parametrize("name", NPY)
def test_npy(capsys, name):
    data, said = NPY[name]
    Path("bad.npy").write_bytes(data)
    err = fault(capsys, "eval", "bad.npy", "t.npy")
    assert err.startswith("fastxent eval: bad.npy: ")
    assert said in err


def entry(shape=(4, 7, 11), code="F16", offsets=(0, 616)):
    return {"dtype": code, "shape": list(shape), "data_offsets": list(offsets)}


SAFETENSORS = {
    "empty": (b"", "is empty"),
    "header longer than the file": (struct.pack("<Q", 2**63) + b"{}", "cut short"),
    "header of 10 MB": (struct.pack("<Q", 10**7) + b" " * 10**7, "at most 2097152 are read"),
    "no object": (files.safetensors_of(b"[]", DATA), "no JSON object"),
    "no JSON": (files.safetensors_of(b"{'x': 1}", DATA), "unreadable .safetensors header"),
    "nested": (files.safetensors_of(b'{"x":' + b"[" * 10**5, DATA), "unreadable .safetensors header"),
    "twice": (files.safetensors_of(b'{"x": {}, "x": {}}', DATA), "appears twice"),
    "digits": (files.safetensors_of(b'{"x":' + b"9" * 10**4 + b"}", DATA), "unreadable"),
    "no UTF-8": (files.safetensors_of(b'{"\xff": 1}', DATA), "unreadable"),
    "out of the file": (files.safetensors_of({"x": entry(offsets=(0, 617))}, DATA), "outside the file"),
    "backwards": (files.safetensors_of({"x": entry(offsets=(616, 0))}, DATA), "outside the file"),
    "negative": (files.safetensors_of({"x": entry(offsets=(-616, 0))}, DATA), "outside the file"),
    "10^18": (files.safetensors_of({"x": entry((10**9, 10**9))}, DATA), "does not take 616 bytes"),
    "overlap": (files.safetensors_of({"x": entry(), "y": entry(offsets=(0, 616))}, DATA), "overlaps another"),
    "gap": (files.safetensors_of({"x": entry((304,), offsets=(8, 616))}, DATA), "leaves 8 bytes"),
    "spare": (files.safetensors_of({"x": entry()}, DATA + b"abc"), "3 bytes that belong to no tensor"),
    "type": (files.safetensors_of({"x": entry(code="F17")}, DATA), "unknown type 'F17'"),
    "float8": (files.safetensors_of({"x": entry((616,), "F8_E4M3")}, DATA), "is of type F8_E4M3"),
    "shape": (files.safetensors_of({"x": entry(("4", 7, 11))}, DATA), "has the shape"),
    "no entry": (files.safetensors_of({"x": 3}, DATA), "is no object"),
    "other name": (files.safetensors_of({"y\n\x1b[2J": entry()}, DATA), "has no tensor 'x'; there are: y"),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(capsys, name):
    data, said = SAFETENSORS[name]
    Path("bad.safetensors").write_bytes(data)
    err = fault(capsys, "eval", "bad.safetensors:x", "t.npy")
    assert said in err
    assert "\x1b" not in err


def zipped(name="x.npy", data=GOOD, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def many_members():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i in range(20000):
            archive.writestr(f"{i}.npy", b"")
    return stream.getvalue()


NPZ = {
    "empty": (b"", "is empty"),
    "no zip": (GOOD, "no zip archive"),
    "truncated": (zipped()[:-30], "no zip archive"),
    "checksum": (zipped(method=zipfile.ZIP_STORED).replace(DATA[:32], bytes(32)), "CRC"),
    "no array": (zipped("x.txt"), "has no array 'x'; there are: none"),
    "method": (zipped(method=zipfile.ZIP_LZMA), "does not use"),
    "object": (zipped(data=files.npy(np.array([{}], object))), "pickle"),
    "short member": (zipped(data=GOOD[:-1]), "is cut short"),
    "10^18": (zipped(data=NPY["10^18 elements"][0]), "takes 2000000000000000000 bytes"),
    "a directory of 1 MB and more": (many_members(), "a directory of"),
    "fortran": (zipped(data=files.npy(np.asfortranarray(LOGITS))), "Fortran"),
}


@pytest.mark.parametrize("name", NPZ)
def test_npz(capsys, name):
    data, said = NPZ[name]
    Path("bad.npz").write_bytes(data)
    assert said in fault(capsys, "eval", "bad.npz:x", "t.npy", "--quiet")


KLD_LOGITS, KLD_TOKENS = files.model((3, 12, 11))
KLD = files.kld(KLD_LOGITS, KLD_TOKENS)


def kld_with(at, value):
    return KLD[:at] + value + KLD[at + len(value):]


KLD_FILES = {
    "empty": (b"", "is empty"),
    "magic": (b"_logist_" + KLD[8:], "does not begin with _logits_"),
    "header": (KLD[:15], "ends within its header"),
    "truncated": (KLD[:-1], "is cut short"),
    "spare": (KLD + b"\0\0", "bytes to spare"),
    "n_ctx": (kld_with(8, struct.pack("<I", 2**32 - 1)), "cut short"),
    "n_vocab": (kld_with(12, struct.pack("<i", -5)), "n_vocab -5"),
    "all large": (kld_with(8, struct.pack("<Iii", 2**32 - 1, 2**31 - 1, 2**31 - 1)), "cut short"),
    "scale": (kld_with(20 + 4 * 36 + 2 * 32, struct.pack("<f", np.nan)), "row 2 has the scale nan"),
    "tokens": (kld_with(20 + 4 * 8, struct.pack("<i", 11)), "the target at (0, 1) is 11, outside [0, 11)"),
}


@pytest.mark.parametrize("name", KLD_FILES)
def test_kld(capsys, name):
    data, said = KLD_FILES[name]
    Path("bad.kld").write_bytes(data)
    assert said in fault(capsys, "eval", "bad.kld")


ZARR = {
    "pickle filter": (2, {"filters": [{"id": "pickle"}]}, "codec 'pickle'"),
    "objects": (2, {"dtype": "|O"}, "'|O'"),
    "compressor": (2, {"compressor": {"id": "vlen-utf8"}}, "vlen-utf8"),
    "10^18 elements": (2, {"shape": [10**9, 10**9, 11]}, "chunks: it is not complete"),
    "chunk of 10^12": (2, {"chunks": [10**6, 10**6, 11]}, "has chunks of"),
    "no chunk": (2, {"chunks": [0, 7, 11]}, "has chunks of shape"),
    "axes": (2, {"chunks": [4, 7]}, "has chunks of shape"),
    "negative": (2, {"shape": [-4, 7, 11]}, "has the shape"),
    "codec": (3, {"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]}, "numcodecs.pickle"),
    "inner codec": (3, {"codecs": [{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "x"}]}}]}, "'x'"),
    "type": (3, {"data_type": "string"}, "data type 'string'"),
    "group": (3, {"node_type": "group"}, "is a group"),
    "grid": (3, {"chunk_grid": 7}, "shape of at most 32 axes"),
}


@pytest.mark.parametrize("name", ZARR)
def test_zarr(capsys, name):
    version, changes, said = ZARR[name]
    meta = files.zarr_array("bad.zarr", LOGITS, version)
    meta.write_text(json.dumps(json.loads(meta.read_text()) | changes))
    assert said in fault(capsys, "eval", "bad.zarr", "t.npy")


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_zarr_chunks_that_unpack_to_too_much(capsys, codec):
    zarr = pytest.importorskip("zarr")
    compressor = getattr(zarr.codecs, f"{codec.capitalize()}Codec")()
    for path, rows in ("bomb.zarr", 10**7), ("bad.zarr", 100):
        zarr.create_array(path, shape=(rows, 2), chunks=(rows, 2), dtype="f2", compressors=compressor)[:] = 1
    os.replace("bomb.zarr/c/0/0", "bad.zarr/c/0/0")
    assert "c/0/0 unpacks to 40000000 bytes; a chunk has 400" in fault(capsys, "eval", "bad.zarr", "t.npy")


def test_zarr_chunks(capsys):
    files.zarr_array("bad.zarr", LOGITS)
    chunk = Path("bad.zarr/c/1/0/0")
    data = chunk.read_bytes()
    chunk.write_bytes(data[: len(data) // 2])
    assert "bad.zarr: cannot be read" in fault(capsys, "eval", "bad.zarr", "t.npy")
    chunk.unlink()
    assert "has 1 of 2 chunks" in fault(capsys, "eval", "bad.zarr", "t.npy")
    Path("bad.zarr/zarr.json").unlink()
    assert "neither zarr.json nor .zarray" in fault(capsys, "eval", "bad.zarr", "t.npy")


def test_other_things_than_files(capsys):
    assert "No such file" in fault(capsys, "eval", "no.npy", "t.npy")
    assert "No such file" in fault(capsys, "eval", "good.npy", "no.npz:x")
    Path("folder.npy").mkdir()
    assert "is a folder" in fault(capsys, "eval", "folder.npy", "t.npy")
    assert "null byte" in fault(capsys, "eval", "a\0.npy", "t.npy")
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.npy")
        assert "not a regular file" in fault(capsys, "eval", "pipe.npy", "t.npy")
    assert "unknown kind of file" in fault(capsys, "eval", "good.txt", "t.npy", code=2)
    assert "good.npy has no targets" in fault(capsys, "eval", "good.npy", code=2)


@pytest.mark.parametrize(("name", "array", "said"), [
    ("t", TARGETS[:-1], "does not fit the logits"),
    ("t", TARGETS.astype(float), "targets are class indices"),
    ("t", TARGETS > 3, "targets are class indices"),
    ("t", np.where(TARGETS[2, 3] == TARGETS, 11, TARGETS), "is 11, outside [0, 11)"),
    ("t", np.where(TARGETS[0, 0] == TARGETS, -1, TARGETS), "the target at (0, 0) is -1, outside [0, 11)"),
    ("t", np.full((4, 7), 2**63 + 5, np.uint64), "is 9223372036854775813, outside"),
    ("mask", np.ones((4, 6), bool), "does not fit the logits' positions"),
    ("mask", np.ones((4, 7)), "a mask is of booleans or integers"),
    ("lengths", np.ones(3, int), "one for each sequence"),
    ("lengths", np.full(4, 8), "has the length 8, outside 0 to 7"),
    ("lengths", np.full(4, -1), "has the length -1"),
    ("lengths", np.ones(4), "lengths are integers"),
    ("token-bytes", np.ones(10, int), "expected 11 integers"),
    ("token-bytes", -np.ones(11, int), "negative number of bytes"),
])
def test_what_does_not_fit(capsys, name, array, said):
    np.save("a.npy", array)
    more = [] if name == "t" else [f"--{name}", "a.npy"]
    err = fault(capsys, "eval", "good.npy", "a.npy" if name == "t" else "t.npy", *more)
    assert err.startswith("fastxent eval: a.npy: ")
    assert said in err


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_shrinks_while_it_is_read(capsys, monkeypatch, threads):
    monkeypatch.setattr("fastxent.cli._blocks._rows_at_a_time", lambda *_: 3)
    shrinking = Scores.add

    def add(self, part):
        os.truncate("good.npy", 200)
        return shrinking(self, part)

    monkeypatch.setattr(Scores, "add", add)
    monkeypatch.setattr("fastxent.get_num_threads", lambda: threads)
    before = _thread._count()
    assert "good.npy: ends" in fault(capsys, "eval", "good.npy", "t.npy")
    ended = time.monotonic() + 5  # a thread's last words are not yet its end
    while _thread._count() > before and time.monotonic() < ended:
        time.sleep(0.01)
    assert _thread._count() == before


def test_no_memory_for_the_readers_is_said(capsys, monkeypatch):
    def buffers(self):
        raise MemoryError("no room")

    monkeypatch.setattr("fastxent.cli._blocks._rows_at_a_time", lambda *_: 3)
    monkeypatch.setattr("fastxent.cli._blocks._Work._buffers", buffers)
    monkeypatch.setattr("fastxent.get_num_threads", lambda: 3)
    found = []
    command = threading.Thread(target=lambda: found.append(fault(capsys, "eval", "good.npy", "t.npy")), daemon=True)
    command.start()
    command.join(60)
    assert found == ["fastxent eval: MemoryError: no room\n"]


@pytest.mark.parametrize("left", [0, 1])
def test_a_system_without_threads(capsys, monkeypatch, left):
    """The blocks are scored by those that could be started, or by the caller."""
    monkeypatch.setattr("fastxent.cli._blocks._rows_at_a_time", lambda *_: 3)
    monkeypatch.setattr("fastxent.get_num_threads", lambda: 3)
    assert main(["eval", "good.npy", "t.npy", "--format", "json"]) == 0
    expected, started, start = capsys.readouterr().out, [], _thread.start_new_thread

    def refuse(*arguments):
        if len(started) == left:
            raise RuntimeError("can't start new thread")
        started.append(arguments)
        return start(*arguments)

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    assert main(["eval", "good.npy", "t.npy", "--format", "json"]) == 0
    assert capsys.readouterr().out == expected
    assert len(started) == left


def test_no_pickle_is_loaded(capsys):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, ("exploded",)

    bomb = np.array([Bomb()], object)
    Path("bad.npy").write_bytes(files.npy(bomb))
    Path("bad.npz").write_bytes(files.npz(x=bomb))
    Path("raw.npy").write_bytes(pickle.dumps(Bomb()))
    for name in "bad.npy", "bad.npz:x", "raw.npy":
        fault(capsys, "eval", name, "t.npy", "--quiet")
        fault(capsys, "eval", "good.npy", name, "--quiet")
    assert not Path("exploded").exists()


def test_debug_has_the_traceback(capsys):
    Path("bad.npy").write_bytes(GOOD[:-1])
    assert main(["eval", "bad.npy", "t.npy", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs file descriptors in order")
def test_faults_close_their_files(capsys):
    Path("bad.npy").write_bytes(GOOD[:-1])
    Path("bad.npz").write_bytes(NPZ["short member"][0])
    Path("bad.safetensors").write_bytes(SAFETENSORS["overlap"][0])
    Path("bad.kld").write_bytes(KLD[:-1])
    names = ["bad.npy", "bad.npz:x", "bad.safetensors:x", "bad.kld", "good.npy"]
    for name in names:
        files.score(name)
    before = os.open("t.npy", os.O_RDONLY)
    os.close(before)
    for _ in range(5):
        for name in names:
            files.score(name)
            main(["eval", name, "bad.npy", "--quiet"])
    after = os.open("t.npy", os.O_RDONLY)
    os.close(after)
    assert before == after
    capsys.readouterr()
