"""Secrets and personal data: found by their form, and by their check digits where they have some. `mask` puts a word in their place."""

from __future__ import annotations

import re
from collections.abc import Iterator

KINDS = ("mail", "phone", "iban", "card", "key")

_MAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}"
                   r"(?!(?:png|jpe?g|gif|svg|webp|css|js|ts|json|html?|pdf|zip|mp[34]|exe)\b)[A-Za-z]{2,24}(?![\w-])")     # icon@2x.png is a picture
_IBAN = re.compile(r"\b(?:[A-Z]{2}\d{2}(?:[ \u00a0]?[A-Z0-9]{4}){2,7}(?:[ \u00a0]?[A-Z0-9]{1,3})?|[a-z]{2}\d{2}[a-z0-9]{11,30})\b")
_DIGITS = re.compile(r"(?<![\w.,€$£-])(?<!\d[ \u00a0])(?:\d{14,19}|"
                     r"\d{4}([ \u00a0-])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ \u00a0-])\d{6}\2\d{4,5})(?![\w])(?![ -]\d)")
_PHONE = re.compile(r"(?<![\w.,/:#€$£+-])(?<!\d[ \u00a0])(?:(?:\+|00)[1-9]\d{0,2}[ \u00a0./()-]{0,3}(?:\(0\))?|\(?0[1-9]\d{0,4}\)?[ \u00a0./-]{1,3}|"
                    r"\(\d{3}\) ?|0[1-9](?=\d{8,10}\b)|\d{3}[-.](?=\d{3}[-.]\d{4}\b))(?:\d[ \u00a0./()-]{0,2}){5,12}\d(?![\w%€])(?![.,-]\d)")
_KEY = re.compile(
    r"\b(?:sk-(?:proj-|ant-|or-)?[\w-]{20,}|gh[pousr]_\w{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}|hf_[A-Za-z]{30,}|(?:AKIA|ASIA)[A-Z0-9]{16}|"
    r"AIza[\w-]{35}|xox[abprs]-[\w-]{10,}|[sr]k_(?:live|test)_\w{16,}|npm_\w{36}|SG\.[\w-]{16,}\.[\w-]{16,}|"
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|\d{8,10}:AA[\w-]{32,}|(?:SK|AC)[0-9a-f]{32}|[\w-]{23,28}\.[\w-]{6}\.[\w-]{27,})"
    r"|\b[a-z][a-z0-9+]{1,15}://[^\s:/@]{1,64}:[^\s:/@]{3,128}@[\w.-]+"
    r"|\b[Bb]earer [\w.=+/-]{20,}"
    r"|(?i:\b[\w-]{0,30}(?:secret|token|account|access|api|private)[_-]?(?:access[_-]?)?key\s{0,2}[:=]\s{0,2}[\"']?)(?=\S*\d)[\w+/=.-]{12,}"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[\s\S]{0,5000}?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|$)"
    r"|(?i:\b(?:password|passwort|kennwort|passwd|pwd|mot de passe|api[ _-]?key|secret|token)\b\s{0,2}(?:is|ist|lautet|est)?\s{0,2}[:=]\s{0,2})"
    r"(?=\S*[\d!#$%&*+=^~])\S{6,}")
_ISSUED = ((16, re.compile(r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|6011|64[4-9]|65|35(?:2[89]|[3-8])")), (15, re.compile(r"3[47]")),
           (14, re.compile(r"30[0-5]|3[689]")), (19, re.compile(r"4|62|6011|64[4-9]|65")), (18, re.compile("62")), (17, re.compile("62")))
_DATE = re.compile(r"^\(?0?\d{1,4}[./-]\d{1,2}[./-]\d{2,4}$|^\d{4}-\d{2}-\d{2}")
_WORDS = {"mail": "[e-mail]", "phone": "[phone]", "iban": "[IBAN]", "card": "[card]", "key": "[secret]"}
_IBAN_LENGTHS = {"DE": 22, "AT": 20, "CH": 21, "FR": 27, "ES": 24, "IT": 27, "NL": 18, "BE": 16, "GB": 22, "LU": 20, "PL": 28, "PT": 25, "DK": 18,
                 "SE": 24, "NO": 15, "FI": 18, "IE": 22, "CZ": 24, "LI": 21}


def found(text: str, kinds: tuple[str, ...] = KINDS) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of everything personal, from left to right; what belongs to two kinds is told once."""
    spans: list[tuple[str, int, int]] = []
    for kind, start, end in _candidates(text):
        if not any(start < taken_end and taken < end for _, taken, taken_end in spans):
            spans.append((kind, start, end))
    return iter(sorted((span for span in spans if span[0] in kinds), key=lambda span: span[1]))


def _candidates(text: str) -> Iterator[tuple[str, int, int]]:
    """The surest kinds first."""
    for match in _KEY.finditer(text):
        yield "key", *match.span()
    if "@" in text:
        for match in _MAIL.finditer(text):
            yield "mail", *match.span()
    if sum(map(str.isdigit, text)) < 7:
        return
    for match in _IBAN.finditer(text):
        if end := _iban(match[0]):
            yield "iban", match.start(), match.start() + end
    for match in _DIGITS.finditer(text):
        if is_card(match[0]):
            yield "card", match.start(), match.start() + len(match[0].rstrip(" \u00a0-"))
    for match in _PHONE.finditer(text):
        if is_phone(match[0]):
            yield "phone", *match.span()


def mask(text: str, kinds: tuple[str, ...] = KINDS) -> str:
    """The text with a word in square brackets in place of everything personal."""
    done, here = [], 0
    for kind, start, end in found(text, kinds):
        done += [text[here:start], _WORDS[kind]]
        here = end
    return "".join([*done, text[here:]])


def is_iban(text: str) -> bool:
    """Whether the check digits agree (ISO 13616: modulo 97), and the length where the country's is known."""
    plain = re.sub(r"[ \u00a0]", "", text).upper()
    if not re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{11,30}", plain) or len(plain) != _IBAN_LENGTHS.get(plain[:2], len(plain)):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _iban(text: str) -> int:
    """How many letters of ``text`` are an IBAN; a word that follows it may look like its last group."""
    while text:
        if is_iban(text):
            return len(text)
        text = text[:-1].rstrip(" \u00a0") if re.search(r"[ \u00a0]", text[-5:]) else ""
    return 0


def is_card(text: str) -> bool:
    """Whether the digits are a card number: as many as an issuer whose cards begin so uses, and in agreement with Luhn's check digit."""
    digits = re.sub(r"\D", "", text)
    if len(set(digits)) < 2 or not any(len(digits) == size and start.match(digits) for size, start in _ISSUED):
        return False
    doubled = [int(d) * 2 if n % 2 else int(d) for n, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def is_phone(text: str) -> bool:
    """Whether the digits can be a telephone number and are no day, no address and no time."""
    digits = re.sub(r"\D", "", text)
    return 8 <= len(digits) <= (12 if digits[:1] == "0" != digits[1:2] else 15) and not _DATE.match(text.strip()) and len(set(digits)) > 2
