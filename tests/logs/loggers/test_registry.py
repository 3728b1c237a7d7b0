"""Every name leads to its logger; a wrong one, and a client that is missing, are said with what to do."""

import subprocess
import sys

import pytest

from zae_engine.logs.loggers.logger import Logger
from zae_engine.logs.loggers.registry import LOGGERS, check_settings, logger_class, require


class Absent(Logger):
    name = "absent"
    module = "zae_absent.client"
    extra = "absent"


@pytest.mark.parametrize("name", sorted(LOGGERS))
def test_a_name_leads_to_its_logger(name):
    found = logger_class(name)
    assert issubclass(found, Logger)
    assert found.name == name


def test_the_near_miss_is_named():
    with pytest.raises(ValueError, match="no logger 'ml_flow'; did you mean 'mlflow'"):
        logger_class("ml_flow")
    with pytest.raises(ValueError, match="no logger 'xyz'; there are " + ", ".join(map(repr, sorted(LOGGERS)))):
        logger_class("xyz")


def test_a_missing_client_is_said_with_the_command():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'zae-engine\[absent\]'"):
        require(Absent)
    require(logger_class("csv"))  # needs nothing


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="absent logger has no setting 'log_dr'; did you mean 'log_dir'"):
        check_settings(Absent, {"log_dr": 1}, ("log_dir", "flush_secs"))
    check_settings(Absent, {"log_dir": 1}, (name for name in ("log_dir", "flush_secs")))


@pytest.mark.usefixtures("starts_processes")
def test_no_client_is_imported_before_it_is_used():
    code = """
import sys
from zae_engine.logs.loggers.registry import LOGGERS, installed, logger_class
for name in LOGGERS:
    installed(logger_class(name).module or "csv")
clients = ("torch", "wandb", "neptune", "tensorboard", "mlflow", "trackio", "accelerate")
print([client for client in clients if client in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
