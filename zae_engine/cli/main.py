"""``zae``: checks, fits and starts Accelerate configurations, and looks at checkpoints and runs.

Thin: the work is done by `zae_engine.launch`, `zae_engine.checkpoint` and `zae_engine.logs`.

What is slow to import (torch, Accelerate) is imported by the commands that need it.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .._version import __version__
from ..suggestions import nearest
from ..terminal import leave, say
from .checkpoint import checkpoint_app
from .logs import register

if TYPE_CHECKING:
    from ..launch.machine import Machine
    from ..launch.yaml_file import Document

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of click under typer 0.15, of typer itself later
_SUFFIXES = (".yaml", ".yml", ".json")
_SETTINGS = {"help_option_names": ["-h", "--help"]}
# What `zae launch` puts right by itself needs no warning there.
_PUT_RIGHT = {"use_cpu", "num_processes", "mixed_precision"}

app = typer.Typer(
    help="One Accelerate configuration for every machine: check it, fit it, start it.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
)
config_app = typer.Typer(help="Check or fit a configuration.", rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.add_typer(checkpoint_app, name="checkpoint")
register(app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code: 0 done, 1 it does not work here, 2 wrong file, key or option.

    Parameters
    ----------
    arguments : sequence of str, optional
        ``sys.argv[1:]`` by default.
    """
    from ..launch.findings import ConfigError

    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(_move_file(arguments), prog_name="zae", standalone_mode=False)
    except _UsageError as error:
        _fail(_explain(error, arguments))
    except ConfigError as error:
        _print(error.findings)
        _fail(str(error))
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:  # of the help, which is not printed here
        leave()
    sys.exit(code or 0)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"zae-engine {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@config_app.command()
def check(file: Annotated[Path, typer.Argument(help="An Accelerate configuration (YAML).")]) -> None:
    """Find what Accelerate would pass over or crash on, with line numbers and remedies."""
    from ..launch.check import check_config

    found = check_config(file)
    _print(found)
    errors = sum(f.level == "error" for f in found)
    if errors:
        _fail(f"{file}: {_count(errors, 'error')}")
    say(f"{file}: no errors" + (f", {_count(len(found), 'warning')}" if found else ""))


@config_app.command()
def resolve(
    file: Annotated[Path, typer.Argument(help="An Accelerate configuration (YAML).")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write it; else it is printed.")] = None,
) -> None:
    """Fit a configuration to this machine, for stock `accelerate launch`; say what is changed."""
    from ..launch.resolve import resolve_config, uses_cpu, write_config

    resolved = resolve_config(file)
    for change in resolved.changes:
        say(f"# {change}")
    if uses_cpu(resolved.config):
        say("# start it by `zae launch`, or export ACCELERATE_USE_CPU=true")
    if out is None:
        import yaml

        say(*yaml.safe_dump(resolved.config, sort_keys=False).splitlines())
    else:
        write_config(resolved.config, out)
        say(f"# written to {out}")


@app.command(context_settings={"allow_interspersed_args": False} | _SETTINGS)
def launch(
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="[FILE] SCRIPT [ARGS], FILE being YAML."),
    ],
    num_processes: Annotated[int | None, typer.Option("--num_processes", "--num-processes", min=1)] = None,
    num_machines: Annotated[int | None, typer.Option("--num_machines", "--num-machines", min=1)] = None,
    machine_rank: Annotated[int | None, typer.Option("--machine_rank", "--machine-rank", min=0)] = None,
    main_process_ip: Annotated[str | None, typer.Option("--main_process_ip", "--main-process-ip")] = None,
    main_process_port: Annotated[int | None, typer.Option("--main_process_port", "--main-process-port")] = None,
    mixed_precision: Annotated[str | None, typer.Option("--mixed_precision", "--mixed-precision")] = None,
    gpu_ids: Annotated[str | None, typer.Option("--gpu_ids", "--gpu-ids", help="As '0,1'.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU.")] = False,
    module: Annotated[bool, typer.Option("--module", "-m", help="SCRIPT is a module's name.")] = False,
    config_file: Annotated[Path | None, typer.Option("--config_file", "--config-file", hidden=True)] = None,
) -> None:
    """Check a configuration, fit it to this machine, and start a script with it by Accelerate.

    Without FILE: Accelerate's default configuration, else all accelerators of this machine, or one CPU process.
    """
    options: dict[str, Any] = {
        "num_processes": num_processes,
        "num_machines": num_machines,
        "machine_rank": machine_rank,
        "main_process_ip": main_process_ip,
        "main_process_port": main_process_port,
        "mixed_precision": mixed_precision,
        "gpu_ids": gpu_ids,
    }
    if config_file is None and command[0].endswith(_SUFFIXES):
        config_file, command = Path(command[0]), command[1:]
    _check_script(command, module)
    _start(config_file, options, command, module, cpu)


