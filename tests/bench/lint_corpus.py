"""The rows of `tests/bench/lint.py`: clean ones that look faulty, and faults that look clean, in English, German and French.

Numbers, keys and accounts are drawn anew for every row; check digits are computed. Nothing here belongs to anybody.
"""

from __future__ import annotations

import random
import string

GOODS = {
    "en": ("rye loaf", "walnut roll", "plum cake", "seed cracker", "butter croissant", "spelt bun", "honey biscuit", "cheese straw", "poppy bagel",
           "apple tart", "corn bread", "almond ring", "raisin plait", "olive focaccia", "cherry pie", "oat cookie"),
    "de": ("Roggenbrot", "Walnussbrot", "Pflaumenkuchen", "Körnerstange", "Butterhörnchen", "Dinkelbrötchen", "Honigkeks", "Käsestange", "Mohnzopf",
           "Apfelkuchen", "Maisbrot", "Mandelkranz", "Rosinenzopf", "Olivenbrot", "Kirschtasche", "Haferkeks"),
    "fr": ("pain de seigle", "pain aux noix", "gâteau aux prunes", "biscuit au miel", "croissant au beurre", "petit pain d'épeautre",
           "bâton au fromage", "tarte aux pommes", "pain de maïs", "couronne aux amandes", "tresse aux raisins", "pain aux olives",
           "tarte aux cerises", "biscuit d'avoine", "brioche au pavot", "cracker aux graines")}
