"""Pairs, each with its reason. A guard may only veto, so a wrong veto costs a miss and a missing one costs trust."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.guard_negation import negation_differ

DIFFERENT = [
    ("Which lenses are convex?", "Which lenses are concave?", "opposites that only WordNet has"),
    ("Are these gases flammable?", "Are these gases nonflammable?", "a prefix before a word that is stemmed otherwise"),
    ("How do I enable two-factor login?", "How do I disable two-factor login?", "opposite verbs"),
    ("How do I turn on dark mode?", "How do I turn off dark mode?", "opposite particles"),
    ("How do I turn the sound on?", "How do I turn the sound off?", "a particle after its object"),
    ("Why won't it turn on or charge?", "Why won't it turn off or charge?", "a choice of something else"),
    ("How do I turn on roaming on my phone?", "How do I turn off roaming on my phone?", "one of two small words"),
    ("Enable location sharing", "Turn off location sharing", "opposites in other words"),
    ("Activating my card", "Deactivating my card", "inflected opposites"),
    ("How do I install the app?", "How do I uninstall the app?", "a prefix of denial"),
    ("How do I subscribe to the newsletter?", "How do I unsubscribe from the newsletter?", "a prefix, another ending"),
    ("Is this refundable?", "Is this non-refundable?", "non-"),
    ("Is the data encrypted?", "Is the data unencrypted?", "un-"),
    ("Is it legal to record calls?", "Is it illegal to record calls?", "il-"),
    ("Are these flights direct?", "Are these flights indirect?", "in-"),
    ("How do I connect the printer?", "How do I disconnect the printer?", "dis-"),
    ("How do I increase the font size?", "How do I reduce the font size?", "increase and reduce"),
    ("Should I buy gold now?", "Should I sell gold now?", "buy and sell"),
    ("How do I import contacts?", "How do I export contacts?", "import and export"),
    ("Block incoming calls", "Block outgoing calls", "incoming and outgoing"),
    ("How do I lock the door?", "How do I unlock the door?", "lock and unlock"),
    ("How do I block this caller?", "How do I allow this caller?", "block and allow"),
    ("How do I open an account?", "How do I close an account?", "open and close"),
    ("Can I pay by credit card?", "Can I pay by debit card?", "credit and debit"),
    ("Is it safe to eat before surgery?", "Is it safe to eat after surgery?", "before and after"),
    ("Can I travel with a visa?", "Can I travel without a visa?", "with and without"),
    ("Do you sell men's shoes?", "Do you sell women's shoes?", "men's and women's"),
    ("Should I turn left at the church?", "Should I turn right at the church?", "left and right"),
    ("Which foods should I eat?", "Which foods should I not eat?", "not"),
    ("Why is my phone charging?", "Why isn't my phone charging?", "n't"),
    ("Why is my phone charging?", "Why isn\u2019t my phone charging?", "a typographer's apostrophe"),
    ("Why does my card work?", "Why doesnt my card work?", "an apostrophe left out"),
    ("Can goats eat acorns?", "Can't goats eat acorns?", "can't"),
    ("Will it rain today?", "Won't it rain today?", "won't"),
    ("Have you ever been there?", "Have you never been there?", "never"),
    ("Flights with a stop", "Flights with no stop", "no"),
    ("How do I log in?", "How do I log out?", "in and out"),
    ("How do I smoke?", "How do I stop smoking?", "the end of doing it"),
    ("How do I start smoking?", "How do I quit smoking?", "start and quit"),
    ("Can I get a refund without a receipt?", "Can I get a refund?", "a condition that narrows the answer"),
    ("Everything except dairy", "Everything with dairy", "except"),
    ("Is the payment approved?", "Is the payment declined?", "approved and declined"),
    ("Why was my payment declined?", "Why was my payment not declined?", "a denied refusal"),
    ("Should I vote for the bill?", "Should I vote against the bill?", "for and against"),
    ("What is good but not cheap?", "What is cheap but not good?", "another word is denied"),
    ("I can log in", "I cannot log in", "a claim and its denial"),
    ("I know the code", "I don't know the code", "a claim of knowing and its denial"),
    ("Is the sensor not on?", "Is the sensor on?", "a denial that turns an opposite"),
    ("Do I have to pay if I cancel?", "Do I have to pay unless I cancel?", "if and unless"),
    ("Should I do this always?", "Should I do this never?", "always and never"),
    ("Is the museum inside the park?", "Is the museum outside the park?", "inside and outside"),
    ("Weather in the north of Spain", "Weather in the south of Spain", "points of the compass"),
    ("Is there a public beach?", "Is there a private beach?", "public and private"),
    ("How do I upgrade my plan?", "How do I downgrade my plan?", "up and down in one word"),
    ("Show me my sent mail", "Show me my received mail", "a past form"),
    ("Items I bought", "Items I sold", "irregular past forms"),
    ("Is this plant harmful to cats?", "Is this plant harmless to cats?", "-ful and -less"),
    ("Is this tool useful?", "Is this tool useless?", "an ending of denial"),
]

SAME = [
    ("You did not bill the correct sum", "The sum billed was incorrect", "a denial in another place, and a prefix"),
    ("How can a village become independent?", "How can a village become not dependent?", "a denied opposite"),
    ("Is the sensor off?", "Is the sensor not on?", "not on is off"),
    ("How do I enable dark mode?", "How do I turn on dark mode?", "two words for it"),
    ("How do I disable dark mode?", "How do I switch off dark mode?", "two words for its opposite"),
    ("How do I turn dark mode off?", "How do I turn off dark mode?", "the particle's place"),
    ("Can you turn it on or off?", "Can you turn it off or on?", "both, in another order"),
    ("Should I buy or sell?", "Is it better to sell or to buy?", "a choice of both"),
    ("I don't have a card, how do I get one?", "How do I get a card?", "a lack is a wish"),
    ("I cannot find my code", "Where can I find my code?", "not finding is asking where"),
    ("What are its pros and cons?", "What are its advantages and disadvantages?", "both sides in other words"),
    ("Why don't canoes have keels?", "Why do canoes not have keels?", "the doer between"),
    ("A business with no investment", "A business without investment", "with no is without"),
    ("Why can't I log in?", "Why am I unable to log in?", "unable is not able"),
    ("I can't log in", "I have trouble logging in", "trouble says it too"),
    ("I cannot find my invoice", "Help me find my invoice", "a complaint is a wish"),
    ("I can't reset my password", "How do I reset my password?", "a complaint is a wish"),
    ("I don't know how to reset my password", "How do I reset my password?", "not knowing is asking"),
    ("I'm not sure what a direct debit is", "What is a direct debit?", "not being sure is asking"),
    ("I do not remember my PIN", "I can't remember my PIN", "two ways to deny"),
    ("My card is not working", "Why won't my card work?", "two places for a denial"),
    ("My card hasn't arrived", "My card has not arrived yet", "short or long"),
    ("I have yet to get my card", "I have not got my card", "yet to is not"),
    ("Is it worth it or not?", "Is it worth it?", "or not"),
    ("Can you tell me whether or not it works?", "Can you tell me whether it works?", "whether or not"),
    ("Would you live on a boat? Why or why not?", "Would you live on a boat?", "why or why not"),
    ("Can it be cured? If not, why?", "Can it be cured?", "if not, why"),
    ("You ship to France, don't you?", "You ship to France?", "a question at the end"),
    ("No, I want the large one", "I want the large one", "an answer before the wish"),
    ("What is on page no. 5?", "What is on page 5?", "no. is a number's sign"),
    ("Not only cats, can dogs swim?", "Only cats, or can dogs swim?", "not only"),
    ("No problem, how do I cancel?", "How do I cancel?", "a phrase"),
    ("I did not like it, how do I return it?", "How do I return it?", "a reason that the other leaves out"),
    ("I don't want my account, please close it", "Please close my account", "a reason that the other leaves out"),
    ("How does a baker avoid procrastinating?", "How does a baker avoid procrastination?", "a verb or a noun"),
    ("How do I stop biting my nails?", "How can I quit biting my nails?", "two words for the end"),
    ("How do I stop myself from snoring?", "How do I stop snoring?", "words between"),
    ("What is a non-linear device?", "What is a nonlinear device?", "with a hyphen or without"),
    ("What is a non stop flight?", "What is a nonstop flight?", "with a space or without"),
    ("Is there parking in front of it?", "Is there parking infront of it?", "a space left out is no prefix"),
    ("Is smoking forbidden here?", "Is smoking not allowed here?", "not allowed is forbidden"),
    ("I was given the wrong amount", "I was not given the correct amount", "not correct is wrong"),
    ("Where can I buy stamps?", "Where can I purchase stamps?", "one side of the table"),
    ("What do you recommend?", "What would you recommend?", "no polarity at all"),
    ("Does it work in Spain?", "Will it work while I am in Spain?", "small words that stay"),
    ("Is that fish on the sofa?", "Is that fish in fact on the sofa?", "in fact"),
    ("Comment fermer mon compte ?", "Comment puis-je fermer mon compte ?", "another language"),
    ("\u5982\u4f55\u5173\u95ed\u901a\u77e5", "\u600e\u4e48\u5173\u95ed\u901a\u77e5", "another script"),
    ("Should I reduce salt?", "Should I cut down on salt?", "two ways to say less"),
    ("My payment didn't go through", "My payment failed", "failing is not going through"),
]


@pytest.mark.parametrize(("asked", "stored", "why"), DIFFERENT)
def test_changed_polarity_is_vetoed(asked: str, stored: str, why: str) -> None:
    assert negation_differ(asked, stored), why
    assert negation_differ(stored, asked), f"{why}, the other way round"


@pytest.mark.parametrize(("asked", "stored", "why"), SAME)
def test_the_same_polarity_in_other_words_is_let_pass(asked: str, stored: str, why: str) -> None:
    assert not negation_differ(asked, stored), why
    assert not negation_differ(stored, asked), f"{why}, the other way round"


WORDS = st.lists(
    st.sampled_from(
        "not no never without stop turn on off enable disable with isn't can't i know how less more".split()
    ),
    max_size=12,
).map(" ".join)


@given(st.text() | WORDS, st.text() | WORDS)
def test_any_two_texts_are_compared_both_ways_alike(asked: str, stored: str) -> None:
    assert negation_differ(asked, stored) == negation_differ(stored, asked)


@given(st.text() | WORDS)
def test_equal_texts_are_never_vetoed(text: str) -> None:
    assert not negation_differ(text, text)


@given(WORDS, WORDS)
def test_case_and_white_space_never_matter(asked: str, stored: str) -> None:
    shouted = f"  {asked.upper()} ".replace(" ", " \n")
    assert negation_differ(shouted, stored) == negation_differ(asked, stored)
