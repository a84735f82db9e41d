"""The commands around the scores: exit codes, streams, gates, doctor, memory, Ctrl-C, and the page that shows them."""

import contextlib
import doctest
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cli_files as files
import isolated
import numpy as np
import pytest

import fastxent
from fastxent.cli import COMMANDS, _progress, doctor, main

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "evaluation.md"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logits, targets = files.model()
    np.save("x.npy", logits)
    np.save("t.npy", targets)


# Exit codes and streams

@pytest.mark.parametrize(("conditions", "code"), [
    ([], 0), (["ppl>1e9"], 0), (["ppl>0"], 3), (["perplexity >= 0"], 3), (["nll<100"], 3), (["n_masked!=0"], 0),
    (["n_tokens==60"], 3), (["top_5_accuracy<=0"], 0), (["ppl>1e9", "accuracy>=0"], 3), (["bits_per_byte>1"], 2),
    (["top_7_accuracy>1"], 2), (["nothing>1"], 2),
])
def test_gates(capsys, conditions, code):
    arguments = [part for text in conditions for part in ("--fail-if", text)]
    assert main(["eval", "x.npy", "t.npy", *arguments]) == code
    out, err = capsys.readouterr()
    assert ("perplexity" in out) == (code != 2)
    assert err.count("\n") == (code > 0)
    assert (" holds: " in err) == (code == 3)


def test_a_gate_of_nothing_cannot_be_judged(capsys):
    np.save("none.npy", np.zeros_like(np.load("t.npy"), dtype=bool))
    assert main(["eval", "x.npy", "t.npy", "--mask", "none.npy", "--fail-if", "ppl>1"]) == 1
    _, said = capsys.readouterr().err.splitlines()
    assert said == "fastxent eval: --fail-if 'ppl>1': cannot be judged, perplexity is nan"


def test_gates_of_compare(capsys):
    np.save("y.npy", np.load("x.npy") + 1)
    assert main(["compare", "x.npy", "y.npy", "--fail-if", "kl_p99.9>0.1"]) == 0
    assert main(["compare", "x.npy", "y.npy", "--fail-if", "top1_agreement>=1"]) == 3
    assert main(["compare", "x.npy", "y.npy", "--fail-if", "nll_base>1"]) == 2  # there are no targets
    capsys.readouterr()


@pytest.mark.parametrize("arguments", [
    "eval", "eval x.npy t.npy --fail-if ppl", "eval x.npy t.npy --fail-if ppl>x", "eval x.npy t.npy --fail-if ppl>nan",
    "eval x.npy t.npy --format xml", "eval x.npy t.npy --shift -1", "eval x.npy t.npy --top-k 0",
    "eval x.npy t.npy --top-k a", "eval x.npy t.npy --block-mb 0", "eval x.npy t.npy --block-mb 1000",
    "eval x.npy t.npy --ignore-index x", "compare x.npy", "convert x.npy", "convert x.npy y.npy --dtype int8",
    "doctor more", "doctor --mb x",
])
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments.split())
    assert exit_info.value.code == 2
    assert "usage: fastxent" in capsys.readouterr().err


def test_wrong_usage_shows_the_usage_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "x.npy", "t.npy", "--frmat", "json"])
    err = capsys.readouterr().err
    assert err.startswith("usage: fastxent eval ")
    assert err.endswith("fastxent eval: error: unrecognized arguments: --frmat json\n")


def test_usage_that_needs_the_files(capsys):
    np.save("flat.npy", np.zeros((3, 4)))
    np.save("one.npy", np.zeros(3, int))
    assert main(["eval", "flat.npy", "one.npy", "--shift", "1"]) == 2
    assert main(["eval", "flat.npy", "one.npy", "--lengths", "one.npy"]) == 2
    assert capsys.readouterr().err.count("needs logits with a batch axis") == 2