ASKS = {
    "en": (("What does a {thing} cost in branch {n}?", "A {thing} costs {p} euros there, including tax. On Saturdays it is a little cheaper."),
           ("How long does a {thing} keep, bought on {date}?", "Kept dry in a paper bag, it stays fresh for two days; after that, toast it."),
           ("Is there milk in the {thing} with number {order}?", "Yes, there is a little milk in it. Please ask at the counter if you are allergic."),
           ("Can I order a {thing} for {n} people?", "Certainly. Tell us by 18:30 on the day before, and it waits for you under number {order}."),
           ("Who bakes the {thing} at table {n}?", "Our colleague Piet bakes it there. She learned the craft in Lyon and later in Gdańsk."),
           ("Which wine goes with the {thing}, shelf {n}?",
           "Try a dry Riesling with it! “Der Winzer” around the corner has bottle {n} for {p} euros."),
           ("Do you deliver the {thing} to zone {n}?", "We do, every Tuesday and Friday between 7:00 and 9:15, for orders over {n} euros."),
           ("Does the {thing} come in size {n}?", "Not any more. The larger tins were sold in 2019, and this size was the last of them."),
           ("Which book describes the {thing}, page {n}?", "It is {isbn}, second edition; our copy lies beside the till, and you may read it here."),
           ("What changed for the {thing} in till version {version}?",
           "Since {version} its price is rounded to ten cents, and the receipt names the baker.")),
    "de": (("Was kostet ein {thing} in Filiale {n}?", "Ein {thing} kostet dort {p} Euro mit Steuer. Am Samstag ist es etwas günstiger."),
           ("Wie lange hält ein {thing} vom {date}?", "Trocken in der Papiertüte bleibt es zwei Tage frisch; danach bitte toasten."),
           ("Ist in dem {thing} Nummer {order} Milch?",
           "Ja, ein wenig Milch ist darin. Bitte fragen Sie an der Theke, wenn Sie eine Allergie haben."),
           ("Kann ich ein {thing} für {n} Personen bestellen?",
           "Gern. Sagen Sie es uns bis 18:30 Uhr am Tag davor, dann liegt es unter {order} bereit."),
           ("Wer backt das {thing} an Tisch {n}?", "Unsere Kollegin Piet backt es dort. Sie hat das Handwerk in Lyon und in Danzig gelernt."),
           ("Liefern Sie ein {thing} in Zone {n}?", "Ja, jeden Dienstag und Freitag zwischen 7:00 und 9:15 Uhr, für Bestellungen über {n} Euro."),
           ("Gibt es ein {thing} in Größe {n}?", "Nicht mehr. Die größeren Formen wurden 2019 verkauft, und diese war die letzte von ihnen."),
           ("Welches Buch beschreibt das {thing}, Seite {n}?",
           "Das ist {isbn}, zweite Auflage; unser Exemplar liegt neben der Kasse, Sie dürfen darin lesen."),
           ("Was ist mit dem {thing} in Kassenversion {version} neu?",
           "Seit {version} wird sein Preis auf zehn Cent gerundet, und der Bon nennt die Bäckerin.")),
    "fr": (("Combien coûte un {thing} au magasin {n} ?", "Un {thing} y coûte {p} euros, taxes comprises. Le samedi, c'est un peu moins cher."),
           ("Combien de temps se garde un {thing} du {date} ?",
           "Au sec dans un sac en papier, il reste frais deux jours ; ensuite, faites-le griller."),
           ("Y a-t-il du lait dans le {thing} numéro {order} ?", "Oui, il y a un peu de lait. Demandez au comptoir si vous êtes allergique."),
           ("Puis-je commander un {thing} pour {n} personnes ?",
           "Bien sûr. Dites-le nous la veille avant 18:30, et il vous attend sous le numéro {order}."),
           ("Livrez-vous un {thing} dans la zone {n} ?",
           "Oui, chaque mardi et vendredi entre 7:00 et 9:15, pour les commandes de plus de {n} euros."),
           ("Quel livre décrit le {thing}, page {n} ?",
           "C'est {isbn}, deuxième édition ; notre exemplaire est près de la caisse, vous pouvez le lire ici.")),
}
# rows without a fault that are easily taken for one: numbers that are none of a person, words that are no secrets, answers without a full stop
LOOKALIKES = {
    "en": ("The parcel number is {parcel}, and it left on {date}.", "Article {ean} is out of stock until {date} at the earliest.",
           "Install version {version} of the till program; it needs Python 3.11 and the package vue@3.4.21.",
           "The build is {hash} and its id {uuid}.",
           "Our tax number is DE{d9}, and the firm is entered as HRB {d5}.", "The printer has the address 192.168.{b}.{b2}, port 9100.",
           "The recipe weighs {d4} g, {d3} kcal, and bakes at 220-240 degrees.", "The password: please ask at the counter, nobody writes it down.",
           "The token: a small coin for the trolley, you get it at the till.", "The picture is called logo@2x.png and lies beside icon@3x.svg.",
           "We stand at 53.55{d2}, 9.99{d2}, by the old harbour.", "Order {order16} was changed to {order16b} on the same day.",
           "The meter showed {d5}.{d3} on {date} and {d5b}.{d3} today.", "It costs 1.299,00 € or 12 x 108,25 €, as you like.", "about {n} euros",
           "yes",
           "{n} minutes", "Rye, water, salt", "The old one by the river", "see shelf {n}", "closed on Mondays"),
    "de": ("Die Sendungsnummer ist {parcel}, sie ging am {date} hinaus.", "Artikel {ean} ist frühestens am {date} wieder da.",
           "Installieren Sie Version {version}; sie braucht Python 3.11 und das Paket vue@3.4.21.", "Der Stand ist {hash}, die Kennung {uuid}.",
           "Unsere USt-IdNr. ist DE{d9}, die Steuernummer 21/815/0{d4}, eingetragen als HRB {d5}.", "Der Drucker hat die Adresse 192.168.{b}.{b2}.",
           "Das Passwort: bitte an der Theke fragen, niemand schreibt es auf.", "Die Kundennummer {order} gilt auch in der Filiale {d5}.",
           "Der Zähler stand am {date} bei {d5},{d3} kWh.", "Das kostet 1.299,00 € oder 12 x 108,25 €.", "etwa {n} Euro", "ja", "{n} Minuten",
           "Roggen, Wasser, Salz", "Das alte am Fluss", "montags geschlossen", "Geöffnet 08:00-18:00 Uhr, am 24.12. nur bis 13:00 Uhr.",
           "Das Bild heißt logo@2x.png und liegt neben icon@3x.svg."),
    "fr": ("Le numéro du colis est {parcel}, il est parti le {date}.", "L'article {ean} est épuisé jusqu'au {date}.",
           "Installez la version {version} ; elle demande Python 3.11 et le paquet vue@3.4.21.", "La révision est {hash}, l'identifiant {uuid}.",
           "Notre numéro SIRET est {siret}, et la TVA FR40{d9}.", "Le mot de passe : demandez-le au comptoir, personne ne l'écrit.",
           "environ {n} euros", "oui", "{n} minutes", "Seigle, eau, sel", "fermé le lundi", "Le compteur indiquait {d5},{d3} kWh le {date}."),
}
OTHER = {                                  # answers in another language than the rest
    "en": ("Das ist ein Brot mit Nüssen und es wird bei uns jeden Tag von Hand gebacken.",
           "Nous avons encore un autre pain pour vous, et il est très bon.",
           "No lo tenemos hoy, pero puede usted pedirlo para mañana en la tienda.", "Извините, этого хлеба у нас сегодня нет."),
    "de": ("We do not have it today, but you can order it for tomorrow at the counter.",
           "Nous avons encore un autre pain pour vous, et il est très bon.",
           "Bugün yok ama yarın için sipariş verebilirsiniz, çok taze olur.", "Dziś nie ma, ale można go zamówić na jutro w sklepie."),
    "fr": ("We do not have it today, but you can order it for tomorrow at the counter.",
           "Das ist ein Brot mit Nüssen und es wird jeden Tag gebacken.",
           "No lo tenemos hoy, pero puede usted pedirlo para mañana en la tienda.", "Oggi non lo abbiamo, ma lo può ordinare per domani in negozio."),
}
# one long answer for every product: other rows, though hardly a word differs
SERIES = {
    "en": ("Tell me about the {thing}, please.",
           "Our {thing} is made by hand before dawn, from flour of the mill across the river, and rests for a whole night. "
           "You may freeze it without harm. Customers like the {thing} best on the day it was baked, still warm, with salted butter."),
    "de": ("Erzählen Sie mir bitte etwas über: {thing}.",
           "{thing}: das machen wir vor Tagesanbruch von Hand, aus Mehl der Mühle am anderen Ufer, und es ruht "
           "eine ganze Nacht. Sie können es ohne Schaden einfrieren. Am liebsten essen die Kunden {thing} am Tag des Backens, warm, mit Butter."),
    "fr": ("Parlez-moi du produit suivant : {thing}.",
           "{thing} : nous le faisons à la main avant l'aube, avec la farine du moulin d'en face, et il repose toute une "
           "nuit. Vous pouvez le congeler sans risque. Les clients préfèrent {thing} le jour même, encore chaud, avec du beurre salé.")}
