"""The rows of the niche recipe: a sentence as somebody would type it, and the JSON it stands for. Copy this file and write your own sentences.

    "Put lunch with Rosalind Amadi in the diary for the 3rd of June, half past twelve."
    {"kind":"event","what":"lunch","who":"Rosalind Amadi","on":"06-03","at":"12:30"}

Three kinds: calendar entries, orders, conversions of units. Sentences are templates filled with names, goods and values. Of each list a fifth is kept for
"test" alone, and so are a fifth of all dates, of all times and of all numbers: what is tested was never seen, only its way of being said.
"""
from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pellucid

Split = Literal["train", "test"]
Fact = tuple[str, Any]  # as the sentence says it, as the JSON has it
KEPT = 5  # one in so many of each list is for the test
WHICH = 4  # of the fifths: what was wrong in answers to the tests of 0, 1 and 3 was read while this recipe was made; 2 has no number of its own up to 20

_LISTS = dict(part.partition(":")[::2] for part in Path(__file__).with_name("niche_words.txt").read_text("utf-8").split("\n\n")[1:])
WORDS = {name.strip(): words.split() for name, words in _LISTS.items()}
FIRST, LAST, TOPIC, PLACE, KIND, GOODS = (WORDS[name] for name in ("first", "last", "topic", "place", "kind", "goods"))  # of these the test has its own
MEETING, VENUE, HOLDER, MONTHS, DAYS = (WORDS[name] for name in ("meeting", "venue", "holder", "months", "days"))
UNITS = {  # what the JSON says: the ways to say it
    "meter": ("meters", "metres", "m"), "kilometer": ("kilometers", "kilometres", "km"), "centimeter": ("centimeters", "centimetres", "cm"),
    "millimeter": ("millimeters", "millimetres", "mm"), "mile": ("miles", "mi"), "yard": ("yards", "yd"), "foot": ("feet", "ft"), "inch": ("inches", "in"),
    "kilogram": ("kilograms", "kilos", "kg"), "gram": ("grams", "g"), "pound": ("pounds", "lb", "lbs"), "ounce": ("ounces", "oz"), "ton": ("tons", "tonnes"),
    "stone": ("stones", "stone"), "liter": ("liters", "litres", "l"), "milliliter": ("milliliters", "millilitres", "ml"), "gallon": ("gallons", "gal"),
    "pint": ("pints", "pt"), "cup": ("cups",), "celsius": ("degrees Celsius", "Celsius", "°C"), "fahrenheit": ("degrees Fahrenheit", "Fahrenheit", "°F"),
    "hour": ("hours", "h"), "minute": ("minutes", "min"), "second": ("seconds", "s"), "day": ("days",), "week": ("weeks",)}
MEASURES = ("meter kilometer centimeter millimeter mile yard foot inch", "kilogram gram pound ounce ton stone", "liter milliliter gallon pint cup",
            "celsius fahrenheit", "hour minute second day week")
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "fifteen": 15,
           "twenty": 20, "thirty": 30, "fifty": 50, "a dozen": 12, "half a dozen": 6, "two dozen": 24}

EVENTS = (
    "Put {what} with {who} in the diary for {on} at {at}.",
    "{What} with {who} on {on} at {at}, please.",
    "Schedule {what} for {on}, {at}, at {place}.",
    "I am meeting {who} at {place} on {on} at {at} for {what}.",
    "Book {what} at {place} for {on}.",
    "Remind me of {what} on {on} at {at}.",
    "On {on} at {at} there is {what} at {place} with {who}.",
    "{who} wants {what} on {on} at {at}. Add it.",
    "Can you note down {what} on {on}? It begins at {at}.",
    "Add to my calendar: {what}, {on}, {at}, {place}.",
    "Please block {on} at {at} for {what} with {who}.",
    "{What} is moved to {on} at {at} and now takes place at {place}.",
    "Save the date: {on}, {what} at {place}. {who} is coming too.",
    "At {at} on {on} I have {what}.",
    "New entry for {on}: {what} ({who}, {at}).",
    "Let {who} know that {what} is on {on} at {at}.",
)
ORDERS = (
    "Order {items} for {who}.", "{who} needs {items} by {by}.", "Please send {items} to {who}.", "We are out of stock. Get {items} before {by}.",
    "I would like {items}, please.", "Could you deliver {items} to {place} by {by}?", "{items} for {who}, to be delivered to {place}.",
    "Reorder {items}; {who} will pick them up on {by}.", "Add {items} to the order of {who}.", "Buy {items} and have them brought to {place}.",
    "Can {who} get {items} until {by}?", "From the shop: {items}.", "Our customer {who} asks for {items}.", "Ship {items} to {who} at {place} by {by}.")
