"""RULE: whether a text means nothing without the turns before it: "yes please", "and in Paris?", "how much is it?".

Two such texts can be equal, letter for letter, and mean different things, so only what went before tells whether an
answer fits. A list of words cannot find all of them; this one reads what is left when the words that carry no subject
are taken away, and where a pronoun stands with nothing before it that it could mean. A missed one is still held
against its context; a false one costs a hit by meaning, never an exact one.
"""

from __future__ import annotations

import re
from functools import lru_cache

LONGEST_CHARS = 300  # a longer text says itself what it is about, and so does
LONGEST_WORDS = 14  # a sentence of more words

_SENTENCE_END = re.compile(r"[.!?;]+(?:\s+|$)")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def means_nothing_alone(text: str) -> bool:
    """Whether the text needs what was said before it. Costs microseconds, whatever the length."""
    return len(text) <= LONGEST_CHARS and _read(text)


@lru_cache(maxsize=4096)  # asked for each new request, and people say much the same
def _read(text: str) -> bool:
    """The first sentence that says something counts: what comes later may refer to it."""
    plain = text.strip().lower().replace("’", "'").replace(" a lot", " much")
    is_polite = False  # "good morning" is answered alike whoever says it, and the "1." of a list says nothing
    for sentence in _SENTENCE_END.split(plain):
        words = _WORD.findall(sentence)
        if _GREETING.fullmatch(" ".join(words)) or (len(words) == 1 and words[0].isdigit() and sentence != plain):
            is_polite = is_polite or not words[0].isdigit()
            continue
        if words and words[0] in _YES:
            if len(words) <= 8:
                return True
            words = words[1:]
        elif words and words[0] in _NO and (len(words) == 1 or _AFTER_NO.match(sentence)):
            return True
        elif words and words[0] in _ONWARD and len(words) <= 7:
            return True
        said = _without_filler(words)
        if said:
            return len(words) <= LONGEST_WORDS and (_needs_more(said) or _TAKEN.search(" ".join(words)) is not None)
    return not is_polite and _WORD.search(plain) is not None  # nothing but "ok thanks", "great, thank you very much"


def _needs_more(words: list[str]) -> bool:
    said = " ".join(words)
    count = len(words)
    return (
        _PHRASES.fullmatch(said) is not None
        or (count <= 7 and _OPENINGS.match(said) is not None)
        or all(word in _SLOTS or word.isdigit() or _MEASURE.fullmatch(word) for word in words)
        or (count <= 5 and _FRAGMENT.fullmatch(said) is not None)
        or (count <= 7 and _BARE.search(said) is not None)
        or _has_loose_pronoun(words)
    )


def _without_filler(words: list[str]) -> list[str]:
    """Politeness and the like at both ends say nothing of what is wanted."""
    start, end = 0, len(words)
    while start < end and words[start] in _FILLER:
        start += 1
    while start < end and words[end - 1] in _FILLER:
        end -= 1
    return words[start:end]


def _has_loose_pronoun(words: list[str]) -> bool:
    """Whether a pronoun comes before anything that it could stand for, and little comes after it.

    Before it there are only words without a subject: "how much does | it | cost". "It" also stands for nothing at all
    ("is it safe to swim in rivers"), which what follows it shows.
    """
    if len(words) > 9:
        return False
    if words[-1] == "there" and len(words) > 1 and words[-2] not in _BE:  # "find a hotel there", not "is anybody there"
        return True
    for place, word in enumerate(words):
        after = words[place + 1 :]
        if word in _PRONOUNS:
            if word == "it" and (_EXPLETIVE.search(" ".join(after)) or _CLOCK.match(" ".join(words))):
                return False
            return sum(other not in _EMPTY for other in after) <= (2 if word == "it" else 1)
        if word in _POINTING:  # "is that ok", "cancel this", but "cancel this order"
            is_asked = place > 0 and words[place - 1] in _BE and len(after) == 1  # "is that included"
            return not after or is_asked or after[0] in _NOT_A_THING or (len(after) == 1 and after[0] in _FITTING)
        if word not in _EMPTY:
            return False
    return False


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_YES = _set("yes yeah yep yup yea yess ja jawohl genau oui ouais sí sì sim certo да 是 是的 好 好的 はい tak evet")
_GREETING = re.compile(r"(?:(?:hi|hello|hey|well) )?good (?:morning|afternoon|evening|night|day)(?: to you)?")
_NO = _set("no nope nah nein non não nee нет 不 不是 いいえ nie hayır neither none nothing")
# "No money on my card" begins with the same word.
_AFTER_NO = re.compile(
    r"\w+(?:[,.!;]|\s+(?:thanks?|thank|thankyou|thx|that|that's|thats|it|it's|its|this|i'm|im|i want|i need|i would"
    r"|i'd|i'll|not|need|problem|worries|just|actually|please|danke|merci|gracias|grazie|obrigad\w|bedankt)\b|\s*$)"
)

