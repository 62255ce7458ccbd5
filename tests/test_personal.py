"""Which questions are personal, and that one user's answer is never another's."""

import asyncio
from pathlib import Path
from time import process_time
from typing import Any

import aiohttp
import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.personal import Personal, find_personal
from semcache.types import Selector
from tests.front_doors import Vendors
from tests.harness import running_proxy, until

DATA = {
    Personal.EMAIL: """
        please send the receipt to ann.miller@web-mail.de
        Is bob+news@mail.co.uk registered with you?
    """,
    Personal.PHONE: """
        call me back at +49 30 1234567
        +1 (415) 555-2671 is what I gave you
        my mobile is 5552671
        I am at 415-555-2671 until noon
        rufen Sie mich an: 0171 2345678
        mon numéro: 06 12 34 56 78
        Can you text me on 07700 900123
    """,
    Personal.CARD: """
        my card 4111 1111 1111 1111 was refused
        is 5500005555555559 blocked
        378282246310005 does not work
        what about 6011-1111-1111-1117
    """,
    Personal.IBAN: """
        transfer it to DE89 3704 0044 0532 0130 00
        GB82WEST12345698765432 is my account
        why was nl91abna0417164300 refused
        Is GB82 WEST 1234 5698 7654 32 fine with you?
    """,
    Personal.NATIONAL_ID: """
        my ssn is 536-90-4399
        536-90-4399 is on the form
        mi DNI 54362315-K caduca
        RCCMNL83S18D969H e il mio codice
        NIR 2 95 10 99 126 111 93
        the CPF 390.533.447-05 is refused
        passport number 533380006
        my national insurance number is QQ 12 34 56 C
    """,
    Personal.NUMBER: """
        where is order 4711233
        Order #5512 has not come
        cancel order no. 77812
        tracking number 1Z999AA10123456784
        my account number is 558192
        the invoice INV-20931 is wrong
        customer id: C-7781
        Wo ist Bestellung 8812345?
        Rechnungsnummer 2024-1187
        my policy 3829384918 ends when?
        booking reference XK4P29
        claim 88-123456
    """,
    Personal.IP_ADDRESS: """
        who is 81.2.69.142
        block 2a02:8109:9c40:1a2c::1 for me
    """,
    Personal.STREET_ADDRESS: """
        Do you deliver to 12 Elm Street, Springfield, IL 62704?
        I live at 221 Old Mill Road
        Musterweg 12, 10115 Berlin
        send it to 5 High Street please
        is 14 Rose Lane, Leeds LS1 4AP in your zone
    """,
    Personal.BIRTH_DATE: """
        my date of birth is 03/05/1981
        DOB: 1990-12-01
        I was born on 4 May 1977, what is my sign
        my birthday is May 4, 1977
        Ich bin am 4.5.1977 geboren
    """,
    Personal.NAME: """
        My name is Ann Miller, can you book a table?
        my password is hunter2
    """,
}

PLAIN = """
what is 4111 times 1111
what is 1234567890 * 987654321
call 911 or 112?
who wrote 1984
is 4111 1111 1111 1112 a valid card number
what is 2024-05-17 in weeks
is 10.0.0.1 a private address
what is 127.0.0.1
how does python 3.11.4.1 differ
what is version 81.2.69.142 of Chrome
ping 8.8.8.8
when was Bach born, 1685?
who was born on 4 May 1929
10 Downing Street
where is 221B Baker Street
what does user@example.com mean
git clone git@github.com:ann/tool.git
is support@shop-of-mine.com your address
how do I use @dataclass
order 500 sheets
in order 2 win
an order of 1500 euros
policy 2020
case 1 of 2
call 1-800-555-0199
convert 3.14159265358979 to hex
ISBN 978-3-16-148410-0
the U.S. sold tin in 1986, 1987 and 1988
what is my name in Japanese called `my_name`
order a pizza for 2 at 8
what is 0x7fffffff
flight 1234567
what is a bill of lading
my password is wrong
my pin is blocked
our 2019 transaction costs
can I order 20000 pieces
how is a DNI checked
"""

STATES = """
what is my balance
What's my account balance?
my balance
tell me my balance please
my order status
where is my order
where's my parcel
Where is my parcel right now please?
when is my next payment
when will my order arrive
when can I expect my refund
When does my subscription end?
when do I get paid
what's my address
what is my phone number
what’s my credit score
did you receive my payment
has my refund arrived
Has my claim been approved yet?
is my order on its way
was my order shipped
why was I charged twice
why was I charged?
why did you charge me $20
how much do I owe
how much did I spend on food last month
how much money is in my savings account
how much is my bill
how many days of leave do I still have
how many points have I earned
show me my last transactions
show all of my recent orders
check my balance
could you check my balance
Good morning! I want to see my balance.
what is the balance of my account
what is the limit on my card
what is on my calendar for friday
do I have any meetings tomorrow
what are my test results
what grade did I get? show me my grades
any news on my refund?
what is the status of my application
track my parcel
am I overdrawn
who am I
where do I live
account balance
Order status please
I changed banks. What is my balance now?
wie hoch ist mein kontostand
Wo ist mein Paket?
wann kommt meine Bestellung
où est ma commande
quel est mon solde ?
dónde está mi pedido
¿Cuál es mi saldo?
dov'è il mio pacco
qual è il mio saldo
onde está a minha encomenda
qual é o meu saldo
waar is mijn pakket
wat is mijn saldo
"""