CONVERSIONS = (
    "How much is {value} {from} in {to}?",
    "Convert {value} {from} to {to}.",
    "{value} {from} in {to}",
    "What are {value} {from} when measured in {to}?",
    "I have {value} {from}. Give it to me in {to}.",
    "Express {value} {from} as {to}, please.",
    "Turn {value} {from} into {to}.",
    "The label says {value} {from}; I need {to}.",
    "How many {to} are {value} {from}?",
    "How many {to} make {value} {from}?",
    "In {to}, how much would {value} {from} be?",
    "{to} for {value} {from}, please",
)

_DAY = {"type": "string", "pattern": "^((0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])|" + "|".join(DAYS) + ")$"}
_TEXT = {"type": "string", "minLength": 1, "maxLength": 60}


def _object(kind: str, optional: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"const": kind}, **properties}, "additionalProperties": False,
            "required": ["kind", *(name for name in properties if name not in optional)]}


SCHEMA: dict[str, Any] = {"anyOf": [
    _object("event", ("who", "at", "where"), what=_TEXT, who=_TEXT, on=_DAY, at={"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}, where=_TEXT),
    _object("order", ("who", "where", "by"), who=_TEXT, where=_TEXT, by=_DAY, items={"type": "array", "minItems": 1, "maxItems": 3, "items": {
        "type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 999}, "of": _TEXT, "in": {"enum": HOLDER}},
        "required": ["n", "of"], "additionalProperties": False}}),
    _object("conversion", (), value={"type": "number", "minimum": 0, "maximum": 9999}, **{"from": {"enum": list(UNITS)}, "to": {"enum": list(UNITS)}})]}


def rows(split: Split, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n conversations of a sentence and its JSON, compact and with its keys in the order of SCHEMA. The same for the same seed, anywhere."""
    draw = random.Random(f"{split} {seed}")
    seen: set[str] = set()
    while len(seen) < n:
        sentence, facts = draw.choice((_event, _event, _order, _order, _conversion))(draw, split)
        if sentence not in seen:
            seen.add(sentence)
            answer = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
            yield {"messages": [{"role": "user", "content": sentence}, {"role": "assistant", "content": answer}]}


def _event(draw: random.Random, split: Split) -> tuple[str, Mapping[str, Any]]:
    what = _what(draw, split)
    said = f"the {what}" if draw.random() < 0.5 else f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
    facts = {"what": (said, what), "What": (what[0].upper() + what[1:], what), "who": _who(draw, split), "on": _on(draw, split), "at": _at(draw, split),
             "place": _place(draw, split)}
    return _filled(draw.choice(EVENTS), facts, {"kind": "event"}, {"what": "what", "What": "what", "who": "who", "on": "on", "at": "at", "place": "where"})


def _order(draw: random.Random, split: Split) -> tuple[str, Mapping[str, Any]]:
    items = [_item(draw, split) for _ in range(draw.choice((1, 1, 2, 2, 3)))]
    said = [said for said, _ in items]
    facts = {"items": (said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}", [item for _, item in items]), "who": _who(draw, split),
             "by": _on(draw, split), "place": _place(draw, split)}
    return _filled(draw.choice(ORDERS), facts, {"kind": "order"}, {"who": "who", "place": "where", "by": "by", "items": "items"})


def _conversion(draw: random.Random, split: Split) -> tuple[str, Mapping[str, Any]]:
    of, to = draw.sample(draw.choice(MEASURES[:-2]).split() if draw.random() < 0.75 else draw.choice(MEASURES[-2:]).split(), 2)
    value = _value(draw, split)
    facts = {"value": (str(value), value), "from": (draw.choice(UNITS[of]), of), "to": (draw.choice([way for way in UNITS[to] if len(way) > 2]), to)}
    return _filled(draw.choice(CONVERSIONS), facts, {"kind": "conversion"}, {"value": "value", "from": "from", "to": "to"})


def _filled(template: str, facts: Mapping[str, Fact], start: Mapping[str, Any], order: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
    """The sentence, and of the facts those that it tells, in the order of the schema."""
    sentence = template.format_map({name: said for name, (said, _) in facts.items()})
    told = {key: facts[name][1] for name, key in order.items() if f"{{{name}}}" in template}
    return sentence[0].upper() + sentence[1:] if not template.startswith("{value") else sentence, {**start, **told}


def _who(draw: random.Random, split: Split) -> Fact:
    way = draw.random()
    first = _pick(draw, FIRST, split) if split == "test" or draw.random() < 0.35 else _made_up(draw)
    last = _pick(draw, LAST, split) if split == "test" or draw.random() < 0.35 else _made_up(draw)
    name = first if way < 0.3 else f"{first} {last}" if way < 0.8 else f"{draw.choice(('Mr', 'Mrs', 'Ms', 'Dr'))} {last}"
    return name, name


def _what(draw: random.Random, split: Split) -> str:
    topic, meeting = _pick(draw, TOPIC, split) if split == "test" or draw.random() < 0.35 else _made_up(draw).lower(), draw.choice(MEETING)
    return f"{topic} {meeting}"


def _place(draw: random.Random, split: Split) -> Fact:
    name = _pick(draw, PLACE, split) if split == "test" or draw.random() < 0.35 else _made_up(draw)
    place = f"{name} {draw.choice(VENUE)}"
    if draw.random() < 0.2:
        place = f"{place} {_number(draw, split, 99)}"
    return place, place


def _item(draw: random.Random, split: Split) -> Fact:
    goods = _pick(draw, GOODS, split) if split == "test" or draw.random() < 0.35 else _made_up(draw).lower()
    if draw.random() < (0.5 if split == "test" else 0.75):  # what follows a word is copied by other pieces than what begins, and learned more slowly
        goods = f"{_pick(draw, KIND, split) if split == 'test' or draw.random() < 0.35 else _made_up(draw).lower()} {goods}"
    said, n = draw.choice(list(NUMBERS.items())) if draw.random() < 0.3 else (str(number := _number(draw, split, 250)), number)
    if draw.random() < 0.4:
        holder = draw.choice(HOLDER)
        return f"{said} {holder} of {goods}", {"n": n, "of": goods, "in": holder}
    return f"{said} {goods}", {"n": n, "of": goods}


def _on(draw: random.Random, split: Split) -> Fact:
    if draw.random() < 0.25:
        day = draw.choice(DAYS)
        return draw.choice((day, day, f"next {day}")), day
    month, day = _drawn(draw, split, lambda: (draw.randint(1, 12), draw.randint(1, 30 if draw.random() < 0.9 else 31)), "date")
    if (month, day) in ((2, 29), (2, 30), (2, 31), (4, 31), (6, 31), (9, 31), (11, 31)):
        return _on(draw, split)
    name, nth = MONTHS[month - 1], f"{day}{'th' if 10 < day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"
    ways = (f"{day} {name}", f"{name} {day}", f"the {nth} of {name}", f"{name} {nth}", f"{name[:3]} {day}", f"{day} {name[:3]}")
    return draw.choice(ways), f"{month:02}-{day:02}"


def _at(draw: random.Random, split: Split) -> Fact:
    hour, minute = _drawn(draw, split, lambda: (draw.randint(6, 22), draw.choice((0, 0, 0, 15, 30, 30, 45, *range(5, 60, 5)))), "time")
    half, twelve = "am" if hour < 12 else "pm", (hour - 1) % 12 + 1
    ways = [f"{hour}:{minute:02}", f"{hour}:{minute:02}", f"{twelve}:{minute:02} {half}"]
    if minute == 0:
        ways += [f"{twelve} {half}", f"{twelve}{half}"] + ["noon"] * (hour == 12)
    if minute in (15, 30):
        ways += [f"{'quarter' if minute == 15 else 'half'} past {twelve} {_part_of_day(hour)}"]
    if minute == 45:
        ways += [f"quarter to {hour % 12 + 1} {_part_of_day(hour)}"]
    return draw.choice(ways), f"{hour:02}:{minute:02}"


def _part_of_day(hour: int) -> str:
    return "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"


def _value(draw: random.Random, split: Split) -> float:
    whole = _number(draw, split, 20 if draw.random() < 0.4 else 2000)
    return whole + draw.randint(1, 9) / 10 if draw.random() < 0.3 else whole


def _number(draw: random.Random, split: Split, most: int) -> int:
    return _drawn(draw, split, lambda: draw.randint(2, most), "number")


def _drawn(draw: random.Random, split: Split, one: Callable[[], Any], name: str) -> Any:
    """The next that belongs to the split."""
    while _is_kept(f"{name} {(value := one())}") != (split == "test"):
        pass
    return value


def _pick(draw: random.Random, words: list[str], split: Split) -> str:
    return draw.choice(_of(tuple(words), split))


@cache
def _of(words: tuple[str, ...], split: Split) -> list[str]:
    return [word for word in words if _is_kept(word) == (split == "test")]


def _is_kept(text: str) -> bool:
    return zlib.crc32(text.lower().encode()) % KEPT == WHICH


def _made_up(draw: random.Random) -> str:
    """A word of one to three pieces of the shipped tokenizer: there are so many that copying is learned and no list, and of every piece."""
    word = "".join(draw.choice(_pieces()) for _ in range(draw.choice((1, 1, 2, 2, 3)))).lower()
    return _made_up(draw) if not 3 <= len(word) <= 14 or word.capitalize() in _NAMED else word.capitalize()


@cache
def _pieces() -> list[str]:
    """What its tokens spell, of those that are letters."""
    tokenizer = pellucid.load_tokenizer("shipped")
    spelled = (tokenizer.decode([i]).strip() for i in range(tokenizer.n_vocab))
    return sorted({piece for piece in spelled if piece.isascii() and piece.isalpha() and len(piece) > 1})


_NAMED = {word.capitalize() for word in (*FIRST, *LAST, *TOPIC, *PLACE, *KIND, *GOODS)}
