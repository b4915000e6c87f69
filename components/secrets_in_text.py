"""Credentials in a text: keys with a known shape, private key blocks, passwords in addresses and in assignments.

Published examples (`AKIA...EXAMPLE`), placeholders (`your_api_key`) and code that names a secret without holding one
(`password = getpass()`) are none. The value never leaves this module: callers get kind and place.
"""

import re

from components.text_spans import Rule, Span, apart

_HEAD = r"(?<![A-Za-z0-9_-])"
_TAIL = r"(?![A-Za-z0-9_-])"
_PLACEHOLDER = re.compile(
    r"example|placeholder|your|dummy|sample|changeme|change_me|redacted|insert|replace|secret_?key|api_?key|password|passwd"
    r"|xxxx|\*\*\*|\.\.\.|123456|abcdef|<|\$\{|\{\{|%s|hunter2"
    r"|(?<![a-z0-9])(?:token|env|config|none|null|true|false|hidden)(?![a-z0-9])",
    re.IGNORECASE,
)
_FEWEST_CHARACTERS = 5
"""A key repeats few of its characters; `xoxb-aaaa` and `sk-0000` hold fewer different ones than this."""


def _is_varied(match: re.Match[str]) -> bool:
    value = match[0]
    return len(set(value[-16:])) >= _FEWEST_CHARACTERS and "EXAMPLE" not in value.upper() and "xxxx" not in value.lower()


def _has_digit(match: re.Match[str]) -> bool:
    return _is_varied(match) and any(character.isdigit() for character in match[0])


def _is_password(match: re.Match[str]) -> bool:
    """Letters with digits or signs, as nobody writes words or code."""
    value = match["value"]
    has_letter = any(character.isalpha() for character in value)
    has_other = any(character.isdigit() or character in "!@#$%^&*+=/~-" for character in value[1:])
    return has_letter and has_other and len(set(value)) >= _FEWEST_CHARACTERS and not _PLACEHOLDER.search(value)


def _is_url_password(match: re.Match[str]) -> bool:
    value = match["value"]
    return not _PLACEHOLDER.search(value) and value.lower() not in ("pass", "pwd", "pw", "user", "secret")


def _key(kind: str, pattern: str, *anchors: str) -> Rule:
    return Rule(kind, anchors, re.compile(_HEAD + pattern + _TAIL), _is_varied)


def _mixed_key(kind: str, pattern: str, *anchors: str) -> Rule:
    return Rule(kind, anchors, re.compile(_HEAD + pattern + _TAIL), _has_digit)


