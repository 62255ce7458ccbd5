r"""What people write who ask how their own affairs stand: one phrase a line, read by personal_state.py.

Phrases are regular expressions on a sentence in lower case. `{order}` stands for one of the words that THINGS has under
that name, `{two}` for up to two words of any kind. Each line of THINGS and of the phrases is one alternative.
"""

from __future__ import annotations

from collections.abc import Mapping

# The way is asked for, or the rules are: one answer for everybody.
GENERAL = r"""
how (?:do|does|did|will|can|could|would|should|shall|might|to|must|come|long|else|is it|are|i)
(?:what|where|which|who|when|why|whether)(?: do)? (?:i |we |you )?(?:can|could|should|must|have to|need to|to){told}
(?:don't|do not|dont) know (?:how|what (?:i|to))
where do i(?! live)
what (?:do i do|happens|if)
(?<!when )(?<!what )(?:can|could|may|might|should|shall) (?:i|we|one|someone)(?! (?:owe|have|know))
(?:am i|are we|is it|would it be) (?:able|allowed|possible|safe|legal|ok|okay|normal)
(?:is|are) there (?:a |any |some )?(?:ways?|means|options?|possibility)
(?:ways?|steps|process|procedure|instructions) (?:to|for|of)
(?:if my|if i|unless|in case|suppose|explain)
"""

# With "my".
MY_AFFAIRS = r"""
{tell} (?:all )?(?:of )?my {two}(?:{detail}|{case} {status})(?! (?:mean|work)s?\b)
{tell} (?:the )?{two}{sum} {left}(?:is |are )?(?:of|on|in|for|from) (?:all )?my(?! (?:next|new)\b)
{status} (?:of|on|about|for|regarding) my {two}{case}
my {one}{case} {status}
^\W*my (?:order|balance)(?=\W*$)
track my {one}{goods}
(?<!add )on my {one}(?:calendar|schedule|agenda|to-?do|to do|shopping|grocery|reminder)
where(?:'?s| is| are| has| have)? (?:the \w+ )?my {two}(?:{goods}|money)(?! (?:come|came|go|transfer))
when{is} (?:i |can i |am i |will i )?(?:be )?{getting}my {two}{dated}
(?<!why )(?:has|have|did|was|were|is|are) my {two}{case} (?:\w+ )?{done}
(?:check|see|know|tell me) if my {two}{case} (?:\w+ )?{done}
(?:did|have|has) (?:you|they|u|anyone|someone|the \w+) (?:\w+ )?{handled} my {two}(?:{case}|{sent})
how much (?:\w+ ){0,3}(?:is|are|i|have|left|was|owe|due) (?:left |got |owe )?{within}(?:all )?(?:of )?my {two}{purse}
(?:do i have|is there) (?:enough|any|sufficient) {two}(?:in|on) my
"""

# With "I".
WHAT_I_HAVE = r"""
how much {two}(?:do|did|have|am|was) i (?:\w+ )?(?:owed?|owing|spen[dt]|spending|earn|earned|left|saved)(?! for\b)
how much {two}i (?:still )?(?:owe|spent|have spent|earned|have left)
what (?:do|did|have) i (?:owe|spen[dt])(?! for\b)
how (?:many|much) {two}{counted}(?: \w+){0,3} i (?:\w+ )?(?:have|got|left|used?|taken|earned|accrued)(?! to\b)
(?:have|was|were) i (?:already |ever |just )?(?:been )?(?:paid|refunded|approved|billed|reimbursed)
when (?:do|did|will|am|was) i (?:next |last |get |be |getting )*paid
am i (?:overdrawn|subscribed|enrolled|in debt|behind on)
do i (?:still |currently |already )?(?:have|owe) (?:any|an?|some|other) (?:\w+ )?{due}
why (?:was|were|did|have) (?:i|you|they) (?:\w+ )?(?:charged?|billed|debited) (?:me )?{charge}
why (?:was|were|did|have) (?:i|you|they) (?:\w+ )?(?:charged?|billed|debited)(?: me)?\W*$
who am i(?! (?:to|talking|speaking|chatting))
where (?:am i|do i live)(?: now| right now| located)?\s*$
how old am i
"""

# The whole message of those who write little.
BARE = r"""
(?:please |check |show |the |what is |what's |tell me )*{bare}(?: check| please| now)*
"""

