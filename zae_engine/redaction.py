"""One cleaning for all that is written down: what looks like a password or a token becomes ``***``.

By the name before it (``--password``, ``api_key:``, ``?sig=``), by its form (``hf_…``, a JWT), by its place in an
address (``https://me:…@host``). It cannot find what has neither. Imports nothing but the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

HIDDEN = "***"
Prose = Callable[[re.Match[str], str], bool]
_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")

# Words that make a name one of a secret, whatever stands beside them.
_ALWAYS = re.compile(
    r".*passw(?:or)?d.*|passw.*|passphrase|passcode|pswd|(?!pwd$).*pwd|pwd|(?:db|user|my|ssh|admin)pass|secrets?|credentials?|creds?|"
    r"authorization|oauth|bearer|jwt|cookies?|tkn|pat|signature|"
    r"(?:api|access|secret|private|auth|ssh|wandb|hf|account|master|license|encryption)keys?|"
    r"otp|(?:hf|api|auth|access|my|user|gh|github|gitlab|bot|wandb|refresh|csrf)token"
)
# Words that do so unless one of these stands beside them: `pad_token`, `sort_key`, `pass_rate`, `pin_memory`.
_PLAIN = {
    "token": "n num max min pad eos bos mask unk sep cls special per id ids type types len length dim count size level "
    "dropout drop budget limit rate image vocab embed embedding embeddings weight loss style mixing merge pool pooling "
    "classifier batch position shift register prefix file path class error unexpected next first last new best",
    "key": "sort primary foreign value query dim padding mask head heads proj projection num n size cache data batch "
    "state dict input output image label text target column error missing unexpected lookup bias by func file path "
    "id name frame point metric monitor",
    "pass": "rate n num forward backward first second single multi low high band one two per over through at all only "
    "k count",
    "auth": "mode type url method enabled required scheme provider file",
    "pin": "memory cpu cpus core cores thread threads host hosts device devices",
    "sig": "level figs digits",
    "pw": "conv layer",
}
_WEAK = {word: frozenset(company.split()) for word, company in _PLAIN.items()}

_MANY, _OF_SERVICES = (
    frozenset({"keys", "tokens"}),
    frozenset({"api", "access", "secret", "private", "auth", "refresh"}),
)

_SCHEME = r"(?i:bearer|basic|token|digest|negotiate|apikey)"
_LOGIN = re.compile(r"(://)(?:[^\s@/:\"'<>]{0,500}:[^\s\"'<>]{0,500}|[^\s@/\"'<>]{1,500})(?=@)")  # bounds, for time
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'"
_NAME = re.compile(r"(?<![\w.-])([\w.-]{1,200})([\"']?(?:\s*=\s*|\s*:\s*))")
_VALUE = re.compile(rf"{_QUOTED}|(?:{_SCHEME}\s+)?[^\s\"',&;}})\]]+")
_HEADER = re.compile(r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)(\s*:\s*)([^\"'\n]+)")
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{12,}|\bgh[pousr]_[A-Za-z0-9]{8,}|\bgithub_pat_\w{8,}|\bglpat-[\w-]{8,}|\b(?:AKIA|ASIA)[A-Z0-9]{8,}\b"
    r"|\bsk-(?=[\w-]{0,99}\d)[\w-]{12,}|\b[srp]k_(?:live|test)_\w{8,}|\bxox[a-z]-[\w-]{6,}|\bxapp-[\w-]{8,}|\bAIza[\w-]{30,}"
    r"|\b(?:r8|gsk|lsv2_(?:pt|sk)|shpat|dop_v1)_\w{20,}|\bnvapi-[\w-]{20,}|\bhvs\.[\w-]{20,}|\bSG\.[\w-]{16,}\.[\w-]{16,}"
    r"|\bgl(?:dt|rt|ptt|ft|oas|soat|cbt|agent|imt)-[\w-]{16,}|\b\d{8,10}:AA[\w-]{30,}"
    r"|(?<=hooks\.slack\.com/)(?:services|workflows)/\S+|(?<=/api/webhooks/)\d+/[\w-]+"
    r"|\bya29\.[\w-]{8,}|\bnpm_[A-Za-z0-9]{30,}|\bpypi-[\w-]{30,}|\bdckr_pat_[\w-]{8,}|\bdapi[0-9a-f]{32}\b"
    r"|\bwandb_v\d_\w{20,}|\beyJ[\w+/-]{10,}=*(?:\.[\w-]*){0,2}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_BEARER = re.compile(r"\b([Bb]earer\s+)(?=\S{0,99}[\d_.-])[\w.~+/=-]{8,}")
# W&B's older keys are 40 hex digits, as names of git's commits are.
_HEX = re.compile(r"(?<![\w/@.-])(?:local-)?[0-9a-f]{40}(?![\w/@.-])")
_COMMIT = re.compile(r"(?i)(?:commit|sha\d*|rev|revision|hash|checksum|git|ref|digest|tree|head|version)[\W_]*$")
_RANDOM = re.compile(r"[\"']?(?=[^\"']*\d)[\w~+/=-]{16,}[\"']?")
_USERS = ("-u", "-U", "--user", "--login", "--proxy-user")  # of curl and others: name and password
_USER = re.compile(
    r"(?<![\w-])((?:-[uU]|--(?:proxy-)?user|--login)(?:=|\s+|[\"'],\s*[\"'])?[^\s:/='\"-][^\s:/='\"]*:)(?!//)[^\s'\"]+"
)
# An option and its value within a text: of a command that has failed, as a line or as a list.
_OPTION = re.compile(r"(?<![\w-])(--?[A-Za-z][\w.-]{0,99})(?:\s+|[\"'],\s*)")
_ARGUMENT = re.compile(rf"{_QUOTED}|[^\s\"',;\])]+")
_PROSE = re.compile(
    r"-.*|(?:an?|and|are|as|at|by|for|from|has|have|if|in|instead|is|may|must|needs?|not|of|on|option|or|should|that|the|to|"
    r"was|were|which|with|without)"
)
_HEADED = re.compile(r"(?s)^(-{0,2}[A-Za-z][\w.-]*=)(.*)$")


def is_secret_name(name: str) -> bool:
    """Whether an option, a variable or a key of that name holds what is not to be shown.

    Examples
    --------
    >>> [is_secret_name(name) for name in ("--api-key", "DB_PASS", "accessToken", "n_tokens", "pass_rate", "author")]
    [True, True, True, False, False, False]
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if not _MANY.isdisjoint(words) and not _OF_SERVICES.isdisjoint(words):
        return True
    return any(_ALWAYS.fullmatch(word) or (word in _WEAK and _WEAK[word].isdisjoint(words)) for word in words)


