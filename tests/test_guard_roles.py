"""Pairs, each with its reason. A guard may only veto, so a wrong veto costs a miss and a missing one costs trust."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.guard_roles import roles_differ

DIFFERENT = [
    ("Do trees need birds?", "Do birds need trees?", "a verb that is also a wish"),
    ("Convert 100 from EUR to USD", "Convert 100 from USD to EUR", "from and to exchanged"),
    ("Convert EUR to USD", "Convert USD to EUR", "only to"),
    ("Convert EUR to USD", "Convert from USD to EUR", "from said on one side"),
    ("Flights from Paris to London", "Flights from London to Paris", "a way back"),
    ("Flights to London from Paris", "Flights to Paris from London", "a way back, the end first"),
    ("Flights Paris London", "Flights London Paris", "a way without small words"),
    ("EUR USD exchange rate", "USD EUR exchange rate", "a rate without small words"),
    ("Translate from Spanish to English", "Translate from English to Spanish", "languages"),
    ("Translate Spanish into English", "Translate English into Spanish", "into"),
    ("How many dollars in a euro?", "How many euros in a dollar?", "what is counted, and in what"),
    ("I want to fly to Boston", "I want to fly from Boston", "one end only"),
    ("A train leaving from York", "A train that goes to York", "one end only, other words"),
    ("Transfer money to my savings", "Transfer money from my savings", "an account as the end and as the start"),
    ("Transfer from savings to checking", "Transfer from checking to savings", "between accounts"),
    ("Move files from the phone to the laptop", "Move files from the laptop to the phone", "between devices"),
    ("Migrate from MySQL to Postgres", "Migrate from Postgres to MySQL", "between systems"),
    ("Mail from my boss", "Mail to my boss", "sender and recipient"),
    ("Did Oracle sue Google?", "Did Google sue Oracle?", "who did it to whom"),
    ("Why did Oracle sue Google?", "Why did Google sue Oracle?", "who did it to whom"),
    ("Was Google sued by Oracle?", "Was Oracle sued by Google?", "two passives"),
    ("Did Google sue Oracle?", "Was Google sued by Oracle?", "an active and the other's passive"),
    ("Did Tom use the car?", "Was Tom used by the car?", "a wrong passive"),
    ("Is Anna following Ben?", "Is Ben following Anna?", "a verb in progress"),
    ("Is Anna loyal to Ben?", "Is Ben loyal to Anna?", "a quality towards somebody"),
    ("Does Anna owe money to Ben?", "Does Ben owe money to Anna?", "who owes"),
    ("Who is taller, can Anna lift Ben?", "Who is taller, can Ben lift Anna?", "in a second clause"),
    ("Could Brazil beat Italy?", "Could Italy beat Brazil?", "who wins"),
    ("What does Kant say about Hume?", "What does Hume say about Kant?", "who speaks of whom"),
    ("Is there peace after war?", "Is there war after peace?", "what comes first"),
    ("Should I eat before training?", "Should I train before eating?", "what comes first, inflected"),
    ("Is the cat bigger than the dog?", "Is the dog bigger than the cat?", "compared the other way round"),
    ("Replace butter with oil", "Replace oil with butter", "what is replaced"),
    ("Can I install Windows on a Mac?", "Can I install a Mac on Windows?", "what carries what"),
    ("Export data from Excel to Word", "Export data from Word to Excel", "programs"),
    ("The father of the bride", "The bride of the father", "whose"),
    ("Does milk go into the tea first?", "Does tea go into the milk first?", "what goes into what"),
    ("Did the dog bite the man?", "Did the man bite the dog?", "the oldest twin"),
    ("How do I call Java from Python?", "How do I call Python from Java?", "who calls"),
    (
        "Fly from Rome to Oslo, and how do they compare?",
        "Fly from Oslo to Rome, and how do they compare?",
        "two wishes",
    ),
    ("Ship from China to France", "Ship from France to China", "shipping"),
    ("Drive from Rome to Milan please", "Please drive from Milan to Rome", "with words that say nothing"),
    ("Lend money to friends", "Lend money from friends", "giver and taker"),
    ("Does Max expect Leo to win?", "Does Leo expect Max to win?", "who expects"),
    ("Why do cats fear dogs?", "Why do dogs fear cats?", "who fears"),
    ("Sync the calendar to Outlook", "Sync the calendar from Outlook", "direction of a copy"),
]

SAME = [
    ("change my delivery slot", "I want my delivery slot changed", "what moved is now a participle"),
    ("if it rains, is the match played?", "is the match played if it rains?", "clauses in another order"),
    ("What is the difference between tea and coffee?", "What is the difference between coffee and tea?", "symmetric"),
    ("Compare Rust with Go", "Compare Go with Rust", "symmetric"),
    ("Rust vs Go", "Go vs Rust", "symmetric"),
    ("Tea or coffee, which is better?", "Which is better, coffee or tea?", "a choice"),
    ("How far is Rome from Milan?", "How far is Milan from Rome?", "a distance"),
    ("Distance from Rome to Milan", "Distance from Milan to Rome", "a distance"),
    ("Distance between Rome and Milan", "Distance between Milan and Rome", "a distance"),
    ("Is Ann married to Ben?", "Is Ben married to Ann?", "marriage"),
    ("Is 2 + 3 equal to 3 + 2?", "Is 3 + 2 equal to 2 + 3?", "equality"),
    ("Flights from Paris to London", "Flights to London from Paris", "the same way, the end first"),
    ("Flights from Paris to London", "I need a flight to London from Paris", "the same way"),
    ("Did Oracle sue Google?", "Was Google sued by Oracle?", "a passive"),
    ("Was the castle lost by Jane?", "Did Jane lose the castle?", "an irregular passive"),
    ("Who was Google sued by?", "By whom was Google sued?", "nobody named"),
    ("Is Ann an artist and a teacher?", "Is Ann a teacher and an artist?", "a list of two"),
    ("Visit Rome, Milan and Turin", "Visit Turin, Milan and Rome", "a list of three"),
    ("Do Ann or Ben live here?", "Do Ben or Ann live here?", "a choice"),
    ("Can I eat out in Rome on Monday?", "On Monday, can I eat out in Rome?", "a part moved to the front"),
    ("If it rains, can we play?", "Can we play if it rains?", "a clause moved to the front"),
    ("What is the capital of Peru?", "Peru's capital is what?", "whose, in two ways"),
    ("What is my credit limit?", "What is the limit of my credit?", "whose, in two ways"),
    ("Where can I find the option?", "The option can be found where?", "the question word last"),
    ("I need a card. How do I order one?", "How do I order a card? I need one.", "two sentences"),
    ("My card was lost, what do I do?", "What do I do if my card was lost?", "two clauses"),
    ("Which bike is the best of this series?", "Which is the best bike of this series?", "an adjective"),
    ("Unsubscribe from the newsletter", "Unsubscribe to the newsletter", "people mix these up"),
    ("Can I get a scholarship to Oxford?", "Can I get a scholarship from Oxford?", "it comes from where one goes to"),
    ("Transfer money to my savings", "Please transfer the money to my savings account", "the same end"),
    ("What should I do in Rome?", "In Rome, what should I do?", "a part moved"),
    ("Is Rome worth a visit?", "Is it worth visiting Rome?", "other grammar"),
    ("Are PCs cheaper than consoles?", "Are consoles more expensive than PCs?", "an opposite along with the order"),
    ("Is oil lighter than water?", "Is water heavier than oil?", "an opposite along with the order"),
    ("Who wrote Hamlet?", "Hamlet was written by whom?", "a passive with a question word"),
    ("data science python", "python data science", "words for a search"),
    ("red shoes men", "men red shoes", "words for a search"),
    ("Can you help me reset my PIN?", "I want to reset my PIN", "a wish"),
    ("I was charged a fee, why?", "Why was I charged a fee?", "the question word last"),
    ("The fee on my statement is wrong", "My statement shows a wrong fee", "other grammar"),
    ("Do I tip in cash or by card?", "Do I tip by card or in cash?", "a choice"),
    ("How long do transfers from abroad take?", "How long does it take to transfer from abroad?", "other grammar"),
    ("Wie komme ich von Rom nach Mailand?", "Wie komme ich nach Mailand von Rom?", "another language"),
    ("Is Ann taller than Ben?", "Is Ben shorter than Ann?", "an opposite along with the order"),
]


@pytest.mark.parametrize(("asked", "stored", "why"), DIFFERENT)
def test_changed_roles_are_vetoed(asked: str, stored: str, why: str) -> None:
    assert roles_differ(asked, stored), why
    assert roles_differ(stored, asked), f"{why}, the other way round"


@pytest.mark.parametrize(("asked", "stored", "why"), SAME)
def test_the_same_roles_in_another_order_are_let_pass(asked: str, stored: str, why: str) -> None:
    assert not roles_differ(asked, stored), why
    assert not roles_differ(stored, asked), f"{why}, the other way round"


WORDS = st.lists(
    st.sampled_from("ann ben follow is was by from to and or , . than flight rome milan the if sued".split()),
    max_size=12,
).map(" ".join)


@given(st.text() | WORDS, st.text() | WORDS)
def test_any_two_texts_are_compared_both_ways_alike(asked: str, stored: str) -> None:
    assert roles_differ(asked, stored) == roles_differ(stored, asked)


@given(st.text() | WORDS)
def test_equal_texts_are_never_vetoed(text: str) -> None:
    assert not roles_differ(text, text)


@given(WORDS, WORDS)
def test_case_and_white_space_never_matter(asked: str, stored: str) -> None:
    shouted = f"  {asked.upper()} ".replace(" ", " \n")
    assert roles_differ(shouted, stored) == roles_differ(asked, stored)