THINGS: Mapping[str, str] = {
    "one": r"(?:[\w'$€£%-]+ )?",
    "two": r"(?:[\w'$€£%-]+ ){0,2}",
    # Asking to be told: what is mine and comes next is what is asked for.
    "tell": r"""
        what(?:'?s|'re| is| are| was| were)?(?: currently| now| left| in| on)?
        (?<!when i )(?<!keep )(?<!not )(?<!t )(?<!cannot ){show}(?: me| us)?(?: out)?{what}{on}
    """,
    "show": r"""
        tell|show|give|read(?! my statement)|send|remind|get|fetch|list|bring up|pull up|look ?up|display|check|view
        find out|know|(?<!please )review|see
    """,
    "on": r"(?: is| are)?(?: on| of| about| at)?",
    "left": r"(?:due |owed |left |available )?",
    "what": r"(?: whats?| what's| how much)?",
    "told": r"(?! (?:i )?(?:be|expect)\b)",  # "when can I expect", "when would it be": asked of what is under way
    "is": r"(?:'?s| is| are| was| were| will| has| have| does| do| did| would| can)?",
    "within": r"(?:(?:in|on|of|for) )?",
    "sent": r"money|e-?mail|letter|documents?",
    "charge": r"[$€£] ?\d+|\d+|twice|again",
    # Under way from somebody to me.
    "goods": r"""
        orders?|parcels?|packages?|packets?|deliver(?:y|ies)|shipments?|refunds?|reimbursements?|rebates?|purchases?
        luggage|baggage|suitcases?|items?|products?|prescriptions?|paychecks?|salary|wages
    """,
    # Somebody decides on it or handles it for me.
    "case": r"""
        orders?|parcels?|packages?|deliver(?:y|ies)|shipments?|refunds?|reimbursements?|applications?|claims?|purchases?
        requests?|bookings?|reservations?|subscriptions?|memberships?|appointments?|returns?|complaints?|tickets?
        cases?|payments?|invoices?|bills?|contracts?|polic(?:y|ies)|time off|pto|days off
    """,
    # It ends or falls due on a date of mine.
    "dated": r"""
        subscriptions?|memberships?|contracts?|trial|plan|polic(?:y|ies)|warranty|lease|loan|mortgage|rent|bills?
        invoices?|(?:next|last) [\w ]{0,12}payments?|instal?lments?|appointments?|payday|paychecks?|salary|birthday
        exams?|meetings?|flights?|bookings?|reservations?|refunds?|orders?|parcels?|packages?|deliver(?:y|ies)
        shipments?|prescriptions?
    """,
    # To be told to me, of me, and to nobody else.
    "detail": r"""
        balances?|account (?:details|summary|information|status|activity|number)|available credit|spending limit
        credit (?:score|rating|limit|history|report)|income|salary|wages?|earnings|paychecks?|payslips?|payday
        spendings?|expenses|transactions?|statements?|bills?|invoices?|due date|debts?|taxes|minimum payment
        {recent} (?:\w+ )?{event}
        (?:order|purchase|payment|transaction|spending|search|medical|browsing|call|booking) history
        (?:order|tracking|customer|member|membership|policy|account|booking|reference|confirmation) (?:number|id)
        (?:contract|claim|phone|telephone|mobile|cell|social security|tax|passport|employee|patient) (?:number|id)
        (?:(?:home|shipping|billing|delivery|mailing|postal|street|current|e-?mail|ip) )?address|e-?mail|user ?name
        name(?! in\b)|birthday|date of birth|age|location|(?:vacation|pto|leave|sick|holiday)(?: days?| balance| time)
        (?:(?:reward|loyalty|bonus|airline)[ -])?(?:points|miles|rewards)|grades?|diagnosis|medications?|prescriptions?
        (?:test|lab|exam|blood|biopsy|scan) results?|(?:medical|health) records?|appointments?|reservations?
        bookings?|calendar|schedule|agenda|meetings?|reminders?|inbox|voice ?mails?
        (?:to-?do|to do|shopping|grocery|reminder) list
    """,
    "recent": r"next|last|recent|latest|past|previous|open|pending|current|upcoming",
    "event": r"""
        orders?|transactions?|purchases?|payments?|bookings?|appointments?|invoices?|bills?|statements?|charges|deposit
        withdrawal|delivery|paycheck|payday|flight|reservations?|subscription|plan
    """,
    "status": r"status|progress|whereabouts|eta|outcome|update|news|tracking",
    "sum": r"balances?|limit|amount|total|sum|due date|minimum payment|interest|transactions|charges",
    "getting": r"(?:(?:get|getting|receive|receiving|expect|have|pay) (?:to )?)?",
    "done": r"""
        been|arriv\w+|ship\w*|sent|process\w*|approved|accepted|confirmed|dispatched|cancell?ed|delivered|paid|received
        active|refunded|on (?:its|the|their) way|ready|overdue|due|granted|denied|rejected|complete\w*|go through
        gone through|cleared|get
    """,
    "handled": r"""
        get|got|received?|process(?:ed)?|refund(?:ed)?|ship(?:ped)?|sen[dt]|dispatch(?:ed)?|approved?|accept(?:ed)?
    """,
    "purse": r"""
        accounts?|checking|savings|wallet|cards?|bills?|balance|rent|salary|paycheck|debts?|credit|loan|mortgage
        invoices?|taxes|bank
    """,
    "counted": r"points|miles|days(?: off)?|vouchers|rewards|meetings|appointments|pto|vacation|leave|time off",
    "due": r"appointments?|meetings?|reminders?|outstanding|unpaid|overdue|bills?|debts?|reservations?|bookings?",
    "bare": r"""
        (?:account|card|bank|order|delivery|shipment|refund|parcel|package|booking|claim) (?:balance|status)|balance
    """,
    # One of these is in everything with "my": a quick look for the beginnings of words.
    "topic": r"""
        account|address|\bage\b|agenda|applic|appointm|bagg|balance|bank|bill|birth|booking|calendar|card|case|charge
        checking|claim|complain|contract|credit|date|days|debt|deliver|deposit|diagnos|document|earn|mail|exam|expens
        flight|grade|grocery|histor|\bid\b|inbox|income|install|instalm|interest|invoice|item|lease|leave|letter|limit
        list|loan|location|luggage|medic|meeting|member|miles|money|mortgage|name|number|order|pack|parcel|\bpay|plan
        points|polic|prescription|product|pto|purchase|rating|rebate|record|refund|reimburs|remind|rent|report|request
        reserv|result|return|reward|salary|saving|schedule|score|shipment|shopping|spend|statement|status|subscr
        suitcase|sum|tax|ticket|time off|total|transaction|trial|vacation|voice|wage|wallet|warrant|amount
        to-?do|sick|holiday
    """,
    "german": r"""
        kontost[aä]nde?|guthaben|saldo|bestellung(?:en|sstatus)?|pakete?|lieferung|sendung|(?:rück)?erstattung
        rechnung(?:en)?|zahlung|adresse|gehalt|termine?|kundennummer|kontonummer|geburtstag|vertrag|abo
    """,
    "french": r"""
        solde|commandes?|colis|livraison|remboursement|factures?|paiements?|adresse|salaire|rendez-vous|abonnement
        numéro|virement|contrat
    """,
    "spanish": r"""
        saldos?|pedidos?|paquetes?|env[ií]os?|reembolso|facturas?|pagos?|direcci[oó]n|cita|n[oó]mina|suscripci[oó]n
        n[uú]mero|cuenta
    """,
    "italian": r"""
        saldo|ordin[ei]|pacco|spedizione|rimborso|fattur[ae]|pagament[oi]|indirizzo|appuntamento|stipendio|abbonamento
        numero|conto
    """,
    "portuguese": r"""
        saldo|pedidos?|encomenda|pacote|entrega|reembolso|faturas?|pagamento|endere[cç]o|consulta|sal[aá]rio|assinatura
        n[uú]mero|conta
    """,
    "dutch": r"""
        saldo|bestelling(?:en)?|pakket(?:je)?|levering|zending|terugbetaling|factuur|facturen|betaling(?:en)?|adres
        salaris|afspraak|abonnement|nummer|klantnummer
    """,
}

