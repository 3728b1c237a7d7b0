"""Which value is the best, in one rule: of weights, checkpoints, histories, reports and loggers. Imports no torch.

The best is the least value, or with mode ``'max'`` the greatest, of those that are finite; of equal ones it is the
first. NaN and infinities are never the best: an infinite value comes from a division by zero far more often than from a
perfect model, and whatever is kept for it would stay for good, since nothing beats it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

MODES = ("min", "max")
RULE = "a value that is not finite is never the best"


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MAX = _set(
    "acc accuracy accuracies top f1 f2 fbeta fscore f1score auc auroc roc auprc aucpr aupr prauc ap map mar precision"
    " recall sensitivity specificity ppv npv tpr tnr iou miou giou jaccard dice psnr ssim msssim snr sisnr sdr sisdr"
    " pesq stoi bleu sacrebleu rouge meteor cider chrf bertscore mcc kappa r2 pearson pearsonr spearman spearmanr"
    " kendall corr correlation ndcg mrr hit hits reward rewards success"
)
_MIN = _set(
    "loss losses error errors err perplexity ppl bpb bpc bpd wer cer mer der eer mse mae rmse nrmse msle rmsle mape"
    " smape wape mase nll bce ce kl kld fpr fnr brier ece fid kid lpips crps hausdorff chamfer regret cost"
)
# Words that turn a name around, or make something else of it: an accuracy's drop is no accuracy.
_OTHER = _set(
    "neg negative minus inverse inverted inv not non one drop gap std var variance diff difference delta ratio"
    " threshold weight weights scale count number num"
)
_WORD = re.compile(r"[A-Z]{2,}(?=[A-Z][a-z]|[0-9_\W]|$)[0-9]*|[A-Z]?[a-z]+[0-9]*|[A-Z]+[0-9]*|[0-9]+")


def is_finite(value: Any) -> bool:
    """Whether a value is one that can be the best."""
    try:
        return value is not None and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):  # a text, a whole number beyond all floats
        return False


def is_better(value: Any, than: Any, mode: str, by: float = 0.0) -> bool:
    """Whether a value is better than the best so far.

    Parameters
    ----------
    value, than : float or None
        Any finite value is better than one that is not, or than none.
    mode : {'min', 'max'}
    by : float
        By more than this it has to be.
    """
    if not is_finite(value) or not is_finite(than):
        return is_finite(value)
    return bool((than - value if mode == "min" else value - than) > by)


def ranked(items: Iterable[T], value_of: Callable[[T], Any], mode: str) -> list[T]:
    """Those whose value can be the best, the best first, of equal ones the earlier first."""
    sign = 1 if mode == "min" else -1
    fit = [(sign * value, item) for item in items if is_finite(value := value_of(item))]
    return [item for _, item in sorted(fit, key=lambda pair: pair[0])]


def first_best(items: Iterable[T], value_of: Callable[[T], Any], mode: str) -> T | None:
    """The best of `items`, the first of equal ones; None when none has a finite value."""
    return next(iter(ranked(items, value_of, mode)), None)


def direction_of(name: str) -> str | None:
    """``'min'`` or ``'max'`` for a metric whose name tells it (``'val_loss'``, ``'test_top5_acc'``, ``'mAP50'``).

    None for a name that does not tell, or says two things (``'acc_drop'``, ``'loss_acc'``).
    """
    words = [*re.split(r"[\W_]+", name.lower()), *(word.lower() for word in _WORD.findall(name))]
    words = [word.rstrip("0123456789") if word not in _MAX | _MIN else word for word in words]
    if _OTHER & {*words} or re.match(r"\s*1\s*[-_–−]", name):
        return None
    if name.lower().rstrip("_0123456789").endswith(("loss", "error", "err")):  # a dice_loss is a loss, too
        return "min"
    less, more = bool(_MIN & {*words}), bool(_MAX & {*words})
    return ("min" if less else "max") if less != more else None


def resolved(name: str, mode: Any, option: str) -> str:
    """The mode, if it is one; else a ValueError says what to write for `option`."""
    if mode in MODES:
        return str(mode)
    write = f"write {option}='min' or {option}='max'"
    if mode is None:
        raise ValueError(f"whether less or more of {name!r} is better cannot be told from its name; {write}")
    raise ValueError(f"{option}={mode!r} is not known; {write}")