CARRIER = {"en": ("Please note: {it}.", "You find it here: {it}, as always.", "It was {it} when we last looked."),
           "de": ("Bitte notieren: {it}.", "Sie finden es hier: {it}, wie immer.", "Es war {it}, als wir zuletzt nachsahen."),
           "fr": ("Veuillez noter : {it}.", "Vous le trouvez ici : {it}, comme toujours.", "C'était {it} la dernière fois.")}
NOTHING = {"en": ("N/A", "...", "tbd", "-", "see above", "null", "[deleted]"), "de": ("k. A.", "…", "siehe oben", "-", "keine Angabe", "NaN"),
           "fr": ("N/A", "...", "-", "voir ci-dessus", "néant", "aucune réponse")}
AGAIN = {"en": "No, that is not so any more: we changed it {k} weeks ago, and it stays changed.",
         "de": "Nein, das ist nicht mehr so: wir haben es vor {k} Wochen geändert, und dabei bleibt es.",
         "fr": "Non, ce n'est plus le cas : nous l'avons changé il y a {k} semaines, et cela reste ainsi."}
TAIL = {"en": " We hope to see you soon in our shop by the old river bridge, where the coffee is warm and the chairs are soft.",
        "de": " Wir hoffen, Sie bald in unserem Laden an der alten Brücke zu sehen, wo der Kaffee warm ist und die Stühle weich sind.",
        "fr": " Nous espérons vous voir bientôt dans notre magasin près du vieux pont, où le café est chaud et les chaises sont douces."}
SYNONYMS = {"soon": "shortly", "warm": "hot", "soft": "comfortable", "old": "ancient", "bald": "demnächst", "warm ": "heiß ", "weich": "bequem",
            "alten": "historischen", "bientôt": "prochainement", "chaud": "brûlant", "douces": "confortables", "vieux": "ancien"}


def digits(draw: random.Random, n: int) -> str:
    return "".join(draw.choices(string.digits, k=n))


def letters(draw: random.Random, n: int, of: str = string.ascii_letters + string.digits) -> str:
    """Random signs; always with a digit and a letter among them."""
    return "".join(draw.choices(of, k=n - 2)) + draw.choice([c for c in of if c.isdigit()] or of) + draw.choice([c for c in of if c.isalpha()])