GENERAL = """
how do I reset my password
how do I cancel my order
can I change my address?
what happens if my card is stolen
how can I check my balance
how do I find my order number
where can I see my balance
where do I find my invoice
how to track my order
How do I track my parcel?
is it possible to change my delivery address
can I cancel my subscription
what should I do if my order is late
is there a way to check my balance online
I do not know how to see my balance
Which steps do I take to get my refund? What are the steps to get my refund
why is my card not working
my card is lost
my payment was declined
cancel my order
I want to change my address
I forgot my password
update my e-mail address
delete my account
how long does a refund take
how much does shipping cost
how much is the fee
how many days do I have to return an item
when do you open
where is your store
what is the status code 404
what is a balance sheet
what is a credit score
how is a credit score computed
who am I talking to
what does "where is my order" mean
translate 'what is my balance' into French
What is my best friend to do
what is the best way to lose weight
what is the balance of power
what should my resume look like
do I have a fever
what should I name my dog
what do I owe for a second badge
wie ändere ich meine Adresse
wie kann ich meine Bestellung stornieren
kann ich meine Rechnung sehen
comment annuler ma commande
cómo cancelo mi pedido
come annullo il mio ordine
como cancelo o meu pedido
hoe annuleer ik mijn bestelling
was ist meine beste Wahl
ma mère est à paris
"""


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize(("kind", "question"), [(kind, line) for kind, text in DATA.items() for line in lines(text)])
def test_a_question_that_carries_data_of_somebody_is_personal(kind: Personal, question: str) -> None:
    assert find_personal(question) is kind


@pytest.mark.parametrize("question", lines(PLAIN))
def test_numbers_and_names_of_the_world_are_not_personal(question: str) -> None:
    assert find_personal(question) is None


@pytest.mark.parametrize("question", lines(STATES))
def test_a_question_for_the_state_of_ones_own_affairs_is_personal(question: str) -> None:
    assert find_personal(question) is Personal.OWN_STATE


@pytest.mark.parametrize("question", lines(GENERAL))
def test_a_question_for_the_way_or_the_rules_has_one_answer_for_all(question: str) -> None:
    assert find_personal(question) is None


def test_a_document_that_is_only_worked_on_does_not_make_its_question_personal() -> None:
    document = "Where is my parcel? " + "The weather is fine. " * 100
    assert find_personal("Summarise this text. " + "x " * 200 + document + "y " * 200) is None
    assert find_personal(document * 5 + " So what is my balance?") is Personal.OWN_STATE


@given(st.text(max_size=300) | st.text("0123456789 -+.@aM#:()", max_size=80))
def test_no_text_is_trouble(text: str) -> None:
    assert find_personal(text) in (None, *Personal)


