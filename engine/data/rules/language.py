"""In which language a text is: by its script, and among those in Latin letters by the little words that every sentence has."""

from __future__ import annotations

import re
import unicodedata

_WORDS = {
    "en": "the and of to in is are was were be been it that this with for on as at by not you your we our they have has had will would can "
          "from or if but what when where which there do does how",
    "de": "der die das und ist sind war ein eine einen einem einer nicht sich mit für auf von zu im den dem des wir sie ich es auch an bei "
          "wird werden haben hat kann oder wenn aber wie was ihr ihre uns unser unsere nach aus zum zur noch als bis nur sehr mehr bitte hier so "
          "dann dort seit sein seine einer gern keine ja nein man alle über bei",
    "fr": "le la les et est sont une un des du de que qui dans pour pas sur avec vous nous il elle ce cette ces au aux par plus ne se être "
          "avez avons votre notre mais ou si comme je son sa ses leur très bien ici y cet été sous chez",
    "es": "el la los las y es son una un de que en para por con no se su sus al del lo como más pero está están este esta usted nosotros hay "
          "tiene puede cuando donde o si",
    "it": "il la le gli e è sono una un di che in per con non si del della dei al alla più ma come questo questa noi può quando dove anche "
          "nel nella da lo",
    "pt": "o a os as e é são uma um de que em para por com não se seu sua do da dos das ao mais mas como está este esta você nós tem pode "
          "quando onde no na",
    "nl": "de het een en is zijn was niet van in op te met voor dat die we wij u je ik er aan bij of als maar ook naar om kan worden heeft "
          "hebben uw onze",
    "pl": "i w na z nie jest są to się do że dla od po jak ale czy przez o ma może tak co za by był być tego",
    "sv": "och det är en ett som på av för med inte den till vi du jag har kan om man var från men eller att i",
    "tr": "ve bir bu için ile de da ne gibi çok olarak daha var mı mi değil ama ben siz biz o en kadar",
}
_SETS = {code: frozenset(words.split()) for code, words in _WORDS.items()}
_SCRIPTS = (("CYRILLIC", "ru"), ("GREEK", "el"), ("ARABIC", "ar"), ("HEBREW", "he"), ("HANGUL", "ko"), ("HIRAGANA", "ja"), ("KATAKANA", "ja"),
            ("CJK", "zh"), ("DEVANAGARI", "hi"), ("THAI", "th"))
_TOKEN = re.compile(r"(?<![\w@./])[^\W\d_]+(?![\w@/])")           # no pieces of numbers, addresses and names of files
LEAST_ROWS, SHARE = 10, 0.7                # a file has a language if so many rows show one, and this part of them the same


def language(text: str) -> str:
    """ISO code, or nothing if the text is too short or too mixed to tell. Looks at its first 600 letters."""
    text = text[:600].casefold()
    if not text.isascii() and (code := _by_script(text)):
        return code
    words = _TOKEN.findall(text)
    if len(words) < 4:
        return ""
    hits = sorted(((sum(word in known for word in words), code) for code, known in _SETS.items()), reverse=True)
    (best, code), (second, _) = hits[0], hits[1]
    return code if best >= max(2, 0.15 * len(words)) and best >= second + max(1, 0.25 * best) else ""


def _by_script(text: str) -> str:
    letters = [c for c in text[:200] if c.isalpha()]
    counts: dict[str, int] = {}
    for letter in letters:
        if ord(letter) > 0x36F:
            name = unicodedata.name(letter, "")
            for start, code in _SCRIPTS:
                if name.startswith(start):
                    counts[code] = counts.get(code, 0) + 1
                    break
    if counts.get("ja"):
        return "ja" if sum(counts.values()) > 0.5 * len(letters) else ""
    best = max(counts, key=counts.get, default="")
    return best if best and counts[best] > 0.5 * len(letters) else ""


def usual(codes: dict[str, int]) -> str:
    """The language of a whole file from how many rows show which; nothing if it has none."""
    known = {code: count for code, count in codes.items() if code}
    best = max(known, key=known.get, default="")
    return best if best and known[best] >= max(LEAST_ROWS, SHARE * sum(known.values())) else ""
