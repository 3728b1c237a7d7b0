"""Whether wandb has credentials for a server, and whether that takes them; nobody is asked."""

from __future__ import annotations

import os
from typing import Any


def has_key(url: str) -> bool:
    """Whether there are credentials for a server where wandb looks for them; nobody is asked."""
    try:
        return _credentials(url) is not None
    except (ImportError, TypeError):  # another version of wandb
        from requests.utils import get_netrc_auth  # type: ignore[import-untyped, unused-ignore]

        return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(url))


def refusal(url: str, key: str | None = None) -> str:
    """What a server says against the credentials, in one line; an empty text when it takes them. Some seconds."""
    try:
        from wandb.errors import AuthenticationError
        from wandb.sdk.lib.wbauth import AuthApiKey, HostUrl

        try:
            found = AuthApiKey(host=HostUrl(url), api_key=key) if key else _credentials(url)
            found.verify()
        except AuthenticationError as error:
            return str(error).strip().splitlines()[0]
    except (ImportError, TypeError, AttributeError):  # another version of wandb: its init tells
        pass
    return ""


def _credentials(url: str) -> Any:
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import authenticate_session

    try:
        return authenticate_session(host=url, source="zae-engine", prompt=False, update_session=False)
    except AuthenticationError:  # one that cannot be a key
        return None