UNITS = [
    "1",
    "1 ",
    "1-",
    "4111 ",
    "my ",
    "my order ",
    "what is my ",
    "a@",
    "a.b@c.",
    "DE89 ",
    "0 ",
    "+1 (",
    "1.",
    "a:",
    "ab1",
]
UNITS += [
    "order ",
    "order #",
    "order 1 ",
    "12 Elm ",
    "I live at ",
    "when my ",
    "how much i ",
    '"',
    "'",
    "https://",
    "A1-",
    "dob ",
]


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_takes_long_to_read(unit: str) -> None:
    started = process_time()
    find_personal(unit * (100_000 // len(unit)))
    assert process_time() - started < 0.3  # only the ends of a long text are read


# Through the front door

BALANCE = "what is my balance"
CARD = "4111 1111 1111 1111"


async def test_each_user_gets_his_own_answer_and_gets_it_again(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        ann, bob = await proxy.ask(BALANCE, user="ann"), await proxy.ask(BALANCE, user="bob")
        assert [reply.cache_status for reply in (ann, bob)] == [
            "semcache; fwd=miss; fwd-status=200; stored; detail=personal"
        ] * 2
        again = [await proxy.ask(BALANCE, user=user, stream=True) for user in ("ann", "bob")]
        assert [reply.detail for reply in again] == ["exact", "exact"]
        assert [reply.text.strip() for reply in again] == [ann.text, bob.text]
        assert ann.text != bob.text
        assert (await proxy.ask(BALANCE, safety_identifier="ann")).text == ann.text, "one user by either name"
        assert proxy.backend.requests == 2
        assert proxy.embedder.embedded == [], "no vector of it is made"


async def test_who_names_no_user_never_gets_the_answer_of_one_who_does(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        await proxy.ask(BALANCE, user="ann")
        first = await proxy.ask(BALANCE)
        assert (first.verdict, first.detail) == ("miss", "personal")
        assert (await proxy.ask(BALANCE)).text == first.text, "among themselves they share it, as all of a tenant do"
        assert (await proxy.ask("what is my balance please")).detail == "personal", "by equals alone"
        assert (await proxy.ask(BALANCE, key="sk-another")).verdict == "miss"


async def test_private_keeps_nothing_where_no_user_is_named(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "match: {personal: private}") as proxy:
        for _ in range(2):
            reply = await proxy.ask(BALANCE)
            assert reply.cache_status == "semcache; fwd=miss; fwd-status=200; detail=personal"
        await proxy.ask(BALANCE, user="ann")
        assert (await proxy.ask(BALANCE, user="ann")).detail == "exact"
        assert (await proxy.ask("how do I check my balance", user="ann")).cache_status.endswith("detail=no-entry")


async def test_serve_is_for_those_who_answer_all_alike(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "match: {personal: serve, threshold: 0.8}") as proxy:
        await proxy.ask("what is my balance now please", user="ann")
        assert (await proxy.ask("what is my balance please", user="bob")).detail.startswith("semantic/")


async def test_two_users_who_ask_at_once_do_not_share_a_fetch(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        users = ["ann", "bob", "ann", "bob"]
        replies = await asyncio.gather(*(proxy.ask(BALANCE, user=user) for user in users))
        assert replies[0].text == replies[2].text
        assert replies[1].text == replies[3].text
        assert replies[0].text != replies[1].text
        assert proxy.backend.requests == 2


async def test_what_a_user_said_before_makes_a_conversation_his(tmp_path: Path) -> None:
    def said(last: str) -> list[dict[str, Any]]:
        turns = [{"role": "user", "content": BALANCE}, {"role": "assistant", "content": "Shall I look it up?"}]
        return [*turns, {"role": "user", "content": last}]

    async with running_proxy(tmp_path) as proxy:
        ann = await proxy.ask(said("yes, look it up please"), user="ann")
        bob = await proxy.ask(said("yes, look it up please"), user="bob")
        assert (bob.verdict, bob.detail) == ("miss", "personal")
        assert ann.text != bob.text


async def test_tenants_that_share_do_not_share_what_is_personal(tmp_path: Path) -> None:
    settings = """
cache: {sharing: all}
tenants: [{name: a, keys: [sk-a]}, {name: b, keys: [sk-b]}]
"""
    async with running_proxy(tmp_path, settings) as proxy:
        await proxy.ask(BALANCE, key="sk-a", user="ann")
        assert (await proxy.ask(BALANCE, key="sk-b", user="ann")).verdict == "miss", "another ann"
        await proxy.ask("how do I check my balance", key="sk-a")
        assert (await proxy.ask("how do I check my balance", key="sk-b")).detail == "exact"


async def test_a_purge_by_user_leaves_the_others_theirs(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        for user in ("ann", "bob"):
            await proxy.ask(BALANCE, user=user)
        assert await proxy.app.store.purge(Selector(user="ann")) == 1
        await until(lambda: proxy.app.store.last_purge_seq)
        assert (await proxy.ask(BALANCE, user="bob")).detail == "exact"
        assert (await proxy.ask(BALANCE, user="ann")).verdict == "miss"


async def test_anthropics_user_id_parts_users_too(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, backend=Vendors()) as proxy:
        root = proxy.url.removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=root, api_key="sk-test", max_retries=0) as client:

            async def ask(user: str) -> str:
                asked: Any = [{"role": "user", "content": BALANCE}]
                message: Any = await client.messages.create(
                    model="small", max_tokens=9, messages=asked, metadata={"user_id": user}
                )
                return str(message.content[0].text).partition(" for")[0]

            assert [await ask(user) for user in ("ann", "bob", "ann", "bob")] == ["answer 1", "answer 2"] * 2


@pytest.mark.parametrize(
    ("question", "why"),
    [
        (BALANCE, "it asks how the asker's own affairs stand"),
        (f"was {CARD} refused", "it carries the number of a payment card"),
    ],
)
async def test_explain_says_what_makes_a_question_personal_and_repeats_no_data(
    tmp_path: Path, question: str, why: str
) -> None:
    async with running_proxy(tmp_path) as proxy, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{proxy.app.admin_port}/semcache/explain"

        async def explain(**asked: str) -> Any:
            body = {"question": question, "model": "small", "key": "sk-test", **asked}
            async with http.post(url, json=body) as response:
                return await response.json()

        await proxy.ask(question, user="ann")
        miss = await explain(user="bob")
        assert miss["summary"].startswith(f"This would be a MISS: the question is personal: {why}, so only")
        assert (miss["reason"], miss["exact_only"]) == ("personal", "personal")
        assert why in miss["exact_only_because"]
        assert CARD not in miss["summary"]
        assert [home["differs"] for home in miss["elsewhere"]] == [["context or user"]]
        assert (await explain(user="ann"))["verdict"] == "hit"
        assert (await explain())["verdict"] == "miss"


async def test_explain_says_that_private_wants_a_user(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "match: {personal: private}") as proxy, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{proxy.app.admin_port}/semcache/explain"
        async with http.post(url, json={"question": BALANCE, "model": "small", "key": "sk-test"}) as response:
            report = await response.json()
        assert "names no user" in report["summary"]
        assert (report["verdict"], report["no_lookup"]) == ("miss", "personal")