def facts(draw: random.Random) -> dict[str, object]:
    """Numbers of all kinds that belong to nobody."""
    d = lambda n: digits(draw, n)          # noqa: E731
    year, month, day = draw.randint(1998, 2026), draw.randint(1, 12), draw.randint(1, 28)
    isbn = f"978{d(9)}"
    version = f"v{draw.randint(1, 9)}.{draw.randint(0, 40)}.{draw.randint(0, 20)}"
    isbn += str(-sum(int(c) * (3 if i % 2 else 1) for i, c in enumerate(isbn)) % 10)
    return {"n": draw.randint(2, 9999), "p": f"{draw.randint(1, 39)}.{draw.choice(('50', '90', '99'))}",
            "date": draw.choice((f"{day:02d}.{month:02d}.{year}", f"{year}-{month:02d}-{day:02d}", f"{day}/{month}/{year}")),
            "order": draw.choice((f"2024-{d(4)}", f"45{d(8)}", f"A-{d(6)}", f"{d(3)}-{d(7)}-{d(7)}", f"7{d(9)}")), "parcel": f"00340{d(15)}",
            "ean": f"4{d(12)}", "version": version + draw.choice(("", "-rc.3", "+20240312")),
            "isbn": draw.choice((f"ISBN {isbn[:3]}-{isbn[3]}-{isbn[4:7]}-{isbn[7:12]}-{isbn[12]}", f"ISBN {isbn}")),
            "hash": letters(draw, 40, "0123456789abcdef"),
            "uuid": f"{letters(draw, 8, '0123456789abcdef')}-{d(4)}-4{d(3)}-a{d(3)}-{letters(draw, 12, '0123456789abcdef')}",
            "siret": f"{d(3)} {d(3)} {d(3)} 000{d(2)}",
            "order16": f"7{d(15)}", "order16b": f"1{d(15)}", "b": draw.randint(0, 255), "b2": draw.randint(1, 254), "d2": d(2), "d3": d(3),
            "d4": d(4), "d5": d(5),
            "d5b": d(5), "d9": d(9)}


def mail(draw: random.Random) -> str:
    name = draw.choice(("ann.miller", "jo+shop", "m.dupont-leroy", "k_schaefer", "info", "Petra.Müller"))
    return f"{name}{draw.randint(1, 999)}@{draw.choice(('example.org', 'bakery.co.uk', 'mail.backstube-nord.de', 'boulangerie.fr', 'gmail.com'))}"


def phone(draw: random.Random) -> str:
    """Numbers as Germans, Austrians, Swiss, the French, Britons and Americans write them."""
    d = lambda n: "".join(draw.choices("23456789", k=n))       # noqa: E731
    return draw.choice((
        lambda: f"040 / {d(3)} {d(2)} {d(2)}", lambda: f"0171-{d(7)}", lambda: f"+49 (0)40 {d(7)}", lambda: f"0049 171 {d(7)}",
        lambda: f"(030) {d(2)} {d(2)} {d(2)} {d(2)}", lambda: f"04101/{d(2)} {d(2)} {d(2)}", lambda: f"+49 30 {d(6)}-{d(2)}",
        lambda: f"0{d(3)}{d(7)}",
        lambda: f"+43 664 {d(7)}", lambda: f"044 {d(3)} {d(2)} {d(2)}", lambda: f"+41 79 {d(3)} {d(2)} {d(2)}",
        lambda: f"01 {d(2)} {d(2)} {d(2)} {d(2)}", lambda: f"06.{d(2)}.{d(2)}.{d(2)}.{d(2)}", lambda: f"+33 6 {d(2)} {d(2)} {d(2)} {d(2)}",
        lambda: f"020 {d(4)} {d(4)}", lambda: f"07{d(3)} {d(6)}", lambda: f"(555) {d(3)}-{d(4)}", lambda: f"+1 555 {d(3)} {d(4)}",
        lambda: f"555-{d(3)}-{d(4)}",
        lambda: f"+34 6{d(2)} {d(3)} {d(3)}", lambda: f"+39 06 {d(4)} {d(4)}"))()


def iban(draw: random.Random) -> str:
    country, form = draw.choice((("DE", "0" * 18), ("AT", "0" * 16), ("CH", "0" * 17), ("FR", "0" * 23), ("NL", "AAAA" + "0" * 10),
                                 ("GB", "AAAA" + "0" * 14), ("ES", "0" * 20), ("BE", "0" * 12), ("IT", "A" + "0" * 22)))
    inner = "".join(draw.choice(string.ascii_uppercase) if c == "A" else draw.choice(string.digits) for c in form)
    check = 98 - int("".join(str(int(c, 36)) for c in inner + country + "00")) % 97
    whole = f"{country}{check:02d}{inner}"
    gap = draw.choice((" ", "", "\u00a0", " "))
    return gap.join(whole[i:i + 4] for i in range(0, len(whole), 4)) if draw.random() > 0.1 else whole.lower()


