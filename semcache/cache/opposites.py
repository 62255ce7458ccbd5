"""Words that exclude each other: a question about the one is answered wrongly by an answer about the other.

A line is one axis, its sides parted by |. Words of one side stand for each other well enough: of two questions, one
with "enable" and the other with "turn off" ask for opposite things. Inflections need no mention, since stems are
compared; pairs that differ by a prefix (install, uninstall) need none either, guard_negation.py finds them by rule. Two
words joined by _ are a verb and its particle, which may stand apart ("turn the sound off").

Rarer words, "concave" and "convex", come from words_opposites.txt, which is made from WordNet.

Left out are opposites that people use for the same wish: come and go, teach and learn ("teach me", "how do I learn"),
give and get.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from importlib import resources
from typing import NamedTuple

from semcache.cache.words import stem


class Sort(Enum):
    PLAIN = "plain"
    PLACED = "placed"  # it counts beside the same word only
    GRADED = "graded"  # it has degrees: cheap, cheaper, cheapest
    RANK = "rank"  # it is a degree: first, more, worst


class Side(NamedTuple):
    axis: int  # number of the line
    side: int  # number of its side, from 0
    sort: Sort
    is_pair: bool  # of an axis with two sides, where "not the one" means the other


# What one does. A stemmer leads the inflections back, and nouns such as "activation".
_ACTIONS = """
enable activate turn_on switch_on power_on | disable deactivate turn_off switch_off power_off
put_on toggle_on turn_on | shut_off toggle_off turn_off
enable turn_on | shut_off
start begin launch resume | stop end quit cease halt finish terminate
open reopen | close shut
lock | unlock
block ban blacklist | unblock unban whitelist allow permit
allow permit authorize authorise legalize legalise | forbid prohibit disallow deny prevent ban block
accept approve | reject decline refuse deny disapprove
increase raise boost grow gain enlarge expand turn_up go_up | decrease reduce lower shrink lessen cut turn_down go_down
increase maximize maximise heighten scale_up | decrease reduce minimize minimise diminish scale_down
increase rise raise | decrease fall drop decline
buy purchase | sell resell
import | export
upload | download
send | receive
borrow | lend loan
deposit | withdraw
credit | debit
earn save | spend waste
win | lose
gain | lose shed
find | lose
add insert include append | remove delete subtract exclude erase omit
attach connect link join pair | detach disconnect unlink disjoin unpair separate
show display reveal unhide | hide conceal mask
create make build | delete destroy remove demolish
install set_up | uninstall
subscribe opt_in sign_up register enroll enrol | unsubscribe cancel opt_out deregister
log_in sign_in login signin | log_out sign_out log_off sign_off logout signout logoff
check_in checkin | check_out checkout
clock_in | clock_out
move_in | move_out
zoom_in | zoom_out
follow | unfollow
mute silence | unmute
pin | unpin
like love adore enjoy tolerate | dislike hate detest loathe
admire respect esteem adore | despise scorn loathe disdain
freeze | unfreeze thaw melt
load | unload
pack wrap | unpack unwrap
zip compress | unzip decompress extract
encrypt encode | decrypt decode
archive | unarchive restore
mount | unmount
plug_in | unplug
hire employ recruit | fire sack dismiss
promote | demote
upgrade | downgrade
push | pull
attack | defend
remember recall | forget
succeed pass | fail
strengthen | weaken
encourage | discourage
praise compliment | criticize criticise insult
agree | disagree
believe trust | distrust doubt
arrive land | leave depart
arrival | departure
enter | exit leave
board embark | disembark
inhale | exhale
heat warm | cool chill
tighten | loosen
fill | empty drain
lift raise | lower
wake | sleep
wake_up get_up | go_to_bed fall_asleep
marry | divorce
merge unite combine join | split divide separate
multiply | divide
speed accelerate speed_up | slow decelerate slow_down
lengthen extend prolong | shorten
widen | narrow
sharpen | blur
brighten lighten | darken dim
thicken | thin dilute
harden | soften
simplify | complicate
improve better | worsen
build construct | demolish dismantle
repair fix mend | break damage
protect | harm endanger
save rescue | kill
hydrate | dehydrate
inflate | deflate
expand | contract
ascend climb | descend
plant | uproot harvest
publish | unpublish
deploy | undeploy
commit | revert rollback
grant | revoke
attend | skip miss
confirm | cancel deny
schedule book reserve | cancel
buckle fasten | unbuckle unfasten
charge | discharge
charge | refund
inbox receive | outbox send
vote_for | vote_against
pick_up collect | drop_off hand_in
call_in | call_out
"""

# What a thing is, or which of a few it is.
_KINDS = """
indoors indoor | outdoors outdoor
upward upwards | downward downwards
beneath underneath | above
previous last | next
including | excluding
pro | anti
incoming inbound ingoing | outgoing outbound
inflow influx | outflow
internal inner | external outer
domestic national local | international foreign overseas abroad
import | export
same identical equal similar | different
always | never
all every everybody everyone | none nobody
some | none
ever | never
open | closed shut
free | paid
optimist | pessimist
true correct accurate | false incorrect wrong inaccurate
truth | lie
right | left
legal lawful | illegal unlawful
possible | impossible
public | private
permanent | temporary
mandatory compulsory required obligatory | optional voluntary
manual manually | automatic automatically
online | offline
remote remotely | onsite
live living alive | dead deceased
life | death
birth born | death die dead
live | die
present attendance | absent absence
presence | absence
guilty | innocent
frozen | fresh
acid acidic | alkaline basic
single unmarried | married
single | double triple
major | minor
majority | minority
superior | inferior
senior | junior
primary | secondary tertiary
upper | lower
port larboard | starboard
front | back rear
forward forwards | backward backwards
clockwise | anticlockwise counterclockwise
horizontal horizontally landscape | vertical vertically portrait
left | right middle
beginning start | ending end
entrance entry | exit
north northern | south southern | east eastern | west western
northeast | northwest | southeast | southwest
odd | even
plus | minus
input | output
sender | recipient receiver
send sender | recipient
buyer purchaser | seller vendor
landlord | tenant
employer | employee
lender creditor | borrower debtor
teacher | student pupil
doctor physician | patient
host | guest
winner | loser
friend ally | enemy foe
hero | villain
ancestor | descendant
profit gain | loss
asset | liability
income revenue | expense expenditure
supply | demand
surplus | deficit
advantage pro benefit strength upside | disadvantage con drawback weakness downside
success | failure
victory | defeat
war | peace
love | hate hatred
strength | weakness
cause | effect
problem | solution
heaven | hell
god | devil
arrival | departure
departing | returning
wholesale | retail
sunrise dawn | sunset dusk
day daytime | night nighttime
morning | afternoon | evening | night
spring | summer | autumn fall | winter
breakfast | lunch | dinner supper
daily | weekly | monthly | yearly annual annually | hourly | quarterly
past history | future
yesterday | today | tomorrow
credit | debit | prepaid
gross | net
fixed | variable
stock share | bond
bull bullish | bear bearish
sunny | rainy cloudy
solid | liquid | gas
male | female
man gentleman | woman lady
men gentlemen | women ladies
mens | womens
boy | girl
guy dude | girl
boyfriend | girlfriend
husband | wife
he him himself his | she her herself hers
mother mom mum mommy | father dad daddy
mother | father | brother | sister | son | daughter
uncle | aunt
grandfather grandpa | grandmother grandma
nephew | niece
king | queen
prince | princess
actor | actress
bride | groom
masculine | feminine
adult | child kid baby
adults | children kids babies
human | animal
cat kitten | dog puppy
black | white
red | blue | green | yellow | orange | purple | pink | brown | grey gray | black | white
even | odd
vegetarian vegan | meat
atheist | believer
liberal | conservative
democrat democratic | republican
capitalism capitalist | communism communist | socialism socialist
theory theoretical | practical practice
quantity | quality
frontend | backend
client | server
static | dynamic
serial | parallel
synchronous sync | asynchronous async
vertical | horizontal
read | write
encoder | decoder
absolute | relative
abstract | concrete
objective | subjective
singular | plural
vowel | consonant
prefix | suffix
noun | verb | adjective | adverb
qualitative | quantitative
inductive | deductive
micro | macro
undergraduate bachelor | postgraduate master | phd doctorate
ios iphone | android
"""

# Small words, which mean an opposite only in the same place: beside the same word.
_PLACES = """
on | off
in | out
into | out
up | down
above over | below under
before | after
until till before | since after
with | without
for | against
in within inside | outside
"""

# Qualities that a thing has more or less of: "cheap" stands for "cheaper" and "cheapest" too.
_GRADED = """
many | few
much | little
often frequently | rarely seldom
early | late
old | new
old aged elderly senior | young junior youthful
ancient | modern
fast quick rapid speedy | slow
big large huge giant | small little tiny mini
long | short
tall | short
high | low
deep | shallow
wide broad | narrow
thick | thin
fat overweight obese | thin slim skinny underweight lean
heavy | light lightweight
strong powerful | weak powerless
hard difficult tough challenging | easy simple effortless
hard firm | soft
hot warm | cold cool chilly
wet humid damp moist | dry arid
bright light | dark dim
loud noisy | quiet silent
full | empty
clean | dirty messy
safe secure harmless | dangerous unsafe hazardous harmful risky
rich wealthy | poor broke
cheap inexpensive affordable budget | expensive costly pricey dear luxury premium
rare scarce uncommon | common commonplace widespread
deep low | high shrill
good great | bad evil awful terrible poor
beautiful pretty attractive handsome | ugly unattractive
happy glad cheerful joyful | sad unhappy depressed miserable
positive optimistic | negative pessimistic
active | inactive passive
religious | secular
offensive | defensive
brave courageous fearless | cowardly fearful afraid scared
smart clever intelligent brilliant | stupid dumb foolish
polite courteous | rude impolite
kind nice | mean cruel
generous | stingy greedy selfish
selfish | selfless altruistic
humble modest | arrogant proud
patient | impatient
lazy | diligent hardworking industrious
calm relaxed | anxious nervous angry
introvert introverted | extrovert extroverted
interesting exciting fascinating | boring dull
visible | invisible
sick ill unhealthy | healthy well
strict | lenient
rough | smooth
sharp | blunt dull
raw uncooked | cooked
fresh | stale rotten
natural organic | artificial synthetic
near close nearby | far distant
positive | negative
"""

# Which one of several, and how much of it.
_RANKS = """
more | less fewer
most | least fewest
better best | worse worst
first | last
first | final
minimum min lowest smallest least | maximum max highest largest most
minimal | maximal
greater greatest | lesser smaller smallest least
earlier | later
earliest | latest
maximum | minimum
top | bottom
ascending | descending
"""


@cache
def sides() -> Mapping[str, tuple[Side, ...]]:
    """Stem, or the two stems of a verb and its particle with a space between -> every side it stands on."""
    table: dict[str, list[Side]] = defaultdict(list)
    for axis, (sort, line) in enumerate(_lines()):
        parted = line.split("|")
        for side, entries in enumerate(parted):
            for entry in entries.split():
                table[_key(entry)].append(Side(axis, side, sort, is_pair=len(parted) == 2))
    for axis, pair in enumerate(_from_wordnet(), start=len(list(_lines()))):
        for side, key in enumerate(pair.split("-")):
            table[key].append(Side(axis, side, Sort.PLAIN, is_pair=True))
    return {key: tuple(found) for key, found in table.items()}


def _from_wordnet() -> Iterator[str]:
    """Two stems with a hyphen between."""
    text = resources.files("semcache.cache").joinpath("words_opposites.txt").read_text(encoding="utf-8")
    yield from (pair for line in text.splitlines() if not line.startswith("#") for pair in line.split())


@cache
def particles() -> Mapping[str, frozenset[str]]:
    """Stem of a verb -> the stems of the particles that make another verb of it."""
    verbs: dict[str, set[str]] = defaultdict(set)
    for verb, _, particle in (key.partition(" ") for key in sides()):
        if particle:
            verbs[verb].add(particle)
    return {verb: frozenset(found) for verb, found in verbs.items()}


@cache
def degrees() -> Mapping[str, str]:
    """A comparative or superlative, "bigger" or "easiest" -> the stem of its word, "big" or "easi"."""
    found = {"further": stem("far"), "farther": stem("far"), "furthest": stem("far"), "farthest": stem("far")}
    words = (word for sort, line in _lines() if sort is Sort.GRADED for word in line.replace("|", " ").split())
    for word in words:
        root = word.removesuffix("y").removesuffix("e") + "i" if word[-1] == "y" else word.removesuffix("e")
        for ending in ("er", "est"):
            found[root + ending] = stem(word)
            found[root + root[-1] + ending] = stem(word)  # bigger, hottest; what is no word does no harm
    return found


def _lines() -> Iterator[tuple[Sort, str]]:
    for sort, table in _TABLES:
        yield from ((sort, line) for line in table.splitlines() if line)


_TABLES = (
    (Sort.PLAIN, _ACTIONS),
    (Sort.PLAIN, _KINDS),
    (Sort.PLACED, _PLACES),
    (Sort.GRADED, _GRADED),
    (Sort.RANK, _RANKS),
)


def _key(entry: str) -> str:
    return " ".join(stem(word) for word in entry.split("_"))
