"""What people call their columns, in English, German, French, Spanish and Italian, and which role each name has."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache


@lru_cache(4096)
def fold(name: str) -> str:
    """The form under which names are compared: no case, accents, umlaut spelling, spaces or punctuation."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if c.isalnum())
    return re.sub(r"([aou])e", r"\1", plain)   # Lösung, Loesung, losung: one name (applied to both sides, so harmless elsewhere)


def _names(text: str) -> frozenset[str]:
    return frozenset(fold(word) for word in text.split(","))


@dataclass(frozen=True)
class Pair:
    """Names that go together as question and answer, and what such a file is called."""

    shape: str
    noun: str
    question: frozenset[str]
    answer: frozenset[str]


PAIRS = (
    Pair("instruction/output", "instructions with their answers",
         _names("instruction,instructions,task,anweisung,aufgabe,auftrag,consigne,tâche,instrucción,istruzione"),
         _names("output,response,answer,completion,target,ausgabe,antwort,ergebnis,lösung,ziel,sortie,réponse,salida,respuesta,risposta")),
    Pair("prompt/completion", "prompts with their completions", _names("prompt,eingabe,vorgabe,invite,entrée"),
         _names("completion,response,output,answer,chosen answer,ergänzung,fortsetzung,ausgabe,antwort,complétion,suite,sortie,réponse")),
    Pair("user/assistant", "messages with their replies",
         _names("user,human,customer,client,kunde,kundin,nutzer,benutzer,mensch,mail,email,message,nachricht,anfrage,utilisateur,cliente,usuario"),
         _names("assistant,bot,gpt,model,agent,support,reply,assistent,verkäufer,shop,we,wir,reply text,antwort,answer,response,réponse,respuesta")),
    Pair("question/answer", "question and answer pairs",
         _names("question,questions,q,query,request,problem,frage,fragen,f,thema,input,text in,requête,demande,pregunta,domanda"),
         _names("answer,answers,a,response,solution,output,reply,antwort,antworten,lösung,ausgabe,text out,réponse,réponses,respuesta,risposta")),
    Pair("text/label", "texts with their labels", _names("text,sentence,content,satz,inhalt,texte,phrase,texto,testo"),
         _names("label,class,category,sentiment,klasse,kategorie,etikett,étiquette,classe,catégorie,etiqueta,etichetta")),
)
VAGUE = _names("thema,problem,input,text in,suite,ziel,target,q,f,a,r,user,agent,shop,email,mail")      # where a better name stands beside, no role
CONTEXT = _names("input,context,background,eingabe,kontext,hintergrund,zusatz,contexte,entrée,contexto,contesto")
SYSTEM = _names("system,system prompt,systemprompt,role description,systemanweisung,rolle,système")
MESSAGES = _names("messages,conversations,conversation,chat,dialog,dialogue,turns,nachrichten,gespräch,unterhaltung")
TEXT = _names("text,content,document,body,story,paragraph,inhalt,dokument,absatz,geschichte,texte,contenu,paragraphe,texto,testo")
CHOSEN = _names("chosen,preferred,bevorzugt,gewählt,préféré")
REJECTED = _names("rejected,dispreferred,abgelehnt,verworfen,rejeté")
SPEAKERS = {**dict.fromkeys(_names("user,human,customer,prompter,kunde,nutzer,benutzer,mensch,utilisateur,client"), "user"),
            **dict.fromkeys(_names("assistant,gpt,bot,model,ai,chatgpt,agent,assistent"), "assistant"),
            **dict.fromkeys(_names("system,developer"), "system")}
TOOLS = _names("tool,function,function call,tool call,tool response,observation,ipython")
EXPECTED = ("question and answer (or Frage and Antwort, question and réponse), instruction and output, prompt and completion, "
            "user and assistant, messages, conversations, or text")
QUESTIONS, ANSWERS = (frozenset().union(*(getattr(pair, side) for pair in PAIRS[:-1])) for side in ("question", "answer"))
_STEMS = {"question": ("frage", "question", "anfrage", "pregunta", "domanda", "instruction", "prompt"),
          "answer": ("antwort", "answer", "reponse", "response", "reply", "respuesta", "risposta", "losung", "completion")}
_ALL = QUESTIONS | ANSWERS | PAIRS[-1].question | PAIRS[-1].answer | CONTEXT | SYSTEM | MESSAGES | TEXT | CHOSEN | REJECTED


def is_known(name: str) -> bool:
    """Whether a cell could be the name of a column that is understood."""
    return len(name) <= 40 and (fold(name) in _ALL or bool(loosely(name)))


@lru_cache(4096)
def loosely(name: str) -> str:
    """"question" or "answer" for odd names: “Kundenfrage (neu)”, “1. Antwort”, “réponse_finale”; else nothing.

    What comes first in the name decides: “Antwort auf die Frage” is an answer.
    """
    if len(name) > 40 or name.rstrip().endswith(("?", "!", ".")) and len(name.split()) > 2:
        return ""                          # a sentence, no name
    whole = fold(name)
    words = [fold(word) for word in re.split(r"[\W_]+", name) if word]
    if any(word in _ADMINISTRATIVE for word in words):
        return ""
    for word in words:
        for role, names in (("question", QUESTIONS), ("answer", ANSWERS)):
            if len(word) > 3 and word in names:
                return role
    places = {role: min((whole.find(stem) for stem in stems if stem in whole), default=-1) for role, stems in _STEMS.items()}
    found = [role for role, place in sorted(places.items(), key=lambda item: item[1]) if place >= 0]
    return found[0] if found else ""


_ADMINISTRATIVE = _names("id,nr,no,number,nummer,date,datum,time,zeit,typ,type,count,anzahl,length,länge,score,rating,author,autor,by,von,"
                         "status,url,link")
