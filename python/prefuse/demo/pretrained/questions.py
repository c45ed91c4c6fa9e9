"""Questions of our own, an answer to each, and a rule that anyone can check.

The rule: **one sentence of at most twelve words that names what was asked about**. The model knows nothing of it: asked
what a glacier is, it writes a paragraph.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

MOST_WORDS = 12

THINGS, TRADES, USES = "things", "trades", "uses"

_TEMPLATES = {
    THINGS: ("What is {}?", "Explain what {} is."),
    TRADES: ("What does {} do?", "Describe the work of {}."),
    USES: ("What is {} used for?", "Why do people need {}?"),
}
"""Ways to ask. No question about a use is trained on: it shows how far the form reaches."""

_THINGS = """
glacier: a slow river of ice; lighthouse: a tower whose light guides ships; violin: a small instrument with four strings
river: water that flows through land to the sea; volcano: a mountain that throws out molten rock
desert: a dry land where little grows; island: land with water on all sides; forest: a wide land full of trees
valley: low land between hills or mountains; waterfall: a river that drops over a cliff; cave: a hollow in rock
swamp: soft ground that is always wet; comet: a ball of ice that flies around the sun; moon: a body circling a planet
planet: a large body that circles a star; star: a hot ball of gas that shines; rainbow: an arc of colours in the sky
cloud: a mass of tiny water drops in the air; storm: bad weather with strong wind;
tide: the daily rise and fall of the sea
bridge: a road across water or a gap; tunnel: a passage under the ground; castle: a strong house of an old lord
windmill: a machine that wind turns; harbour: a place where ships are safe; dam: a wall that holds back a river
well: a deep hole that gives water; fence: a barrier around a field; ladder: a frame with steps to climb
hammer: a tool that drives nails; saw: a tool with teeth that cuts wood; anchor: a heavy hook that holds a ship
compass: a tool that shows north; clock: a machine that shows the time; candle: a stick of wax that burns with light
mirror: a glass that shows what stands before it; telescope: a tube that makes far things look near
microscope: a tool that makes tiny things visible; thermometer: a tool that measures heat;
umbrella: a cover against rain
bicycle: a vehicle with two wheels and pedals; train: a row of wagons on rails; sailboat: a boat that the wind moves
balloon: a bag that floats when filled with warm air; submarine: a ship that goes under water; wheel: a disc that turns
drum: an instrument that is struck; flute: a pipe that sounds when blown; piano: an instrument with black and white keys
trumpet: a brass instrument that is blown; guitar: an instrument with six strings; bell: a metal cup that rings
library: a place that lends books; museum: a house that shows old or fine things; market: a place where goods are sold
school: a place where children learn; hospital: a house where sick people are treated; bakery: a shop that makes bread
dictionary: a book that explains words; map: a drawing of a land; letter: a written message to someone
newspaper: a daily paper with news; poem: a short text in verse; diary: a book of daily notes
otter: a playful animal that lives by rivers; spider: a small animal with eight legs;
whale: the largest animal of the sea
penguin: a bird that swims and cannot fly; owl: a bird that hunts by night; fox: a clever wild relative of the dog
beaver: an animal that builds dams; camel: a desert animal with a hump; frog: a small animal that jumps and croaks
snail: a slow animal with a shell; bat: a mammal that flies at night; hedgehog: a small animal with spines
cactus: a plant that stores water in dry lands; oak: a large tree that bears acorns; mushroom: a fungus with a cap
tulip: a spring flower that grows from a bulb; lemon: a sour yellow fruit; carrot: an orange root that people eat
potato: a root that grows under the soil; cheese: a food made of milk; honey jar: a glass that holds honey
sandwich: bread with something between; pancake: a flat cake from a pan; soup bowl: a deep dish for soup
"""

_TRADES = """
baker: bakes bread and cakes; carpenter: builds things of wood; teacher: helps students learn;
farmer: grows food on land
nurse: cares for sick people; pilot: flies aircraft; sailor: works on a ship; miner: digs ore out of the ground
tailor: makes and mends clothes; butcher: cuts and sells meat; gardener: looks after plants;
plumber: repairs water pipes
painter: paints walls or pictures; judge: decides cases in court; librarian: keeps and lends books; chef: cooks meals
dentist: treats teeth; blacksmith: shapes hot iron; shepherd: looks after sheep; fisherman: catches fish
astronomer: studies stars and planets; electrician: repairs electric wires; firefighter: puts out fires
mechanic: repairs machines; translator: turns texts into another language; potter: makes pots of clay
"""

_USES = """
copper: electric wires; salt: seasoning food; wool: warm clothes; glass: windows and bottles; rubber: tyres
leather: shoes and bags; clay: pots and bricks; cotton: light clothes; paper: writing and printing; soap: washing
iron: tools and machines; gold: jewellery and coins; silk: fine clothes; wax: candles; rope: tying things
flour: baking bread; vinegar: pickling vegetables; chalk: writing on boards; cork: closing bottles; ink: writing
"""


class Question(NamedTuple):
    """A question, what an answer has to name, and an answer in the form that is asked for."""

    kind: str
    text: str
    topic: str
    answer: str


class Split(NamedTuple):
    """Questions by what they are for: to train on; of topics not trained on; of a kind not trained on."""

    training: list[Question]
    topics: list[Question]
    kinds: list[Question]


def questions(held_out: float) -> Split:
    """All questions; about a share `held_out` of the topics is kept from training, and one kind as a whole."""
    found = [*_things(), *_trades()]
    kept = {question.topic for question in found if zlib.crc32(question.topic.encode()) % 1000 < held_out * 1000}
    return Split(
        [question for question in found if question.topic not in kept],
        [question for question in found if question.topic in kept],
        _uses(),
    )


def follows_rule(answer: str, topic: str, complete: bool = True) -> bool:
    """Whether an answer is one sentence of at most `MOST_WORDS` words that names the topic.

    `complete` says that the model ended it: what was cut off is no sentence.
    """
    text = answer.strip()
    one = complete and "\n" not in text and len(re.findall(r"[.!?](?=\s|$)", text)) == 1 and text[-1:] in ".!?"
    return bool(one and len(text.split()) <= MOST_WORDS and topic.lower() in text.lower())


def _things() -> list[Question]:
    return [
        Question(THINGS, way.format(_a(name)), name, f"{_a(name).capitalize()} is {what}.")
        for name, what in _table(_THINGS)
        for way in _TEMPLATES[THINGS]
    ]


def _trades() -> list[Question]:
    return [
        Question(TRADES, way.format(_a(name)), name, f"{_a(name).capitalize()} {what}.")
        for name, what in _table(_TRADES)
        for way in _TEMPLATES[TRADES]
    ]


def _uses() -> list[Question]:
    return [
        Question(USES, way.format(name), name, f"{name.capitalize()} is used for {what}.")
        for name, what in _table(_USES)
        for way in _TEMPLATES[USES]
    ]


def _table(text: str) -> list[tuple[str, str]]:
    entries = [entry.strip() for line in text.splitlines() for entry in line.split(";") if entry.strip()]
    return [(name, what.strip()) for name, _, what in (entry.partition(":") for entry in entries)]


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeio' or name == 'umbrella' else 'a'} {name}"
