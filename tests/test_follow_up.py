"""Which texts mean nothing without the turns before them. A missed one is still held against its context; a false one
costs a hit by meaning."""

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.follow_up import means_nothing_alone

FOLLOW_UPS = """
yes
Yes, please.
Yeah, that works for me
yes that one at the corner
ok
Okay, great, thanks a lot!
Thank you so much for your help
no thanks
No, that's all.
No, I want the other one
sure, go ahead
and in Oslo?
And for children?
actually make it three
what about Oslo
How about the evening?
the same for August
the second one please
Which of them is open?
why?
Why not
how so
how much?
how much is it
How much does it cost?
How long does it take?
What does that mean?
is that included
can you cancel it
Tell me more
tell me more about that
explain that again
continue
go on
can you elaborate?
give me another example
one more
something cheaper
Do you have anything bigger?
is there a cheaper one
Are there any others?
show me other options
what else do you have
in the morning
at half past 7
on Friday
Tuesday
14
2 adults
in French please
Where are they?
What is their phone number?
What's the address?
what is the price
Find a hotel there.
That sounds good. What do I owe you?
The Blue Door would be great
I'm all set
ja bitte
und in Berlin?
Danke schön
warum
was ist mit Kindern
oui merci
et pour Lyon
pourquoi ?
sí, gracias
¿y en Sevilla?
sì grazie
e per domani?
dank je wel
好的
继续
""".strip().splitlines()

ALONE = """
How do I reset my password?
What is the capital of Norway?
What time is it in Lima?
What time is it?
is it safe to swim in a river
Is it true that cats see in the dark?
How long does it take to fly to Perth?
Does it matter which card I pay with?
It is raining in my tent, what do I do?
Are there any museums in Graz?
Why is there a fee for paying abroad?
Is there a gym in the hotel?
What is there to do in Graz?
my card is lost, can I block it
I bought a lamp and it does not work
Good morning
Hello
Hi there, who are you?
cancel this order
how do I return these shoes
What are the side effects of ibuprofen?
Where did they find the first dinosaur?
which one is better, oak or pine for a table
Do you have an app for tablets
No money arrived on my account
no one answers your phone
Correct the address on my invoice
The shop is closed on Sundays, is the restaurant open?
I want a cheaper phone plan
Find me a cheaper hotel in Graz
Yes, I would like to change the delivery address of the order that I placed on the phone
How do I say thank you in Finnish?
Continue my subscription for another year
And this is why I would like to know how the tax on second homes is worked out in Portugal
1. What is a monad? 2. What is a functor?
Wie ändere ich mein Passwort?
Et si je perds ma carte, comment la bloquer depuis l'étranger ?
oak table
iphone 14
""".strip().splitlines()


@pytest.mark.parametrize("text", FOLLOW_UPS)
def test_a_text_that_goes_on_from_another_is_told(text: str) -> None:
    assert means_nothing_alone(text)


@pytest.mark.parametrize("text", ALONE)
def test_a_question_that_stands_alone_is_let_be(text: str) -> None:
    assert not means_nothing_alone(text)


@given(st.text(max_size=400))
def test_any_text_is_judged(text: str) -> None:
    assert means_nothing_alone(text) in (True, False)


@pytest.mark.parametrize("unit", ["a ", "it ", "in ", ". ", "the other ", "yes, ", "\n", "show me a ", "12 "])
def test_no_text_takes_long(unit: str) -> None:
    for text in (unit * (100_000 // len(unit)), unit * (280 // len(unit))):
        begun = perf_counter()
        means_nothing_alone(text)
        assert perf_counter() - begun < 0.1
