"""The command line: what is printed where, the codes that it exits with, and real launches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.nurse import environment
from zae_engine._version import __version__
from zae_engine.cli import main
from zae_engine.launch.fork_fault import fork_fault

FOLDER = Path(__file__).parents[2] / "accelerate_configs"
GOOD = "distributed_type: 'NO'\nuse_cpu: true\n"
SCRIPT = """
import os, sys
words = [os.environ.get(name, "-") for name in ("RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")]
line = " ".join([os.environ["ACCELERATE_USE_CPU"].lower(), *words, *sys.argv[1:]])
os.write(1, (line + "\\n").encode())  # in one piece, among those of other processes
"""


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture
def zae(nursery, tmp_path):
    """The command in a process of its own."""

    def call(*arguments, **variables):
        environ = environment() | {"HF_HOME": tmp_path / "hf"} | variables
        return nursery.run("-m", "zae_engine.cli", *arguments, env=environ, cwd=tmp_path)

    return call


def one_line(err):
    assert err.startswith("zae: ")
    assert err.count("\n") == 1
    return err


def test_version_and_help(run):
    assert run("--version") == (0, f"zae-engine {__version__}\n", "")
    code, out, _ = run()
    assert code == 0
    assert all(name in out for name in ("launch", "config", "doctor"))
    assert "\x1b" not in out + run("launch", "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lunch"], "did you mean 'launch'"),
        (["config", "chek", "a.yaml"], "did you mean 'check'"),
        (["config"], "missing command"),
        (["--verson"], "--version"),
        (["launch", "--num_proceses", "2", "x.py"], "--num_processes"),
        (["launch", "--num_processes", "two", "x.py"], "integer"),
        (["launch"], "missing argument"),
        (["config", "check"], "missing argument"),
        (["config", "check", "god.yaml"], "did you mean 'good.yaml'"),
        (["config", "resolve", "god.yaml"], "did you mean 'good.yaml'"),
        (["launch", "god.yaml", "script.py"], "did you mean 'good.yaml'"),
        (["launch", "good.yaml", "scrpt.py"], "did you mean 'script.py'"),
        (["launch", "nothing/x.py"], "give its path"),
        (["launch", "good.yaml"], "missing argument"),
        (["launch", "--cpu", "good.yaml"], "there is no script"),
    ],
)
def test_what_is_unknown_gets_one_line(run, tmp_path, arguments, words):
    (tmp_path / "good.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "script.py").touch()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in one_line(err).lower()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runss"], "zae: there is no command 'runss'. Did you mean 'runs'? See `zae --help`."),
        (["xyz"], "zae: there is no command 'xyz'; there are report, runs, launch, doctor, config, checkpoint, logs."),
        (["logs", "snyc"], "zae: there is no command 'snyc'; there are sync, export. See `zae logs --help`."),
        (["logs", "synk"], "zae: there is no command 'synk'; there are sync, export. See `zae logs --help`."),
        (["logs", "exprt"], "zae: there is no command 'exprt'. Did you mean 'export'? See `zae logs --help`."),
        (["checkpoint"], "zae: Missing command. See `zae checkpoint --help`."),
        (["checkpoint", "diff", "a"], "See `zae checkpoint diff --help`."),
        (["logs", "export", "a", "--to"], "See `zae logs export --help`."),
        (["runs", "--revers"], "no option '--revers' of `zae runs`. Did you mean '--reverse'? See `zae runs --help`."),
        (["runs", "--nothing"], "zae: there is no option '--nothing' of `zae runs`. See `zae runs --help`."),
    ],
)
def test_an_error_names_the_command_s_own_help_and_what_is_near(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in one_line(err)


@pytest.mark.parametrize("text", ["project", "=digits"])
def test_a_setting_without_name_or_value_is_refused(run, text):
    code, out, err = run("logs", "export", "a", "--to", "csv", "--set", text)
    assert (code, out) == (2, "")
    assert one_line(err) == f"zae: --set {text} is not understood; write KEY=VALUE, --set project=digits say\n"


def test_the_help_of_runs_says_what_is_looked_at(run):
    _, out, _ = run("runs", "--help")
    assert "the current one by default" in " ".join(out.split())
    assert "required" not in out
    assert "default: ." not in out


def test_check_prints_findings_and_counts_them(run, tmp_path):
    (tmp_path / "bad.yaml").write_text("distributed_type: NO\nnum_procs: 2\n", encoding="utf-8")
    code, out, err = run("config", "check", "bad.yaml")
    assert code == 2
    assert [line.split(":")[0] for line in out.splitlines()] == ["line 1", "line 2"]
    assert one_line(err) == "zae: bad.yaml: 2 errors\n"


def test_check_of_a_sound_file(run):
    file = str(FOLDER / "cpu.yaml")
    assert run("config", "check", file) == (0, f"{file}: no errors\n", "")
    file = str(FOLDER / "multi_gpu.yaml")
    code, out, _ = run("config", "check", file)
    assert (code, out.splitlines()[-1]) in ((0, f"{file}: no errors"), (0, f"{file}: no errors, 1 warning"))
    (Path("warned.yaml")).write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\n", encoding="utf-8")
    code, out, _ = run("config", "check", "warned.yaml")
    assert (code, out.splitlines()[-1]) == (0, "warned.yaml: no errors, 1 warning")


def test_resolve_prints_yaml_or_writes_it(run, tmp_path):
    (tmp_path / "one.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 1\n", encoding="utf-8")
    code, printed, _ = run("config", "resolve", "one.yaml")
    assert code == 0
    assert yaml.safe_load(printed) == {
        "distributed_type": "NO",
        "num_processes": 1,
        "use_cpu": True,
    }  # notes are comments
    code, out, _ = run("config", "resolve", "one.yaml", "-o", "out.yaml")
    assert out.endswith("# written to out.yaml\n")
    assert yaml.safe_load((tmp_path / "out.yaml").read_text(encoding="utf-8")) == yaml.safe_load(printed)


def test_errors_end_a_launch_before_it_starts(run, tmp_path):
    (tmp_path / "bad.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 0\n", encoding="utf-8")
    (tmp_path / "script.py").write_text("raise SystemExit('started')", encoding="utf-8")
    code, out, err = run("launch", "bad.yaml", "script.py")
    assert code == 2
    assert out.startswith("line 2: error: num_processes: 0 processes")
    assert one_line(err) == "zae: bad.yaml has errors\n"


def test_a_launch_within_a_launch_is_refused(run, tmp_path, monkeypatch):
    (tmp_path / "script.py").touch()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, _, err = run("launch", "script.py")
    assert code == 2
    assert "started by a launcher already" in one_line(err)


def test_a_gpu_file_becomes_cpu_processes_here(zae, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    file = FOLDER / "multi_gpu.yaml"
    done = zae("launch", file, "--num_processes", 3, "script.py", "--lr", "1", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    processes = min(3, max(2, len(os.sched_getaffinity(0))))  # no more than there are cores
    assert sorted(done.stdout.splitlines()) == [f"true {rank} {processes} no --lr 1" for rank in range(processes)]
    assert "use_cpu: false -> true (no accelerator to use here)" in done.stderr


def test_a_launch_without_a_file_takes_this_machine_or_the_default(zae, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = zae("launch", "-m", "script", "a b", CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (0, "true - - no a b\n"), done.stderr
    folder = tmp_path / "hf" / "accelerate"
    folder.mkdir(parents=True)
    (folder / "default_config.yaml").write_text(GOOD + "mixed_precision: bf16\n", encoding="utf-8")
    command = [sys.executable, "-m", "zae_engine.cli", "launch", "script.py"]  # Accelerate looks when it is imported
    environ = environment() | {"HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "true - - bf16\n"), done.stderr


def test_a_sharded_file_runs_on_the_cpu_when_told_so(zae, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = zae("launch", "--cpu", "--mixed_precision", "fp16", FOLDER / "fsdp2.yaml", "script.py")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["true 0 2 no", "true 1 2 no"]
    assert "distributed_type: FSDP -> MULTI_GPU" in done.stderr
    assert "PRECISION mixed_precision: fp16 -> no (fp32)" in done.stderr


def test_the_script_s_code_is_the_launch_s(zae, tmp_path):
    (tmp_path / "script.py").write_text("raise SystemExit(7)", encoding="utf-8")
    assert zae("launch", "--cpu", "script.py").returncode == 7


def test_doctor_shows_what_there_is(zae):
    done = zae("doctor", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    for words in ("devices: no accelerator", "torch 2.", "configuration: none", "OMP_NUM_THREADS 1", "(gloo): works"):
        assert words in done.stdout
    assert ("python/cpython#112275" in done.stdout) == (fork_fault() is not None)
