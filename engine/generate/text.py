"""From token numbers to text while the answer is still being spoken."""

from __future__ import annotations

import unicodedata

BROKEN = "\ufffd"                          # what a decoder shows for bytes that are no whole character yet
JOINER = "\u200d"
HELD_AT_MOST = 48                          # tokens; a model that speaks broken bytes for longer is shown as it is


class Detokenizer:
    """Turns tokens into text piece by piece: ``"".join(pieces)`` is exactly the decoded whole.

    A piece never ends within a UTF-8 character, and not within an emoji or flag made of several characters: the tail that
    might still change is held back until the next token. Each step decodes only the tokens since the last clean cut and
    the clean stretch before it, which a decoder needs to know whether a word is the first one (its space depends on it).
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._context: list[int] = []      # the clean stretch before
        self._fresh: list[int] = []        # tokens since
        self._said = ""                    # text of context + fresh that is out already

    def push(self, token: int) -> str:
        """Text that is certain now; often ``""``."""
        self._fresh.append(int(token))
        text = self._decode()
        end = len(text) if len(self._fresh) > HELD_AT_MOST else certain(text)
        if end < len(self._said) or not text.startswith(self._said):
            return ""                      # a byte-fallback decoder takes back what it showed until the character is whole
        piece = text[len(self._said):end]
        if end == len(text):
            self._context, self._fresh = self._fresh, []
            self._said = self._decode()
        else:
            self._said = text[:end]
        return piece

    def finish(self) -> str:
        """The rest, whole or not."""
        return self._decode()[len(self._said):]

    def _decode(self) -> str:
        return self._tokenizer.decode(self._context + self._fresh, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def certain(text: str) -> int:
    """How many characters of ``text`` no later token can change or join.

    >>> certain("abc"), certain("ab\\ufffd"), certain("ab\\U0001F1E9")
    (3, 2, 2)
    """
    end = len(text)
    while end and text[end - 1] == BROKEN:
        end -= 1
    start = end                            # the last sign of a picture may still be joined: ZWJ families, skin tones, flags
    while start and _is_picture(text[start - 1]) and (start == end or _joined(text[start - 1], text[start])):
        start -= 1
    return start if end - start <= 16 else end


def _is_picture(character: str) -> bool:
    return character == JOINER or ord(character) >= 0x1F000 or "\ufe00" <= character <= "\ufe0f" or unicodedata.category(character) == "So"


def _joined(left: str, right: str) -> bool:
    flag = "\U0001f1e6" <= left <= "\U0001f1ff" and "\U0001f1e6" <= right <= "\U0001f1ff"
    return flag or JOINER in (left, right) or "\ufe00" <= right <= "\ufe0f" or "\U0001f3fb" <= right <= "\U0001f3ff"