# The same in six more languages, fewer things each: words for mine, what is asked, how people ask for the way.
ABROAD = (
    (
        "mein meine meinen meiner meinem meines",
        r"(?:wo|wann|was|wie|welche[rnms]?|zeige?|ist|hat|habt) (?:\w+ ){0,3}mein(?:e[nrms]?)? {two}{german}",
        r"""
        wie (?!hoch|viel|ist|lautet|steht|heiß)\w+
        (?:kann|darf|muss|soll) (?:ich|man)
        wenn|falls
        """,
    ),
    (
        "mon ma mes",
        r"(?:o[uù]|quand|quel(?:le)?s?|combien|est-ce que|montrez?|avez-vous) [^.?!]{0,30}\bm(?:on|a|es) {one}{french}",
        "comment|puis-je|peut-on|peux|si",
    ),
    (
        "mi mis",
        r"(?:d[oó]nde|cu[aá]ndo|cu[aá]l|cu[aá]nto|qu[eé]|muestra|ha|han) [^.?!]{0,30}\bmis? {one}{spanish}",
        "c[oó]mo|pued[oe]|si",
    ),
    (
        "mio mia miei mie",
        r"(?:dov'?[eè]|dove|quando|qual'?|quale|quali|quanto|mostra) [^.?!]{0,30}\bmi(?:[oae]|ei) {one}{italian}",
        "come|posso|si può|se",
    ),
    (
        "meu meus minha minhas",
        r"(?:onde|quando|qual|quais|quanto|mostre|cad[eê]) [^.?!]{0,30}\b(?:meus?|minhas?) {one}{portuguese}",
        "como|posso|pode|se",
    ),
    (
        "mijn",
        r"(?:waar|wanneer|wat|welke?|hoe|toon|is) [^.?!]{0,30}\bmijn {one}{dutch}",
        r"""
        hoe (?!veel|hoog)\w+
        (?:kan|mag|moet) ik
        als
        """,
    ),
)