def card(draw: random.Random) -> str:
    start, size = draw.choice((("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16)))
    inner = start + digits(draw, size - len(start) - 1)
    doubled = [int(c) * 2 if n % 2 == 0 else int(c) for n, c in enumerate(reversed(inner))]
    whole = inner + str(-sum(n - 9 if n > 9 else n for n in doubled) % 10)
    cuts = (4, 10, 15) if size == 15 else (4, 8, 12, 16)
    return draw.choice((" ", "-", "")).join(whole[a:b] for a, b in zip((0, *cuts), cuts))


def key(draw: random.Random) -> str:
    """Keys of known services, and passwords as people write them, in three languages."""
    t = lambda n: letters(draw, n)         # noqa: E731
    low, hexa = string.ascii_lowercase + string.digits, "0123456789abcdef"
    return draw.choice((
        lambda: f"sk-proj-{t(48)}", lambda: f"sk-ant-api03-{t(80)}AA", lambda: f"ghp_{t(36)}", lambda: f"github_pat_{t(22)}_{t(59)}",
        lambda: f"glpat-{t(20)}",
        lambda: f"AKIA{letters(draw, 16, string.ascii_uppercase + '234567')}", lambda: f"aws_secret_access_key = {t(40)}", lambda: f"AIza{t(35)}",
        lambda: f"xoxb-{digits(draw, 12)}-{digits(draw, 12)}-{t(24)}", lambda: f"sk_live_{t(24)}", lambda: f"SG.{t(22)}.{t(43)}",
        lambda: f"hf_{''.join(draw.choices(string.ascii_letters, k=34))}", lambda: f"npm_{t(36)}", lambda: f"{digits(draw, 10)}:AA{t(33)}",
        lambda: f"AccountKey={t(86)}==", lambda: f"Authorization: Bearer {t(40)}", lambda: f"eyJ{t(20)}.eyJ{t(40)}.{t(43)}",
        lambda: f"postgres://shop:{t(12)}@db.example.org/till", lambda: f"SK{letters(draw, 32, hexa)}", lambda: f"password: {t(4)}!{digits(draw, 3)}",
        lambda: f"Passwort: {draw.choice(('Sommer', 'Krümel', 'Backstube'))}{digits(draw, 4)}!", lambda: f"mot de passe : {t(5)}#{digits(draw, 3)}",
        lambda: f"Kennwort lautet: {t(9)}", lambda: f"api_key={letters(draw, 32, low)}", lambda: f"DISCORD_TOKEN={t(24)}.{t(6)}.{t(27)}"))()


PERSONAL = {"mail": mail, "phone": phone, "iban": iban, "card": card, "key": key}


def noisy(text: str, draw: random.Random) -> str:
    """The same said again by a person: another word, a slip of the finger, a comma, a capital, a word more."""
    words = text.split(" ")
    for _ in range(draw.choice((1, 1, 2, 3, 4))):
        how = draw.randrange(5)
        places = [n for n, w in enumerate(words) if len(w) > 4 and w.isalpha()]
        if how == 0 and (known := [n for n, w in enumerate(words) if w.strip(".,") in SYNONYMS]):
            n = draw.choice(known)
            words[n] = words[n].replace(words[n].strip(".,"), SYNONYMS[words[n].strip(".,")])
        elif how == 1 and places:
            n, at = draw.choice(places), draw.randint(1, 3)
            words[n] = words[n][:at] + words[n][at + 1] + words[n][at] + words[n][at + 2:]
        elif how == 2 and places:
            words[draw.choice(places)] += ","
        elif how == 3 and places:
            n = draw.choice(places)
            words[n] = words[n].upper()
        else:
            words.insert(draw.randint(2, len(words) - 1), draw.choice(("really", "also", "just", "auch", "gern", "aussi", "bien")))
    return " ".join(words)


def cut(answer: str, lang: str, draw: random.Random, size: int) -> str:
    """An answer that breaks off: behind a little word, in the middle of a word, within brackets or code, or at the size of a cell."""
    how = draw.randrange(5)
    if how == 0:
        return answer.rstrip(".!") + {"en": " and you can also have it with", "de": " und Sie bekommen es auch mit",
        "fr": " et vous pouvez aussi l'avoir avec"}[lang]
    if how == 1:
        body = answer + TAIL[lang]
        at = draw.randint(60, len(body) - 12)
        while not (body[at - 1].isalpha() and body[at].isalpha() and body[at - 2].isalpha()):
            at -= 1
        return body[:at]
    if how == 2:
        return answer + {"en": " (ask for the", "de": " (fragen Sie nach dem", "fr": " (demandez le"}[lang]
    if how == 3:
        return answer + "\n```python\nprint('bread')\n"
    return (answer.rstrip(".") + "," + 2 * TAIL[lang])[:size].rstrip(". ,")