def test_no_file_is_taken_twice(capsys):
    np.save("x.npy", np.zeros((3, 4), "f4"))
    np.save("t.npy", np.zeros(3, int))
    before = Path("x.npy").read_bytes()
    for arguments in (
        "eval x.npy t.npy -o x.npy", "eval x.npy t.npy -o ./t.npy", "eval x.npy t.npy -o a.png --plot a.png",
        "eval x.npy t.npy --plot x.npy", "compare x.npy x.npy t.npy -o t.npy", "convert x.npy x.npy",
        "convert x.npy y.npy --tokens y.npy", "convert x.npy y.safetensors:__metadata__",
        "eval x.npy t.npy --fail-if bpb<1",
    ):  # fmt: skip
        assert main(arguments.split()) == 2, arguments
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["t.npy", "x.npy"]
    assert Path("x.npy").read_bytes() == before
    assert main(["eval", "x.npy", "t.npy", "-o", "result.txt"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="streams are closed by a shell of its own")
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "-o r.json >&-"])
def test_closed_streams(closed):
    np.save("x.npy", np.zeros((3, 4), "f4"))
    np.save("t.npy", np.zeros(3, int))
    command = shlex.join([sys.executable, "-m", "fastxent.cli", "eval"])
    for targets, code in (("t.npy", 0), ("none.npy", 1)):
        shell = ["sh", "-c", f"{command} x.npy {targets} {closed}"]
        done = subprocess.run(shell, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert not (done.stdout if code else done.stderr)


def test_a_terminal_of_few_characters():
    np.save("x.npy", np.zeros((3, 4), "f4"))
    np.save("t.npy", np.zeros(3, int))
    command = [sys.executable, "-m", "fastxent.cli", "eval", "x.npy", "t.npy"]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert done.returncode == 0 and b"nats, ? 0.0000" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help(capsys, command):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    if command != "demo":
        assert "examples:" in out
        assert "exit code" in out


def test_output_file_is_whole_or_not_there(capsys):
    assert main(["eval", "x.npy", "t.npy", "-o", "scores.json", "--format", "json", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    before = Path("scores.json").read_text()
    assert json.loads(before)["n_tokens"] == 60
    whole = Path("x.npy").read_bytes()
    Path("x.npy").write_bytes(whole[:-1])
    assert main(["eval", "x.npy", "t.npy", "-o", "scores.json", "--quiet"]) == 1
    assert Path("scores.json").read_text() == before
    assert not list(Path().glob(".scores*"))
    capsys.readouterr()
    Path("x.npy").write_bytes(whole)
    assert main(["eval", "x.npy", "t.npy", "-o", "no/such/folder.json"]) == 1
    assert "no/such/folder.json: cannot be written: No such file" in capsys.readouterr().err


def test_output_through_a_link(capsys):
    Path("real").mkdir()
    Path("real/scores.json").write_text("older")
    Path("link.json").symlink_to("real/scores.json")
    Path("new.json").symlink_to("real/new.json")
    for name in ("link.json", "new.json"):
        assert main(["eval", "x.npy", "t.npy", "-o", name, "--format", "json", "--quiet"]) == 0
        assert Path(name).is_symlink()
    assert json.loads(Path("real/scores.json").read_text()) == json.loads(Path("real/new.json").read_text())
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(sys.platform == "win32", reason="names of open files")
@pytest.mark.parametrize("stream", [1, 2])
def test_output_to_a_name_of_an_open_file(stream):
    """As /dev/stdout, which root could replace: what was there is kept, and the name as well."""
    Path("open").symlink_to(f"/proc/self/fd/{stream}" if sys.platform == "linux" else f"/dev/fd/{stream}")
    command = shlex.join([sys.executable, "-m", "fastxent.cli", "eval", "x.npy", "t.npy", "--quiet", "-o", "open"])
    subprocess.run(["sh", "-c", f"echo before > all; {command} {stream}>> all"], check=True, capture_output=True)
    assert Path("open").is_symlink()
    before, *text = Path("all").read_text().splitlines()
    assert text[0].startswith("perplexity")
    assert before == "before"


def test_progress_is_for_terminals(capsys, monkeypatch):
    with _progress.progress(100, quiet=False) as report:
        report(50)
    assert capsys.readouterr() == ("", "")
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with _progress.progress(100, quiet=True) as report:
        report(50)
    assert capsys.readouterr() == ("", "")
    with _progress.progress(100, quiet=False) as report:
        report(50)
    out, err = capsys.readouterr()
    assert out == ""
    assert "B/s" in err


@pytest.mark.parametrize("gate", [[], ["--fail-if", "ppl>0"]])
def test_a_reader_that_leaves(gate):
    """Nothing is said, and the gate is judged all the same."""
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([*files.COMMAND, "eval", "x.npy", "t.npy", "--quiet", *gate], stdout=write,
                         stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert run.returncode == (3 if gate else 0)
    assert run.stderr == ("fastxent eval: ppl>0 holds: perplexity is " + run.stderr[42:] if gate else "")


def sparse(shape, dtype):
    """A file of zeros that takes no room on the disk."""
    with open("large.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)


def has_open(process, name):
    found = []
    for fd in Path("/proc", str(process), "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(Path(os.readlink(fd)).name)
    return name in found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_interrupt_is_one_line():
    sparse((10**6, 50000), "f2")
    np.save("large_t.npy", np.zeros(10**6, np.int8))
    command = [*files.COMMAND, "eval", "large.npy", "large_t.npy"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            started = time.monotonic()
            while not has_open(process.pid, "large.npy") and time.monotonic() < started + 60:
                time.sleep(0.02)  # it is still being imported
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert (out, err) == ("", "fastxent eval: interrupted\n")


INTERRUPTED = """
import faulthandler, random
from fastxent.cli import _blocks

class Zeros:
    name, dtype, stored, parallel, row_step = "zeros", np.dtype("f4"), "float32", True, 1
    def __init__(self, rows):
        self.shape, self.size = (rows, 2), 2 * rows
    def read(self, start, stop, buffer):
        return buffer[: 4 * (stop - start)].view("f4")

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
fastxent.set_num_threads(8)
random.seed(1)
faulthandler.dump_traceback_later(100, exit=True)
for _ in range(int(sys.argv[1])):
    score = lambda block, _: sum(len(rows[0]) for _, rows in block.pieces)
    rows = 10 * random.choice((50, 200, 6000))  # of short runs the end is interrupted, too
    found = _blocks.scored([Zeros(rows)], 80, lambda start, stop: None, score)
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.01))
        for n in found:
            assert n == 10
        while True:  # a signal just before a sleep does not end it
            time.sleep(0.01)
    except KeyboardInterrupt:
        found.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_interrupts_leave_nobody_waiting():
    """At any moment, inside the code of locks and of starting threads too."""
    isolated.run(INTERRUPTED, 1000)


# Not ru_maxrss, which a child inherits from the process that started it.
LIMITED = """
import re, sys
from fastxent.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as file:
    print(re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("kind", ["npy", "npz", "kld", "compare", "few classes"])
def test_memory_does_not_grow_with_the_file(kind):
    """400 MB (FASTXENT_LARGE_MB for more) within 300 MB."""
    nbytes = int(os.environ.get("FASTXENT_LARGE_MB", 400)) * 10**6
    rows, classes = (nbytes // 40, 2) if kind == "few classes" else (nbytes // (4 * 32768), 32768)
    sparse((rows, classes), "f4")
    np.save("large_t.npy", np.zeros(rows, np.int64))
    arguments = ["eval", "large.npy", "large_t.npy"]
    if kind == "npz":
        import zipfile

        with zipfile.ZipFile("large.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.write("large.npy")
        arguments[1] = "large.npz"
    elif kind == "kld":
        Path("large.npy").unlink()
        with open("large.kld", "wb") as file:
            file.write(b"_logits_" + np.array([3, classes, 2 * rows], "<i4").tobytes())
            file.truncate(20 + 4 * 3 * 2 * rows + 2 * rows * 2 * (classes + 4))
        arguments = ["eval", "large.kld"]
    elif kind == "compare":
        arguments = ["compare", "large.npy", "large.npy", "large_t.npy"]
    run = subprocess.run([sys.executable, "-P", "-c", LIMITED, *arguments, "--quiet"], capture_output=True, text=True,
                         check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stderr) < 300 * 1000, run.stderr


# doctor

def test_doctor(capsys):
    assert main(["doctor", "--mb", "20"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("instruction_set ", "num_threads_reason", "GB/s", "of the plain read", "padding"):
        assert words in out
    assert "WRONG" not in out
    assert main(["doctor", "--mb", "0", "--format", "json", "-o", "d.json"]) == 0
    found = json.loads(Path("d.json").read_text())
    assert found["config"] == fastxent.show_config("dict")
    assert found["speed"] == []
    assert all(check["right"] for check in found["checks"])
    assert len(found["checks"]) > 10


def test_doctor_names_thread_pools(capsys):
    pytest.importorskip("threadpoolctl")
    assert main(["doctor", "--mb", "0", "--format", "json"]) == 0
    pools = json.loads(capsys.readouterr().out)["thread_pools"]
    assert all({"internal_api", "num_threads"} <= set(pool) for pool in pools)


@pytest.mark.parametrize("name", ["cross_entropy", "softmax", "token_statistics", "kl_div"])
def test_doctor_finds_a_wrong_answer(capsys, monkeypatch, name):
    right = getattr(fastxent, name)

    def wrong(*arguments, **options):
        found = right(*arguments, **options)
        return tuple(part + 1 for part in found) if isinstance(found, tuple) else found * 1.0001

    monkeypatch.setattr(fastxent, name, wrong)
    assert main(["doctor", "--mb", "0"]) == 1
    out, err = capsys.readouterr()
    assert "WRONG" in out
    assert f"wrong answers: {name}, float32" in err


def test_doctor_survives_an_error(capsys, monkeypatch):
    monkeypatch.setattr(fastxent, "softmax", lambda *_: 1 / 0)
    monkeypatch.setattr(doctor, "_thread_pools", lambda: None)
    assert main(["doctor", "--mb", "0"]) == 1
    out, _ = capsys.readouterr()
    assert "ZeroDivisionError" in out
    assert "needs threadpoolctl" in out


# The page

def same(found, printed):
    """Equal words, and numbers that agree in the digits that every instruction set gets right."""
    assert len(found.split()) == len(printed.split()), found
    for one, two in zip(found.split(), printed.split(), strict=True):
        try:
            assert float(one) == pytest.approx(float(two), rel=2e-3, abs=2e-7)
        except ValueError:
            assert one == two


def test_every_command_of_the_page():
    pytest.importorskip("matplotlib")
    text = PAGE.read_text("utf-8")
    names = {}
    for fence in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(doctest.script_from_examples(fence[1]), names)
    code, count = 0, 0
    for fence in re.finditer(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for command, printed in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", fence[1], re.MULTILINE):
            if command == "echo $?":
                assert int(printed) == code
                continue
            program, *arguments = shlex.split(command)
            assert program == "fastxent"
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(arguments)
            assert code in (0, 3), err.getvalue()
            same(out.getvalue(), printed)
            count += 1
    assert count >= 8
    for name in "rows.csv", "scores.png", "base.kld", "half.npy", "compared.json", "scores.txt":
        assert Path(name).stat().st_size
    np.testing.assert_array_equal(np.load("same_tokens.npy"), np.load("tokens.npy"))
