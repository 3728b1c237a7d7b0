"""What of W&B's settings a run folder may say, which may be a stranger's; any other only if the user names it, too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..trust import is_inside, is_name

LABELS = frozenset(
    {"entity", "project", "name", "notes", "tags", "config_exclude_keys", "config_include_keys", "allow_val_change",
     "group", "job_type", "mode", "force", "reinit", "resume", "resume_from", "fork_from", "anonymous", "log_model"}
)  # fmt: skip
_WORDS = frozenset(
    {"console", "disable_code", "disable_git", "entity", "finish_timeout", "init_timeout", "mode", "project", "quiet",
     "resume", "run_group", "run_job_type", "run_name", "run_notes", "run_tags", "show_colors", "show_emoji",
     "show_errors", "show_info", "show_warnings", "silent", "symlink", "summary_timeout", "x_disable_meta",
     "x_disable_stats", "x_disable_machine_info", "x_label", "x_primary", "x_save_requirements",
     "x_stats_sampling_interval", "x_transaction_log_flush_interval", "x_update_finish_state"}
)  # fmt: skip


def wandb_admits(name: str, value: Any) -> bool:
    """Whether a folder may say this argument of ``wandb.init``."""
    if name.startswith("settings."):
        return _setting_admitted(name.removeprefix("settings."), value)
    if name == "config":  # as a text it is a file's path
        return isinstance(value, Mapping)
    if name == "id":
        return is_name(value)
    return name in LABELS or (name in ("save_code", "sync_tensorboard", "tensorboard", "monitor_gym") and not value)


def settings_in(folder: Path) -> Path | None:
    """The file of settings that wandb reads in the working directory (or WANDB_DIR), if that is in the folder."""
    here = Path(os.environ.get("WANDB_DIR") or ".")
    found = [here / name / "settings" for name in ("wandb", ".wandb")]
    return next((path for path in found if path.exists() and is_inside(path, folder)), None)


def _setting_admitted(name: str, value: Any) -> bool:
    if name == "base_url":
        import wandb

        return bool(value == wandb.setup().settings.base_url)  # of the environment and of `wandb login`
    return value is None or name in _WORDS or (name == "run_id" and is_name(value))