_ONWARD = _set("and actually und et y и")  # as the first word: something goes on, or is put right

_FILLER = _set(
    "ok okay okey oki k kk alright right well good great perfect nice cool fine awesome excellent wonderful fantastic"
    " super lovely amazing brilliant correct exactly definitely absolutely indeed sure please pls plz thanks thank"
    " thx ty cheers you u very much so oh ah hmm um uh really just then now again sounds that's thats that'll it's"
    " its enough all everything hey appreciated welcome sorry and but"
    " danke bitte schön sehr gut gern gerne prima merci beaucoup svp d'accord bien bon gracias por favor vale bueno"
    " muchas grazie mille prego bene va obrigado obrigada tá bom bedankt dank je wel graag goed спасибо хорошо ок"
    " 谢谢 ありがとう dziękuję teşekkürler"
)

_PHRASES = re.compile(
    r"(?:can|could|would|will) you (?:please )?(?:explain|elaborate|repeat|continue|clarify|go on|expand)"
    r"(?: on)?(?: that| this| it| more| further| again)?"
    r"|(?:please )?(?:go on|go ahead|go for it|do it|do that|do so|continue|carry on|keep going|proceed|next|more|again"
    r"|repeat|repeat (?:that|it|yourself)|say (?:that|it) again|tell me more(?: about (?:it|that|this|them))?|more"
    r" (?:details?|info|information|examples?|please|options?)|elaborate|explain(?: more| further| again| that| it)?"
    r"|show me more|shorter|longer|simpler|simplify|rephrase(?: it| that)?|rewrite it|try again|start over|retry"
    r"|one more|another|another one|an? (?:other|different) one|something else|anything else|nothing else"
    r"|(?:what|who|where) else(?: \S+){0,3}|give me (?:an|another|one more|some more|more) ?(?:examples?|ones?"
    r"|options?)?|for example|such as|like what|the same|same|same here|me too|maybe|perhaps|possibly|not sure|i"
    r" don't know|i dont know|idk|i think so|i guess|i guess so|i see|got it|i understand|understood|makes sense|any"
    r"|both|either|all of them|none of them|whatever|whichever|up to you|you choose|you decide|i agree|agreed|of"
    r" course|for sure|why not|not yet|not really|not now|later|never mind|nevermind|forget it|stop|cancel that|wait"
    r"|bye|goodbye|see you|in (?:english|french|german|spanish|italian|portuguese|dutch|chinese|japanese|russian"
    r"|polish|turkish))|why|how|when|where|who|what|which|whose|whom|how so|how come|since when|until when|for how"
    r" long|how long|how much|how many|how far|how often|how old|how big|what time|which ones?|what kind|what type"
    r"|what color|what colour|what day|which day|what date|what size|which size|by when|from when|to whom|with whom"
    r"|says who|what for|what if not|why is that|what do you mean|what does (?:that|it|this) mean|what is (?:that|it"
    r"|this)|is that so|is it|are you sure|really|are there (?:any )?(?:others|more|any|other options)|is there"
    r" (?:any )?more|(?:any|do you have (?:any )?) ?(?:other|more)(?: options?| suggestions?| ideas?| ones?)?|what"
    r" are (?:my|the) (?:other )?options|i (?:want|need|would like|'d like|will take|'ll take|choose|prefer|like)(?:"
    r" to have)? (?:it|that|this|them|both|more|another|one|the (?:first|second|third|last|other|same)(?: one)?)|i'd"
    r" like (?:it|that|this|them|both|more|another|one)|i'll take (?:it|that|this|them|both|one|two|the \w+ one)"
    # German, French, Spanish, Italian, Portuguese, Dutch
    r"|warum|wieso|weshalb|wann|wo|wer|welche[rsnm]?|wie viel|wie lange|weiter|mehr|noch mal|nochmal|noch eins|erzähl"
    r" mehr|genauer|wirklich|auf (?:deutsch|englisch)|pourquoi|comment ça|quand|où|qui|combien|lequel|laquelle|encore"
    r"|continue|dis m'en plus|plus de détails|vraiment|en (?:français|anglais)|por qué|por que|cuándo|dónde|quién"
    r"|cuánto|cuál|continúa|sigue|más|cuéntame más|otra vez|en (?:español|inglés)|perché|quando|dove|chi|quanto|quale"
    r"|continua|dimmi di più|ancora|porquê|porque|onde|quem|qual|mais|waarom|wanneer|waar|wie|hoeveel|welke|verder|meer"
    r"|nog een|ga door|да|почему|когда|где|кто|继续|为什么|もっと|なぜ"
)