def redact(text: str) -> str:
    """Text without what looks like a secret: of an exception, say, or of a value."""
    text = _LOGIN.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
    text = _without_values(text, _NAME, _VALUE, _named_in_prose)
    text = _without_values(text, _OPTION, _ARGUMENT, _option_in_prose)  # of a command that has failed, say
    text = _USER.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1{HIDDEN}", _FORMS.sub(HIDDEN, text))
    return _HEX.sub(lambda found: found[0] if _COMMIT.search(text[: found.start()][-30:]) else HIDDEN, text)


def without_secrets(words: Iterable[str]) -> list[str]:
    """A command line without what looks like a secret: in its words, and behind options of such names."""
    clean, before = list[str](), ""
    for word in words:
        hide = _is_named_by(before, word)
        clean.append(HIDDEN if hide else _word(before, word))
        before = word if not hide else before if re.fullmatch(_SCHEME, word) else ""
    return clean


def _is_named_by(before: str, word: str) -> bool:
    """Whether a word is the value of the one before it, ``--token X`` or ``Authorization: X``."""
    option = before.startswith("-") and "=" not in before and not re.match("--[A-Za-z]", word)
    return (option or before.endswith(":")) and " " not in before and is_secret_name(before)


def _without_values(text: str, name: re.Pattern[str], value: re.Pattern[str], in_prose: Prose) -> str:
    """Text without the values that stand behind secret names, unless both are mere words of a sentence.

    Behind a name that is none of a secret's there may be one, too: ``url=...?token=X``.
    """
    parts, place = list[str](), 0
    while found := name.search(text, place):
        behind = value.match(text, found.end()) if is_secret_name(found[1]) else None
        parts.append(text[place : found.end()])
        place = found.end()
        if behind and not in_prose(found, behind[0]):
            parts.append(_hidden(behind[0]))
            place = behind.end()
    return "".join([*parts, text[place:]])


def _hidden(value: str) -> str:
    quote = value[0] if value[0] in "\"'" else ""
    return f"{quote}{HIDDEN}{quote}"


def _word(before: str, word: str) -> str:
    if (headed := _HEADED.match(word)) and is_secret_name(headed[1]):
        return headed[1] + HIDDEN
    if before in _USERS and re.match(r"[^:/]+:(?!//)", word):
        return f"{word.partition(':')[0]}:{HIDDEN}"
    return word if _HEX.fullmatch(word) and _COMMIT.search(before) else redact(word)


def _named_in_prose(name: re.Match[str], value: str) -> bool:
    return _in_sentence(name[1], name[2]) and not _RANDOM.fullmatch(value)


def _option_in_prose(_: re.Match[str], value: str) -> bool:
    return bool(_PROSE.fullmatch(value))


def _in_sentence(name: str, separator: str) -> bool:
    """Whether it may be mere words, as in ``missing key: 'weight'``."""
    return separator.startswith(":") and separator != ":" and name.lower() in (*_WEAK, "pat", "signature", "cookie")