@app.command()
def doctor() -> None:
    """Show devices, versions, the configuration found, variables; try an all-reduce."""
    from ..launch.doctor import describe_variables, describe_versions, find_config, try_reduce
    from ..launch.fork_fault import fork_fault
    from ..launch.machine import this_machine

    machine = this_machine()
    say(f"devices: {machine.describe()}; computes in {', '.join(machine.precisions)}")
    _table("versions", describe_versions())
    if fault := fork_fault():
        say(f"warning: {fault}")
    say(f"configuration: {find_config() or 'none; give one, as in `zae launch FILE script.py`'}")
    _table("variables", describe_variables() or {"none": "set"})
    reduction = try_reduce(machine)
    say(*str(reduction).split("\n"))
    if reduction.problem:
        raise typer.Exit(1)


def _start(file: Path | None, options: dict[str, Any], command: list[str], module: bool, cpu: bool) -> None:
    from ..launch.cluster import refuse_nested
    from ..launch.machine import this_machine
    from ..launch.resolve import override, resolve_document, uses_cpu, write_config

    refuse_nested()
    machine = this_machine()
    if cpu:  # rather than use_cpu, which contradicts files with FSDP or fp16
        machine = machine.without_accelerators()
    document, name = _read(file, machine)
    override(document, options)
    _warn(document, machine)
    resolved = resolve_document(document, machine, name=name)
    for change in resolved.changes:
        say(f"zae launch: {change}", err=True)
    if uses_cpu(resolved.config):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    from ..launch.start import start

    # Processes read it before the script runs; it goes when start() ends this one.
    with tempfile.TemporaryDirectory(prefix="zae-") as folder:
        path = Path(folder) / "config.yaml"
        write_config(resolved.config, path)
        start(str(path), command, module)


def _read(file: Path | None, machine: Machine) -> tuple[Document, str]:
    from ..launch.doctor import find_config
    from ..launch.resolve import machine_config
    from ..launch.yaml_file import Document, read_document

    found = str(file) if file is not None else find_config()
    if found is not None:
        return read_document(found), found
    return Document(machine_config(machine)), "the configuration of this machine"


def _warn(document: Document, machine: Machine) -> None:
    from ..launch.check import check_document

    for finding in check_document(document, machine):
        if finding.level == "warning" and finding.key not in _PUT_RIGHT:
            say(f"zae launch: {finding}", err=True)


def _check_script(command: Sequence[str], module: bool) -> None:
    from ..launch.findings import ConfigError

    if not command:
        raise ConfigError("there is no script; write `zae launch [FILE] script.py`")
    script = Path(command[0])
    if module or script.is_file():
        return
    there = [p.name for p in script.parent.glob("*.py")] if script.parent.is_dir() else []
    meant = nearest(script.name, there)
    hint = f"did you mean {str(script.parent / meant)!r}?" if meant else "give its path, or -m and a module's name"
    raise ConfigError(f"there is no script {command[0]!r}; {hint}")


def _move_file(arguments: list[str]) -> list[str]:
    """Let options stand between FILE and SCRIPT, where a command line ends to look for them."""
    if arguments[:1] == ["launch"] and len(arguments) > 1 and arguments[1].endswith(_SUFFIXES):
        return ["launch", "--config_file", *arguments[1:]]
    return arguments


def _explain(error: Any, arguments: Sequence[str]) -> str:
    """The error of a command line: which name may have been meant, and whose help says more."""
    text = " ".join(str(error.format_message()).split()).rstrip(".")
    path, command = _command_of(arguments)
    if unknown := re.match(r"No such command '(.*?)'", text):  # what typer adds may not be near at all
        names = list(getattr(command, "commands", {}))
        text, meant = f"there is no command {unknown[1]!r}", nearest(unknown[1], names)
        text += f". Did you mean {meant!r}?" if meant else f"; there are {', '.join(names)}."
    elif text.startswith("No such option"):
        names = [name for parameter in command.params for name in parameter.opts if name.startswith("-")]
        text, meant = f"there is no option {error.option_name!r} of `{path}`", nearest(error.option_name, names)
        text += f". Did you mean {meant!r}?" if meant else "."
    else:
        text += "."
    return f"{text} See `{path} --help`."


def _command_of(arguments: Sequence[str]) -> tuple[str, Any]:
    """The command that arguments call, as far as there is one, and how it is called."""
    command: Any = typer.main.get_command(app)
    path = ["zae"]
    for word in arguments:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
        path.append(word)
    return " ".join(path), command


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _table(title: str, values: dict[str, str]) -> None:
    say(f"{title}:")
    for key, value in values.items():
        say(f"  {key} {value}")


def _print(found: Iterable[object]) -> None:
    say(*found)


def _fail(message: str) -> NoReturn:
    say(f"zae: {message}", err=True)
    sys.exit(2)