# How a text goes on from the one before.
_OPENINGS = re.compile(
    r"(?:what|how) about\b|what if (?:it|that|this|they|not)\b|(?:the )?same (?:for|with|but|thing|in|to|on|as"
    r" (?:before|above))\b|instead\b|or (?:in|on|at|for|with|the|a|is|are|do|does|maybe|rather|just)\b|also (?:in|for"
    r"|on|at|with|the|a)\b|not (?:that|this|the|in|for|on) |the (?:first|second|third|fourth|fifth|last|latter|former"
    r"|next|previous|other|cheapest|cheaper|bigger|smaller) (?:one|ones|option|two|of)\b"
    r"|(?:which|what|who|how many) of (?:them|these|those|the two|it)\b|(?:und|oder) (?:in|für|mit|am|im|bei|was|wie"
    r"|wenn|auf|nach|der|die|das)\b|was ist mit\b|wie (?:sieht es|wäre es) (?:mit|in)\b|et (?:en|à|au|pour|avec|le|la"
    r"|les|si)\b|qu'en est-il\b|y (?:en|para|con|el|la|los|las|si|a|de)\b|qué tal\b|e (?:in|per|con|il|la|se|em|para"
    r"|com|no|na)\b|en (?:in|voor|met|op|wat|als)\b(?! )|wat (?:dacht|denk) je van\b|hoe zit het met\b|а (?:в|для|на"
    r"|если)\b"
)

# A place, a time or a number that was asked for.
_FRAGMENT = re.compile(
    r"(?:in|at|on|for|from|to|by|with|around|near|after|before|until|since|about|within|during|between|under|over"
    r"|without|towards?|downtown)(?: \S+){1,3}"
    r"|für(?: \S+){1,3}|(?:im|am|bei|nach|um|ab|mit|pour|chez|dans|para|hacia|desde|per|voor|op|naar)(?: \S+){1,2}"
)
_SLOTS = _set(
    "a an the at on in for from to of or and by o'clock am pm noon midnight morning afternoon evening night today"
    " tonight tomorrow yesterday monday tuesday wednesday thursday friday saturday sunday weekend january february"
    " march april may june july august september october november december next this last week month year day days"
    " weeks hours hour minutes half past quarter till until around about one two three four five six seven eight nine"
    " ten eleven twelve first second third fourth fifth people persons person guests adults tickets ticket rooms room"
    " nights seats seat only myself me us both either any anything anywhere anytime whenever whatever"
    " montag dienstag mittwoch donnerstag freitag samstag sonntag heute morgen abend uhr lundi mardi mercredi jeudi"
    " vendredi samedi dimanche lunes martes miércoles jueves viernes sábado domingo"
)
_MEASURE = re.compile(r"\d+(?:st|nd|rd|th|am|pm|h|min|k|kg|g|cm|mm|m|km|gb|mb|tb|x)?")