RULES = (
    Rule(
        "private_key",
        ("-----BEGIN",),
        re.compile(
            r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----\s{0,4}"
            r"(?:[A-Za-z0-9+/=:, .-]{8,80}\s{1,4}|[A-Za-z0-9+/=\\]{16,})"
        ),
        lambda match: "..." not in match[0],
    ),
    _key("aws_access_key_id", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}", "AKIA", "ASIA", "ABIA", "ACCA"),
    Rule(
        "aws_secret_access_key",
        ("aws", "AWS", "Aws", "AKIA", "ASIA", "ecret"),
        re.compile(
            r"(?:(?i:secret[_ -]?(?:access[_ -]?)?key|aws[_ -]?secret)[\"']?\s{0,3}(?:[:=]|=>|is)?\s{0,3}[\"']?"
            r"|(?<![A-Za-z0-9/+])(?:AKIA|ASIA)[A-Z0-9]{16}[^A-Za-z0-9/+]{1,6})"
            r"(?P<value>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
        ),
        _has_digit,
        group="value",
    ),
    _key("github_token", r"gh[pousr]_[A-Za-z0-9]{36,255}", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    _key("github_token", r"github_pat_[A-Za-z0-9_]{22,255}", "github_pat_"),
    _key(
        "gitlab_token",
        r"gl(?:pat|dt|rt|ptt|cbt|ft|soat)-[A-Za-z0-9_.-]{20,300}",
        "glpat-",
        "gldt-",
        "glrt-",
        "glptt-",
        "glcbt-",
        "glft-",
        "glsoat-",
    ),
    _mixed_key("hugging_face_token", r"(?:hf_|api_org_)[A-Za-z0-9]{30,60}", "hf_", "api_org_"),
    _key("anthropic_key", r"sk-ant-[A-Za-z0-9_-]{20,200}", "sk-ant-"),
    _mixed_key("openrouter_key", r"sk-or-[A-Za-z0-9_-]{20,200}", "sk-or-"),
    _mixed_key("openai_key", r"sk-(?:proj-|svcacct-|admin-|None-)?(?!ant-|or-)[A-Za-z0-9_-]{20,250}", "sk-"),
    _key("google_api_key", r"AIza[A-Za-z0-9_-]{35}", "AIza"),
    _mixed_key("google_oauth", r"(?:ya29\.[A-Za-z0-9_-]{20,300}|GOCSPX-[A-Za-z0-9_-]{28})", "ya29.", "GOCSPX-"),
    _mixed_key("slack_token", r"xox[abeoprs]-[A-Za-z0-9-]{10,250}", "xox"),
    _mixed_key("slack_token", r"xapp-\d-[A-Za-z0-9-]{10,250}", "xapp-"),
    Rule(
        "webhook",
        ("hooks.slack.com", "discord.com/api", "discordapp.com/api"),
        re.compile(
            r"(?:hooks\.slack\.com/services/T[A-Za-z0-9]{6,20}/B[A-Za-z0-9]{6,20}/[A-Za-z0-9]{16,40}"
            r"|discord(?:app)?\.com/api/webhooks/\d{15,22}/[A-Za-z0-9_-]{40,100})"
        ),
        _is_varied,
    ),
    _key("stripe_key", r"(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,250}", "k_live_", "k_test_"),
    _key("stripe_key", r"whsec_[A-Za-z0-9]{24,100}", "whsec_"),
    _mixed_key("npm_token", r"npm_[A-Za-z0-9]{36}", "npm_"),
    _key("pypi_token", r"pypi-[A-Za-z0-9_-]{50,400}", "pypi-"),
    _key("sendgrid_key", r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}", "SG."),
    _mixed_key("twilio_key", r"(?:AC|SK)[0-9a-f]{32}", "AC", "SK"),
    _mixed_key("mailgun_key", r"key-[0-9a-f]{32}", "key-"),
    _mixed_key("telegram_bot_token", r"\d{8,10}:AA[A-Za-z0-9_-]{33}", ":AA"),
    _mixed_key("digitalocean_token", r"do[opr]_v1_[0-9a-f]{64}", "_v1_"),
    _mixed_key("databricks_token", r"dapi[0-9a-f]{32}(?:-\d)?", "dapi"),
    Rule(
        "azure_key",
        ("AccountKey=", "SharedAccessKey="),
        re.compile(r"(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{43,86}={0,2}"),
        _is_varied,
    ),
    _key("jwt", r"eyJ[A-Za-z0-9_-]{8,8000}\.eyJ[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{16,1000}", "eyJ"),
    Rule(
        "url_with_password",
        ("://",),
        re.compile(
            r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s:/@\"'<>?#]{0,100}:(?P<value>[^\s/@\"'<>]{3,100})@[A-Za-z0-9\[]"
        ),
        _is_url_password,
    ),
    Rule(
        "authorization",
        ("earer ", "asic "),
        re.compile(
            r"(?i:authorization)[\"']?\s{0,2}[:=,]\s{0,2}[\"']?(?i:bearer|basic) {1,2}(?P<value>[A-Za-z0-9+/_.=-]{16,2000})"
        ),
        _is_password,
        group="value",
    ),
    Rule(
        "password_assignment",
        ("assw", "ASSW", "pwd", "PWD", "密码", "口令", "assphrase"),
        re.compile(
            r"(?i:password|passwd|passphrase|pwd|密码|口令)(?![A-Za-z])[\"'`*]{0,3}\s{0,3}(?:[:=：]|=>|:=|是|为)\s{0,3}"
            r"(?P<quote>[\"'`]?)(?P<value>[^\s\"'`,;(){}\[\]<>，。]{6,100})(?P=quote)(?![\w(\[.])"
        ),
        _is_password,
        group="value",
    ),
    Rule(
        "key_assignment",
        ("key", "KEY", "Key", "oken", "OKEN", "ecret", "ECRET"),
        re.compile(
            r"(?i:api[_ -]?key|access[_ -]?key|secret[_ -]?key|auth[_ -]?token"
            r"|access[_ -]?token|client[_ -]?secret|private[_ -]?token|secret)"
            r"[\"'`*]{0,3}\s{0,3}(?:[:=：]|=>|:=)\s{0,3}(?P<quote>[\"'`]?)"
            r"(?P<value>[A-Za-z0-9_+/=~-]{16,200})(?P=quote)(?![\w(\[.])"
        ),
        lambda match: _is_password(match) and any(character.isdigit() for character in match["value"]),
        group="value",
    ),
)


_ANCHORS = tuple((anchor, number) for number, rule in enumerate(RULES) for anchor in rule.anchors)


def find_secrets(text: str) -> list[Span]:
    """Every credential of a text, in order of place."""
    wanted = [number for anchor, number in _ANCHORS if anchor in text]
    if not wanted:
        return []
    return apart([span for number in sorted(set(wanted)) for span in RULES[number].spans(text)])
