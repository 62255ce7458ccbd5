"""RULE: whether a question is personal: it carries data of somebody, or asks how the asker's own affairs stand.

Its answer is for one person. It is never compared by meaning, where another's data or another's balance would be one
number away, and its exact key carries the user that the request names; see policy.py and key.py.

What is data is told by its form, and by a checksum or a word beside it ("order 4711233") where the form alone is that
of any number. So "what is 4111 times 3" is no card, "call 911" no phone, "10.0.0.1" nobody's address.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from importlib import import_module
from ipaddress import ip_address

from stdnum import iban, luhn

from semcache.cache.personal_state import asks_for_own_state
from semcache.cache.remember import remember


class Personal(StrEnum):
    """What makes a question personal, in the words of an explanation. Never the data itself."""

    EMAIL = "it carries an e-mail address"
    PHONE = "it carries a phone number"
    CARD = "it carries the number of a payment card"
    IBAN = "it carries a bank account number (IBAN)"
    NATIONAL_ID = "it carries a national identity or tax number"
    NUMBER = "it carries the number of an order, an account, a customer or the like"
    IP_ADDRESS = "it carries an IP address"
    STREET_ADDRESS = "it carries a street address"
    BIRTH_DATE = "it carries a date of birth"
    NAME = "it tells the asker's name or password"
    OWN_STATE = "it asks how the asker's own affairs stand"


@remember
def find_personal(question: str) -> Personal | None:
    """What makes this question personal; None: nothing that is known here. Costs microseconds, whatever the length."""
    text = question if len(question) <= 2 * _ENDS else f"{question[:_ENDS]}\n{question[-_ENDS:]}"
    if "@" in text and _has_mailbox(text):
        return Personal.EMAIL
    if _DIGITS.search(text) and (found := _find_numbers(text)):
        return found
    if _DIGIT.search(text) and _ADDRESS.search(text):
        return Personal.STREET_ADDRESS
    if _SELF.search(text):
        return Personal.NAME
    return Personal.OWN_STATE if asks_for_own_state(question) else None


# Of a longer text the beginning and the end are read. No embedder that ships reads more than the two together.
_ENDS = 2000

_DIGIT = re.compile(r"\d")
_DIGITS = re.compile(
    r"\d\D?\d\D?\d|\d\D{0,3}\d\D{0,3}\d"
)  # three near each other are in all numbers that are looked for


def _find_numbers(text: str) -> Personal | None:
    return next((kind for kind, is_in in _NUMBERS if is_in(text)), None)


# E-mail

_MAILBOX = re.compile(r"(?<![\w.%+-])([\w.%+-]{1,64})@((?:[^\W_][\w-]{0,62}\.){1,8}[^\W\d_]{2,24})\b")
# Of nobody: of a company, of an example, of a program ("git@github.com:a/b").
_ROLES = frozenset(
    """
    info support contact hello help sales admin office service noreply no-reply donotreply postmaster webmaster abuse
    security privacy press jobs careers billing team feedback git user username name someone you email test foo
    """.split()
)
_EXAMPLES = re.compile(r"(?:.*\.)?(?:example(?:\.(?:com|org|net))?|test|invalid|localhost|domain\.com)", re.IGNORECASE)


def _has_mailbox(text: str) -> bool:
    return any(
        found[1].lower() not in _ROLES and not _EXAMPLES.fullmatch(found[2]) for found in _MAILBOX.finditer(text)
    )


# Phones: the forms that are nothing else, and shorter ones after a word for them.

_PHONE = re.compile(
    r"(?<![\w.+*/^-])(?:"
    r"\+[1-9]\d{0,2}[ .()/-]{0,2}\d(?:[ .()/-]{0,2}\d){5,12}"  # +49 (0)30 1234567
    r"|(?:1[ .-])?\([2-9]\d\d\) ?\d{3}[ .-]\d{4}|(?:1[ .-])?[2-9]\d\d([.-])\d{3}\1\d{4}|[2-9]\d\d \d{3} \d{4}"
    r"|0[1-9]\d{0,3}[ /-]\d{2,4}(?:[ -]?\d{2,4}){1,3}"  # 030 1234567, 06 12 34 56 78
    r")(?![\w-]|[.,]\d)"
)
_PHONE_SAID = re.compile(
    r"\b(?:phone|mobile|cell|tel|telephone|whatsapp|fax|handy|telefon(?:nummer)?|t[ée]l[ée]phone|tel[ée]fono|m[óo]vil"
    r"|telefone|(?:call|text|ring|reach) (?:me|us|him|her)|my number)"
    r"[^\d\n.?!]{0,20}(\+?\d(?:[ ()/-]{0,2}\d){5,14})(?!\w)",
    re.IGNORECASE,
)
_FREE = re.compile(r"(?:\+?1)?(?:800|833|844|855|866|877|888|900)\d{7}|0800\d+")  # a company's


def _has_phone(text: str) -> bool:
    found = [match[0] for match in _PHONE.finditer(text)] + [match[1] for match in _PHONE_SAID.finditer(text)]
    return any(6 <= len(digits) <= 15 and not _FREE.fullmatch(digits) for digits in map(_digits_of, found))


def _digits_of(text: str) -> str:
    return "".join(filter(str.isdigit, text))


# Payment cards: the ranges of the networks and Luhn's check digit.

_CARD = re.compile(r"(?<![\w.,-])[2-6]\d{3}(?:[ -]?\d){8,15}(?![\w-]|[.,]\d)", re.ASCII)
_NETWORKS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}"
    r"|6(?:011|4\d\d|5\d\d|2\d\d|\d{3})\d{12}|(?:50|5[6-8]|6\d)\d{10,17}"
)


def _has_card(text: str) -> bool:
    return any(
        _NETWORKS.fullmatch(digits) is not None and luhn.is_valid(digits)
        for digits in (re.sub("[ -]", "", found[0]) for found in _CARD.finditer(text))
    )


# IBAN: two letters, two digits, and the check of ISO 13616.

_IBAN = re.compile(r"(?<![^\W_])[A-Z]{2}\d\d(?: ?[A-Z0-9]){11,30}(?![A-Z0-9])", re.ASCII | re.IGNORECASE)


def _has_iban(text: str) -> bool:
    return any(_starts_with_iban(found[0]) for found in _IBAN.finditer(text))


def _starts_with_iban(text: str) -> bool:
    """Words may follow it, and look like the next group of it."""
    while len(text) >= 15:
        if iban.is_valid(text, check_country=False):
            return True
        text = text.rpartition(" ")[0]
    return False


# National numbers: a form that is theirs, and its checksum. Where the form is that of any number, after a word for it.

_NATIONAL: tuple[tuple[str, str], ...] = (
    ("us.ssn", r"\d{3}-\d{2}-\d{4}"),
    ("es.dni", r"\d{8}-?[A-Z]"),
    ("es.nie", r"[XYZ]-?\d{7}-?[A-Z]"),
    ("it.codicefiscale", r"[A-Z]{6}\d\d[A-Z]\d\d[A-Z]\d{3}[A-Z]"),
    ("fr.nir", r"[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d"),
    ("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d\d"),
    ("pl.pesel", r"\d{11}"),
    ("ro.cnp", r"[1-9]\d{12}"),
    ("cn.ric", r"\d{17}[\dX]"),
    ("ch.ssn", r"756\.\d{4}\.\d{4}\.\d\d"),
    ("fi.hetu", r"\d{6}[-+A]\d{3}[A-Z0-9]"),
    ("se.personnummer", r"(?:\d\d)?\d{6}[-+]\d{4}"),
    ("be.nn", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d"),
    ("in_.aadhaar", r"\d{4} \d{4} \d{4}"),
    ("in_.pan", r"[A-Z]{3}[ABCFGHLJPT][A-Z]\d{4}[A-Z]"),
    ("mx.curp", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d"),
)
_NATIONAL_ID = re.compile(
    rf"(?<![\w.-])(?:{'|'.join(f'({form})' for _, form in _NATIONAL)})(?![\w-]|\.\d)", re.ASCII | re.IGNORECASE
)
_NATIONAL_SAID = re.compile(
    r"\b(?:social security|national insurance|passport|driv(?:er'?s|ing) licen[sc]e|tax id|national id"
    r"|identity card|id card|aadhaa?r|medicare|codice fiscale|steuer-?id\w{0,20}|steuernummer"
    r"|personalausweis\w{0,10}|reisepass\w{0,10}"
    r"|sozialversicherungsnummer|passeport|num[ée]ro de s[ée]curit[ée] sociale"
    r"|ssn|bsn|dni|(?-i:NIE|NIF|TIN|NHS|NINO)|cpf|curp|pesel|personnummer)"
    r"(?: (?:number|no|num|id|nummer))?[\s:#.(=]{0,4}(?:is |ist |est |es )?"
    r"(?=(?:[A-Z]{0,4}[ .-]?\d){5})[A-Z0-9](?:[ .-]?[A-Z0-9]){4,19}\b",
    re.IGNORECASE,
)


def _has_national_id(text: str) -> bool:
    for found in _NATIONAL_ID.finditer(text):
        if found.lastindex is not None and _CHECKSUMS[found.lastindex - 1].is_valid(found[0]):
            return True
    return _NATIONAL_SAID.search(text) is not None


# Numbers of my dealings with somebody, after a word for them.

_DEALING = (
    r"(?:orders?|purchase|invoice|bill|tracking|customer|client|account|booking|reservation|confirmation|ticket|case"
    r"|policy|claim|member|membership|reference|ref|transaction|transfer|payment|parcel|package|shipment|delivery"
    r"|contract|patient|loyalty|subscription|refund|application|employee|student|licen[sc]e|card|bestellung|bestell"
    r"|auftrags?|rechnung|rechnungs|kunden|konto|vertrags?|sendungs?|paket|commande|facture|contrat|suivi|pedido"
    r"|factura|cliente|ordine|fattura|encomenda|fatura|bestelling|factuur|klant)"
)
_NUMBERED = r"(?:[ -]?(?:numbers?|num|no\.?|nr\.?|nummer|id|code|num[ée]ro|n[úu]mero|n°|nº|#))"
_JOIN = r"[\s:#(=]{0,3}(?:(?:is|was|ist|war|est|es) )?[\s:#(=]{0,3}"
_CODE = r"(?=[A-Z-]{0,12}\d)[A-Z0-9](?:[A-Z0-9]|[-/](?=[A-Z0-9])){%d,29}"
_DEALING_NUMBER = re.compile(
    # "Order number 471" says itself what it is. "Order 4711" may be pencils or a year, "order 20000" a wish.
    rf"\b{_DEALING}(?:{_NUMBERED}{_JOIN}|\s?[:(]?\s?#){_CODE % 2}\b"
    rf"|\b{_DEALING}{_JOIN}(?=[A-Z-]{{0,6}}(?:\d[A-Z-]{{0,3}}){{5}})(?!\d+000\b){_CODE % 4}(?![\w€$£%]|[.,]\d)"
    rf"|\b(?:reference|booking|reservation|confirmation|ref|pnr){_JOIN}(?-i:(?=[A-Z]*\d)(?=\d*[A-Z])[A-Z0-9]{{5,12}})\b",
    re.IGNORECASE | re.ASCII,
)


def _has_dealing_number(text: str) -> bool:
    return _DEALING_NUMBER.search(text) is not None


# IP addresses that are somebody's: not those of private networks, documents and public resolvers.

_IP = re.compile(
    r"(?<![\w.:/-])(?<!version )"
    r"(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6})(?![\w:-]|\.\d)"
)
_VERSION = re.compile(r"(?:[12]?\d\.){3}[12]?\d")  # "3.11.4.1": small numbers are a program's version sooner
_RESOLVERS = frozenset("1.1.1.1 1.0.0.1 8.8.8.8 8.8.4.4 9.9.9.9 208.67.222.222 208.67.220.220".split())


def _has_ip_address(text: str) -> bool:
    return any(_is_somebodys(found[0]) for found in _IP.finditer(text) if found[0] not in _RESOLVERS)


def _is_somebodys(address: str) -> bool:
    try:
        return ip_address(address).is_global and not _VERSION.fullmatch(address)
    except ValueError:
        return False


# Where somebody lives: a house number, a street and a postcode, or the first two after words that say whose. "10
# Downing Street" alone is a sight.

_NAMES = r"(?:[A-Z][\w'.-]{0,20} ){1,3}"
_STREET = (
    rf"(?:\d{{1,5}}[A-Za-z]? (?:[NSEW]\.? )?{_NAMES}(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd"
    r"|Court|Ct|Way|Place|Pl|Terrace|Crescent|Close|Square|Sq|Parkway|Pkwy|Gardens|Grove)\b\.?"
    r"|\d{1,4},? (?:rue|avenue|boulevard|place|chemin|impasse|all[ée]e) [\w' -]{2,30}"
    r"|(?:[A-ZÄÖÜ][\wäöüß-]{1,25}[ -]?(?:[Ss]tra(?:ß|ss)e|[Ss]tr\.|[Ww]eg|[Pp]latz|[Aa]llee|[Gg]asse|straat|laan)"
    r"|(?:Via|Calle|Rua|Avenida) [\w' -]{2,30}),? \d{1,4}[a-z]?\b)"
)
_POSTCODE = r"\b(?:[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|\d{5}(?:-\d{4})?|\d{4} ?[A-Z]{2}|[A-Z]\d[A-Z] \d[A-Z]\d)\b"
_AT_HOME = (
    r"\b(?i:i live|we live|my (?:new |home |old |delivery |shipping |billing )?address|i (?:have )?moved to|ich wohne"
    r"|(?:ship|deliver|send) (?:it |this |them )?to|meine (?:neue )?adresse|j'habite|mon adresse|vivo en"
    r"|mi direcci[óo]n|abito in)\b[^.?!\n]{0,30}?"
)
_ADDRESS = re.compile(rf"\b{_STREET}[,\s]{{1,3}}[\w ,.#-]{{0,40}}?{_POSTCODE}|{_AT_HOME}\b{_STREET}")


# When somebody was born, said of oneself or in a form: "when was Bach born, 1685?" is of the world.

_BIRTH_DATE = re.compile(
    r"\b(?:i was born(?: on| in)?|(?:my|her|his) (?:birthday|date of birth|birth ?date|dob)|d\.?o\.?b\.?|date of birth"
    r"|geburtsdatum|ich bin am|geboren am|date de naissance|je suis n[ée]e? le|fecha de nacimiento|nac[íi] el"
    r"|data di nascita|data de nascimento|geboortedatum)(?: is| ist| est| es)?[\s:]{1,3}(?:the )?"
    r"(?:\d{1,4}(?:st|nd|rd|th)?[\s./-]{1,2}(?:of )?[\w.]{1,10}[\s./,-]{1,2}\d{2,4}"
    r"|[a-z]{3,9}\.? \d{1,2}(?:st|nd|rd|th)?,? \d{2,4})\b",
    re.IGNORECASE,
)


def _has_birth_date(text: str) -> bool:
    return _BIRTH_DATE.search(text) is not None


# "My name is Ann Miller", "my password is hunter2": a password without a digit is not told from "is wrong".

_SELF = re.compile(
    r"\b[Mm]y (?:(?:full |first |last |middle |legal |maiden |sur)?name is [A-Z]\w"
    r"|(?:password|passcode|pin|PIN|cvv|CVV|cvc|CVC|otp|OTP|security code) is:? ['\"]?[^\s\d]{0,30}\d)"
)

_CHECKSUMS = [import_module(f"stdnum.{name}") for name, _ in _NATIONAL]

# Most telling first: a card is not to be called an order's number.
_NUMBERS: tuple[tuple[Personal, Callable[[str], bool]], ...] = (
    (Personal.CARD, _has_card),
    (Personal.IBAN, _has_iban),
    (Personal.NATIONAL_ID, _has_national_id),
    (Personal.PHONE, _has_phone),
    (Personal.NUMBER, _has_dealing_number),
    (Personal.IP_ADDRESS, _has_ip_address),
    (Personal.BIRTH_DATE, _has_birth_date),
)