# A thing that is compared, or chosen, and not named.
_BARE = re.compile(
    r"^(?:(?:is|are) there |do you have |have you (?:got )?|can (?:i|you|we) (?:get|find|see|have|try|show)(?: me)? "
    r"|show me |find(?: me)? |give me |i (?:want|need|prefer|would like|'d like|would prefer) |i'd (?:like|prefer) "
    r"|how about )?(?:a |an |any |some |anything |something |somewhere |someone |one |the )?(?:a (?:bit|little) |much"
    r" |even |slightly )?(?:cheaper|bigger|larger|smaller|earlier|later|sooner|longer|shorter|faster|slower|closer"
    r"|nearer|better|nicer|different|similar|else|other|another|more expensive|less expensive|higher|lower)(?: ones?|"
    r" options?| than that| than this| than it| available)?$"
    r"|\b(?:that|this|these|those|another|other|different) ones?$|^which ones?(?: \S+){0,2}$"
    r"|\b(?:any|some|what|which|suggest|show|more|find|me) other \w+(?: available)?$"
    # "What is the address", of what? "What is the time" is no such question.
    r"|^(?:and )?(?:what|what's|how much|where|where's|when|who|how)(?: is| are| was| were)? (?:the|its) "
    r"(?:address|price|prices|cost|costs|fare|name|names|rating|phone|phone number|number|location|total|duration"
    r"|size|color|colour|difference|status|reason|deadline|author|director|cast|genre|answer|result|results|departure"
    r" time|venue|rent|fee|fees)$"
)

# What was offered is taken, or not: "Tuesday works for me".
_TAKEN = re.compile(
    r"^(?!what|how|which|who|where|when|why)(?:\S+ ){0,4}(?:sounds?|seems?|looks?|is|will be|would be|works?|are)"
    r" (?:(?:pretty|very|totally|just|really|all|best) )?(?:good|fine|great|ok|okay|perfect|nice|cool|awesome|lovely"
    r"|for me|well)(?: (?:to|with|for|by) me)?$"
    r"|^i'?m (?:all set|done|good|finished|fine|sure|ready)(?: (?:now|for now|here))?$|^not (?:right )?now$"
)

_PRONOUNS = _set("it they them he him his she her hers their theirs")
_POINTING = _set("this that these those")
_BE = _set("is are was were be been am anybody anyone somebody someone hi hello hey")
# What follows "this" and "that" where no thing does.
_NOT_A_THING = _set(
    "is was be are were will would can could should does did do has have had in on at for to from with of by as and or"
    " but if when now today tomorrow please then too also instead again cost costs take mean means sound sounds happen"
    " happened happens done not one ones work works include includes"
)
_FITTING = _set(
    "ok okay fine good correct right true possible available free safe enough so it all me you us refundable"
)
_EMPTY = _set(
    "what when where why how who which whose is are was were be been do does did done can could will would shall should"
    " may might must has have had am i you we me us my your our a an the of to for in on at with by from about and or"
    " but if not no any some much many more most long far often old big good well very too also just only still even"
    " tell show give get let make see know want need like love buy book reserve play pay cancel send check find try"
    " use take go come keep put say said mean think hear heard sure ok okay please thanks i'm i'd i'll i've im what's"
    " whats where's who's when's how's there's don't doesn't isn't aren't can't couldn't won't wouldn't didn't"
    " confirm add remove change delete open close start stop do's that's let's lets into out up down off over under"
    " back than then so time price kind type cost rating address phone number"
)
# "It" that stands for no thing: rain, time, and what comes after it.
_EXPLETIVE = re.compile(
    r"\b(?:to|possible|matter\w*|appears|seems|turns|takes|that|if|when|whether|for|like|because|than|how|why|wrong"
    r"|true that|rain\w*|snow\w*|sunny|cold|hot|warm|late|called|mean)\b|ing\b"
)
_CLOCK = re.compile(r"(?:what|which) (?:time|day|date|year|month|season) is it(?! on\b)")
