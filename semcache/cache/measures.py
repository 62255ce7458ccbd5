"""Units and currencies: every way to write one, what it measures, and its size where one unit is a number of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import NamedTuple


class Measure(NamedTuple):
    """`size`: in the smallest unit of the same kind, exactly; None where units cannot be changed into one another."""

    unit: str
    kind: str
    size: Decimal | None = None


def _measures(kind: str, lines: str) -> Iterable[tuple[str, Measure]]:
    """Lines of `unit = size: spelling, spelling`, the size where there is one."""
    for line in filter(None, map(str.strip, lines.splitlines())):
        head, _, spellings = line.partition(":")
        unit, _, size = head.partition("=")
        measure = Measure(unit.strip(), kind, Decimal(size.strip()) if size else None)
        yield from ((spelling.strip(), measure) for spelling in spellings.split(","))


# Spellings that mean a unit wherever they stand.
_PLAIN = {
    "time": """
        millisecond = 0.001: millisecond, milliseconds, millis
        second = 1: seconds, secs
        minute = 60: minute, minutes, mins
        hour = 3600: hour, hours, hrs
    """,
    "mass": """
        milligram = 0.001: mg, milligram, milligrams, milligramme, milligrammes
        microgram = 0.000001: mcg, microgram, micrograms
        gram = 1: gram, grams, gramme, grammes, gms
        kilogram = 1000: kg, kgs, kilo, kilos, kilogram, kilograms, kilogramme, kilogrammes
        ounce = 28.349523125: oz, ounce, ounces
        lb = 453.59237: lb, lbs
        tonne = 1000000: tonne, tonnes
        ton: tons
    """,
    "length": """
        millimetre = 0.001: mm, millimetre, millimetres, millimeter, millimeters
        centimetre = 0.01: cm, cms, centimetre, centimetres, centimeter, centimeters
        metre = 1: metre, metres, meters
        kilometre = 1000: km, kms, kilometre, kilometres, kilometer, kilometers
        inch = 0.0254: inch, inches
        foot = 0.3048: ft
        yard = 0.9144: yards, yds
        mile = 1609.344: mile, miles
        nautical mile = 1852: nmi
    """,
    "area": """
        acre: acre, acres
        hectare: hectare, hectares
    """,
    "volume": """
        millilitre = 0.001: ml, millilitre, millilitres, milliliter, milliliters
        centilitre = 0.01: cl, centilitre, centilitres, centiliter, centiliters
        litre = 1: litre, litres, liter, liters
        gallon: gallon, gallons
        pint: pint, pints
        tablespoon: tablespoon, tablespoons, tbsp
        teaspoon: teaspoon, teaspoons, tsp
        cup: cups
    """,
    "speed": """
        mph: mph
        kmh: kmh, kph, kmph
    """,
    "temperature": """
        celsius: celsius, centigrade
        fahrenheit: fahrenheit
        kelvin: kelvin
    """,
    "data": """
        kilobyte = 1: kb, kilobyte, kilobytes
        megabyte = 1000: mb, megabyte, megabytes
        gigabyte = 1000000: gb, gigabyte, gigabytes, gigs
        terabyte = 1000000000: tb, terabyte, terabytes
        petabyte = 1000000000000: pb, petabyte, petabytes
        mbps: mbps
        gbps: gbps
        kbps: kbps
    """,
    "energy": """
        calorie: calorie, calories, kcal, kcals
        joule: joule, joules
        kilojoule: kj, kilojoule, kilojoules
        watt: watts
        kilowatt: kw, kilowatt, kilowatts
        kwh: kwh
        megawatt: megawatt, megawatts
        volt: volt, volts
        ampere: amps, amperes, ampere
        ohm: ohm, ohms
    """,
    "frequency": """
        hertz = 1: hz, hertz
        kilohertz = 1000: khz
        megahertz = 1000000: mhz
        gigahertz = 1000000000: ghz
    """,
    "share": """
        percent: %, percent, percents, pct, percentage
    """,
    "currency": """
        usd: $, usd, dollar, dollars, bucks
        cent: cents, ¢
        eur: €, eur, euro, euros
        gbp: £, gbp, sterling, quid
        jpy: ¥, jpy, yen
        cny: cny, rmb, yuan, renminbi
        inr: ₹, inr, rs, rupee, rupees
        krw: ₩, krw
        rub: ₽, rub, rouble, roubles, ruble, rubles
        chf: chf, francs
        cad: cad
        aud: aud
        nzd: nzd
        sgd: sgd
        hkd: hkd
        sek: sek, krona, kronor
        nok: nok
        dkk: dkk
        krone: krone, kroner
        isk: isk
        pln: pln, zloty, zlotys
        czk: czk, koruna, korunas
        huf: huf, forint, forints
        ron: romanian leu
        bgn: bgn, leva
        uah: uah, hryvnia, hryvnias
        lira: lira, liras
        ils: ils, nis, shekel, shekels
        dinar: dinar, dinars
        egp: egp
        qar: qar
        kwd: kwd
        irr: irr, rial, rials
        afn: afn, afghani, afghanis
        kzt: kzt, tenge
        manat: manat, manats
        lari: lari
        thb: thb, baht
        myr: myr, ringgit
        idr: idr, rupiah
        vnd: vnd, dong
        twd: twd
        bdt: bdt, taka
        mmk: mmk, kyat, kyats
        khr: khr, riel, riels
        mnt: mnt, tugrik, tugriks
        lkr: lkr
        pkr: pkr
        npr: npr
        ngn: ngn, naira
        ghs: ghs, cedi, cedis
        shilling: shilling, shillings
        kes: kes
        etb: etb, birr
        kwacha: kwacha
        mzn: mzn, metical, meticais
        bwp: bwp, pula
        rand: rand, rands
        ars: ars
        clp: clp
        pen: soles
        bob: bolivianos
        bolivar: bolivar, bolivars, bolivares
        pyg: pyg, guarani, guaranies
        crc: crc, colones
        gtq: gtq, quetzales
        hnl: hnl, lempira, lempiras
        nio: cordobas
        htg: htg, gourde, gourdes
        aed: aed, dirham, dirhams
        sar: sar, riyal, riyals
        zar: zar
        mxn: mxn, peso, pesos
        brl: brl, reais
        btc: btc, bitcoin, bitcoins
        eth: eth, ethereum
    """,
}

# Spellings that mean a unit only beside a number: "5 days", but not "nowadays" or "what a day".
_AFTER_A_NUMBER = {
    "time": """
        millisecond = 0.001: ms, msec
        second = 1: s, sec, second
        minute = 60: min
        hour = 3600: h, hr
        day = 86400: day, days
        week = 604800: week, weeks, wks
        weekday: weekdays
        fortnight = 1209600: fortnight, fortnights
    """,
    "calendar": """
        month = 1: month, months
        year = 12: year, years, yr, yrs
        decade = 120: decade, decades
        century = 1200: century, centuries
    """,
    "mass": """
        gram = 1: g, gm
        stone: stone, stones
        tonne = 1000000: t
        ton: ton
    """,
    "length": """
        metre = 1: m, meter, mtr, mtrs
        foot = 0.3048: foot, feet, '
        yard = 0.9144: yard, yd
        inch = 0.0254: "
    """,
    "volume": """
        litre = 1: l, ltr
        cup: cup
    """,
    "temperature": """
        degree: °, degree, degrees
    """,
    "energy": """
        watt: w, watt
        volt: v
        ampere: amp
        milliampere hour: mah
    """,
    "data": """
        byte: byte, bytes
        bit: bit, bits
        gigabyte = 1000000: gig
        megapixel: megapixel, megapixels, mp
    """,
    "currency": """
        cent: cent
    """,
}


def _table(kinds: Mapping[str, str]) -> dict[str, Measure]:
    return {spelling: measure for kind, lines in kinds.items() for spelling, measure in _measures(kind, lines)}


ANYWHERE: Mapping[str, Measure] = _table(_PLAIN)
BESIDE_A_NUMBER: Mapping[str, Measure] = {**ANYWHERE, **_table(_AFTER_A_NUMBER)}

# "Pounds" are money or a weight. Both are tried, so that it agrees with either.
POUND = Measure("pound", "pound")
POUNDS = frozenset({"lb", "gbp"})
