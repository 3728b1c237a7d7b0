"""Whether a server answers, told within seconds: clients of services retry for minutes where nothing does."""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

_ABSENT = (407, 502, 503, 504)  # what a proxy answers for a server that it cannot or may not reach


def unreachable(url: str, seconds: float = 4.0) -> str:
    """Tell why a server cannot be reached; an empty text when it answers, whatever it says.

    Parameters
    ----------
    url : str
        Of http or https; proxies are taken from the environment.
    seconds : float
        The longest this takes, looking up the name included.
    """
    answer = list[str]()
    thread = threading.Thread(target=_ask, args=(url, seconds, answer), name="zae reach", daemon=True)
    thread.start()  # a thread, since no timeout bounds the looking up of a name
    thread.join(seconds)
    return answer[0] if answer else f"{url} has not answered within {seconds:g} s"


def _ask(url: str, seconds: float, answer: list[str]) -> None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            answer.append("")
    except urllib.error.HTTPError as error:
        answer.append(f"{url} answers with {error.code}" if error.code in _ABSENT else "")
        error.close()
    except urllib.error.URLError as error:  # a certificate that only Python does not trust is no absence
        known = isinstance(error.reason, ssl.SSLError)
        answer.append("" if known else f"{url} cannot be reached ({error.reason})")
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer.append(f"{url} cannot be reached ({error})")


@contextmanager
def no_wandb_reports() -> Iterator[None]:
    """Keep wandb from reporting on itself, which holds up the end of a process for 10 s where packets get lost."""
    name = "WANDB_ERROR_REPORTING"
    before = os.environ.get(name)
    os.environ.setdefault(name, "false")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
