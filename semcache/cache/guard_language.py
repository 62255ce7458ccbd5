"""The guard `language`: a question in German never answers one in English, and "into French" is not "into German".

Three readings of a text, each silent when in doubt: the script of its letters, from their Unicode names; the language,
by which common words and letters of its own it uses; the language that an answer is wanted in. Texts too short or too
mixed to tell have no language, and differ from nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from semcache.cache.remember import remember
from semcache.cache.vocabulary import is_general


def language_differ(asked: str, stored: str) -> bool:
    """Whether the two are written in different scripts or languages, or want their answers in different ones."""
    if asked == stored:
        return False
    one, other = read_language(asked), read_language(stored)
    if one.target - other.named or other.target - one.named:
        return True
    if one.script and other.script and one.script != other.script:
        return True
    if one.language and other.language:
        return one.language != other.language
    return one.rules_out(other.language) or other.rules_out(one.language)


class Reading(NamedTuple):
    script: str | None  # of most letters
    language: str | None  # two letters, of those in _COMMON
    votes: frozenset[str]  # the languages that anything speaks for
    is_marked: bool  # enough is there to tell what it is not: two common words, or letters that English lacks
    target: frozenset[str]  # the languages an answer is wanted in, by name; English goes without saying
    named: frozenset[str]  # all languages that the text names

    @property
    def is_foreign(self) -> bool:
        """Surely not English, though which language may not be known."""
        return self.language not in (None, "en") or self.rules_out("en")

    def rules_out(self, language: str | None) -> bool:
        return language is not None and self.language is None and self.is_marked and language not in self.votes


@remember
def read_language(text: str) -> Reading:
    text = unicodedata.normalize("NFKC", text).casefold()
    target = frozenset(_LANGUAGES[found[1]] for found in _TARGET.finditer(text) if found[1] in _LANGUAGES)
    named = frozenset(_LANGUAGES[word] for word in _WORD.findall(text[:_READ]) if word in _LANGUAGES)
    own = _NOT_OWN.sub(" ", text)  # what is quoted, named or linked is not the asker's own language
    script = _find_script(own)
    votes, words = _vote(own)
    language = _winner(votes, 1.3 if script == "LATIN" else 0.9)  # a Latin text may name a word of another language
    is_marked = words >= 2
    if script == "LATIN" and words < 2:  # a foreign name beside English words ("São Paulo hotels"), or a foreign text
        has_english = _has_english(own)
        language = None if has_english and language != "en" else language
        is_marked = not has_english and _FOREIGN.search(own) is not None
    return Reading(script, language, frozenset(votes), is_marked, target - {"english"}, named)


# Quotes are passed over up to 200 characters: a lone quotation mark must not hide the rest of a long text.
_NOT_OWN = re.compile(
    r"https?://\S+|[^\s@]{1,64}@\S{1,100}|`[^`]{0,200}`|\"[^\"]{0,200}\"|[“„«][^”“»]{0,200}[”“»]|(?<!\w)'[^']{0,200}'(?!\w)"
)
_WORD = re.compile(r"[^\W\d_]+")
_READ = 2000  # characters: more of a text does not make its language plainer


def _find_script(text: str) -> str | None:
    counts = Counter(filter(None, map(_script, text[:_READ])))
    if not counts:
        return None
    if counts["KANA"]:  # Japanese mixes three scripts, and only Japanese has these
        counts["KANA"] += counts.pop("CJK", 0)
    script, count = counts.most_common(1)[0]
    return script if count >= 0.6 * counts.total() else None  # "What does привет mean?" is of neither


@lru_cache(maxsize=4096)
def _script(letter: str) -> str | None:
    if not letter.isalpha():
        return None
    name = unicodedata.name(letter, "").partition(" ")[0]
    return "KANA" if name in ("HIRAGANA", "KATAKANA") else name or None


def _vote(text: str) -> tuple[dict[str, float], int]:
    """How much speaks for each language, and how many words do: one counts more the fewer languages have it."""
    votes: dict[str, float] = {}
    words = 0
    for word in _WORD.findall(text[:_READ]):
        known = _WORDS.get(word, ())
        words += bool(known)
        for language, weight in known:
            votes[language] = votes.get(language, 0.0) + weight
    for letters, languages in _LETTERS:
        if not letters.isdisjoint(text[:_READ]):
            for language in languages:
                votes[language] = votes.get(language, 0.0) + 1.0 / len(languages)
    return votes, words


def _winner(votes: Mapping[str, float], enough: float) -> str | None:
    """The language with most votes, if they are enough (1 is a word that no other has) and twice those of the next."""
    if not votes:
        return None
    ranked = sorted(votes.items(), key=lambda item: (-item[1], item[0]))
    best, most = ranked[0]
    second = ranked[1][1] if len(ranked) > 1 else 0.0
    return best if most >= enough and most >= 2 * second else None


# The commonest words of questions in each language. Words of two languages vote for both, with half the weight.
_COMMON: Mapping[str, str] = {
    "en": "vs what how is the of to and in a i do can my for you why are does which when who where it on with be "
    "best get have should if we will that this your from not or was would there an at by as me has did "
    "any some much many make am been their they he she his her its than but about please want need help "
    "find tell show give could",
    "de": "was wie ist der die das und in ich kann mein meine meinen meiner für sie warum sind welche welcher "
    "welches wann wer wo es auf mit sein beste besten haben hat habe soll sollte wenn wir wird werden "
    "dass diese dieser von nicht oder war gibt ein eine einen einer einem bei als mir den dem des zu zum "
    "zur man auch aus nach im am um wird bitte möchte brauche kein keine wieviel viele mich sich ihr ihre "
    "können muss bekomme mache bedeutet",
    "fr": "que quoi comment est le la les de des du et en dans je peux mon ma mes pour vous pourquoi sont quel "
    "quelle quels quelles quand qui où il elle sur avec être meilleur avoir ai si nous ce cette ces votre "
    "ne pas ou un une au aux par comme moi on puis faire fait faut mot peut avez combien plus quelqu veux "
    "voudrais besoin aide qu",
    "es": "qué que cómo como es el la los las de del y en yo puedo mi mis para por usted porqué son cuál cual "
    "cuáles cuándo cuando quién quien dónde donde se con ser mejor tener tengo debo si este esta su no o "
    "un una al hay me lo hacer hace puede cuánto cuántos cuesta quiero necesito está están tiene más "
    "sobre sin muy ayuda tu entre",
    "pt": "o que como é os as de do da dos das e em no na nos nas eu posso meu minha para por você porque são "
    "qual quais quando quem onde se com ser melhor ter tenho devo este esta isso seu sua não ou um uma ao "
    "há me fazer faz pode quanto quantos custa quero preciso está estão tem mais sobre sem muito ajuda "
    "num numa pelo pela à",
    "it": "che cosa come è il lo la i gli le di del della dei delle e in io posso mio mia per perché sono quale "
    "quali quando chi dove si con essere migliore avere ho devo se questo questa suo non o un uno una al "
    "alla dal nel nella c'è mi fare fa può quanto quanti costa voglio sta stanno ha più sul sulla senza "
    "molto aiuto tra cos",
    "nl": "wat hoe is de het van en in ik kan mijn voor je jij u waarom zijn welke wanneer wie waar op met "
    "beste heb hebben heeft moet als wij we wordt worden dat deze dit niet of was er een bij om te naar "
    "aan uit mij me ook maar geen veel hoeveel wil kunnen doen graag nodig mag",
    "pl": "co jak jest i w z na do się nie to czy ja mogę mój moja dla dlaczego są który która które kiedy kto "
    "gdzie być mam mieć jeśli ten ta o od po za przez ile można chcę potrzebuję proszę jaki jaka jakie",
    "tr": "ne nasıl bir ve bu için neden mi mı mu mü hangi kim nerede ile olan var yok en iyi ben benim nedir "
    "kaç olarak daha çok değil gibi kadar ya da yapılır zaman istiyorum lütfen şey olur eder ediyor",
    "vi": "là gì làm thế nào của và tôi có thể cho tại sao những khi ai ở đâu không được một các này với như để "
    "trong người bao nhiêu tốt nhất phải cách nếu",
    "id": "apa bagaimana adalah dan di yang saya bisa untuk anda mengapa kenapa ini itu dengan dari pada ke "
    "tidak atau ada siapa mana dapat cara kapan akan dalam berapa oleh lebih juga mau ingin terbaik harus",
    "ro": "ce cum este și în de la cu pe pot meu mea pentru care sunt când cine unde nu sau un o să mai cel are "
    "am din dacă cât trebuie vreau",
    "sv": "vad hur är och i att det som jag kan min mitt för du varför vilken vilka när vem var på med inte "
    "eller en ett av om till från har ska bäst finns många mycket vill",
    "sw": "nini je ni na ya wa kwa katika jinsi gani naweza yangu wangu kwanini nani wapi lini hii hiyo cha za "
    "si au kama nina unaweza ngapi",
    "tl": "ano paano ang ng sa mga ay ako ko ba kung bakit sino saan kailan ito iyon at na may hindi pwede "
    "akong aking ilan nang",
    "ru": "что как это и в на я могу мой моя для почему какой какая какие когда кто где не или с по из у за мне "
    "мои ли есть можно нужно сколько чем если от до",
    "uk": "що як це і в на я можу мій моя для чому який яка які коли хто де не або з по із у мені чи є можна "
    "треба скільки якщо від до",
    "ar": "ما ماذا كيف هل هو هي في من على إلى أن لماذا متى أين كم هذا هذه التي الذي مع عن يمكن يمكنني لا أنا",
    "fa": "چه چگونه آیا است در از به که را این آن برای چرا کی کجا با من می چیست چطور",
    "ur": "کیا کیسے ہے ہیں میں کا کی کے کو سے یہ وہ کیوں کب کہاں کون اور مجھے میرا نہیں",
    "hi": "क्या कैसे है हैं में का की के को से यह वह क्यों कब कहाँ कहां कौन और मुझे मेरा मैं नहीं",
    "mr": "काय कसे आहे आहेत मध्ये चा ची चे ला हे तो का कधी कुठे कोण आणि मला माझा मी नाही",
}

# Letters that only these languages use, among those above.
_LETTERS: tuple[tuple[frozenset[str], tuple[str, ...]], ...] = (
    (frozenset("ß"), ("de",)),
    (frozenset("äöü"), ("de", "sv", "tr")),
    (frozenset("å"), ("sv",)),
    (frozenset("ñ¿¡"), ("es",)),
    (frozenset("ãõ"), ("pt", "vi")),
    (frozenset("œëûùêâî"), ("fr", "pt")),
    (frozenset("ğşı"), ("tr",)),
    (frozenset("łąęśźżćń"), ("pl",)),
    (frozenset("ơưđạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ"), ("vi",)),
    (frozenset("șță"), ("ro",)),
    (frozenset("ыэёъ"), ("ru",)),
    (frozenset("іїєґ"), ("uk",)),
    (frozenset("ٹڈڑںے"), ("ur",)),
)


def _has_english(text: str) -> bool:
    """Whether an ordinary English word stands beside the foreign letters: "Beyoncé songs"."""
    return any(len(word) > 3 and word.isascii() and is_general(word) for word in _WORD.findall(text[:_READ]))


_FOREIGN = re.compile("[ßäöüåñ¿¡ãõœëûùêâîğşłąęśźżćńơưđșțăéèàçíóúáìòù]")


def _weigh(common: Mapping[str, str]) -> dict[str, tuple[tuple[str, float], ...]]:
    words = {language: frozenset(f"{text} {_without_marks(text)}".split()) for language, text in common.items()}
    spread = Counter(word for own in words.values() for word in own)
    return {
        word: tuple((language, 1.0 / spread[word]) for language, own in words.items() if word in own) for word in spread
    }


def _without_marks(text: str) -> str:
    """As many people type: "como" for "cómo". Only Latin letters: marks are letters of their own in other scripts."""
    return "".join(
        letter
        if ord(letter) > 0x24F and not 0x1E00 <= ord(letter) <= 0x1EFF
        else unicodedata.normalize("NFKD", letter)[0]
        for letter in text
    ).replace("ı", "i")


_WORDS = _weigh(_COMMON)

_NAMES = (
    "english german french spanish portuguese italian dutch polish turkish vietnamese indonesian romanian "
    "swedish swahili tagalog russian ukrainian arabic persian urdu hindi marathi chinese mandarin "
    "cantonese japanese korean bengali punjabi gujarati tamil telugu kannada malayalam thai greek hebrew "
    "latin danish norwegian finnish czech hungarian bulgarian serbian croatian slovak slovenian irish "
    "welsh catalan basque malay filipino burmese khmer lao nepali sinhala sanskrit esperanto icelandic "
    "estonian latvian lithuanian albanian armenian georgian mongolian afrikaans zulu xhosa yoruba igbo "
    "hausa amharic somali kurdish pashto kazakh uzbek azerbaijani hawaiian maori"
)
_ALIASES = {
    "farsi": "persian",
    "mandarin": "chinese",
    "filipino": "tagalog",
    "castilian": "spanish",
    "deutsch": "german",
    "français": "french",
    "español": "spanish",
    "englisch": "english",
    "französisch": "french",
    "spanisch": "spanish",
    "inglés": "english",
    "alemán": "german",
    "francés": "french",
    "anglais": "english",
    "allemand": "german",
    "espagnol": "spanish",
}
_LANGUAGES: Mapping[str, str] = {**{name: name for name in _NAMES.split()}, **_ALIASES}
# "into French", "say hello in French", "auf Deutsch": a language after a word of direction. Of any other adjective
# ("French wine") the guard `entities` takes care.
_TARGET = re.compile(r"\b(?:into|in|to|auf|ins|en|al|au)\s+(?:the\s+)?(\w+)\b")
