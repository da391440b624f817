#!/usr/bin/env python3
"""Makes the small data sets of this folder, all of our own, in the formats of the public ones.

    python3 eval/tasks/make.py [--folder DIR]

writes gsm8k.jsonl, gsm8k_examples.jsonl, humaneval.jsonl, longbench.jsonl and tools.jsonl, the same bytes every time,
and checks every solution on the way: numbers are computed twice, programs are run against their tests, answers stand in
their texts, calls name tools and arguments that are there. Needs the standard library only.
"""

import argparse
import json
import pathlib
import random
import re

import run_humaneval

SEED = 20261125


def pick(rng, options):
    # random() is the one method whose numbers are promised not to change between versions of Python.
    return options[int(rng.random() * len(options))]


def number(rng, low, high):
    return low + int(rng.random() * (high - low + 1))


# ---------------------------------------------------------------- word problems

NAMES = "Mara Tobias Ines Jonas Leila Pavel Greta Samir Nora Viktor Ayla Bruno".split()
GOODS = ["pears", "candles", "notebooks", "seed bags", "postcards", "jars of honey", "wool socks", "door handles"]


def shop(rng):
    name, goods = pick(rng, NAMES), pick(rng, GOODS)
    boxes, each, sold = number(rng, 3, 9), number(rng, 6, 15), number(rng, 5, 17)
    left = boxes * each - sold
    return (f"{name} buys {boxes} boxes with {each} {goods} each and sells {sold} of them. How many {goods} are left?",
            [f"{boxes} boxes hold {boxes} * {each} = {boxes * each} {goods}.",
             f"After {sold} are sold, {boxes * each} - {sold} = {left} are left."], left,
            f"{boxes}*{each}-{sold}")


def walk(rng):
    name = pick(rng, NAMES)
    days, metres, extra = number(rng, 4, 9), number(rng, 2, 9) * 100, number(rng, 2, 9) * 50
    total = days * metres + extra
    return (f"{name} walks {metres} metres on each of {days} days, and {extra} metres more on the last day. "
            "How many metres is that in all?",
            [f"{days} days are {days} * {metres} = {days * metres} metres.",
             f"With the extra way it is {days * metres} + {extra} = {total} metres."], total, f"{days}*{metres}+{extra}")


def wages(rng):
    name = pick(rng, NAMES)
    hours, pay, bus = number(rng, 3, 8), number(rng, 11, 25), number(rng, 4, 9)
    left = hours * pay - bus
    return (f"{name} works {hours} hours for ${pay} an hour and pays ${bus} for the bus. How many dollars remain?",
            [f"The work earns {hours} * {pay} = {hours * pay} dollars.",
             f"The bus takes {bus}, so {hours * pay} - {bus} = {left} dollars remain."], left, f"{hours}*{pay}-{bus}")


def sharing(rng):
    friends, each, rest = number(rng, 3, 8), number(rng, 4, 12), number(rng, 1, 2)
    total, goods = friends * each + rest, pick(rng, GOODS)
    return (f"{friends} friends share {total} {goods}; {rest} must be kept for the teacher. How many does each friend get?",
            [f"Without the teacher's there are {total} - {rest} = {total - rest} {goods}.",
             f"Each friend gets {total - rest} / {friends} = {each}."], each, f"({total}-{rest})//{friends}")


def reading(rng):
    name = pick(rng, NAMES)
    pages, done, days = number(rng, 4, 9) * 30, number(rng, 1, 3) * 30, 3
    per_day = (pages - done) // days
    return (f"A book has {pages} pages. {name} has read {done} and wants to read the rest in {days} days, as many pages "
            "each day. How many pages a day are that?",
            [f"There are {pages} - {done} = {pages - done} pages left.",
             f"A day has {pages - done} / {days} = {per_day} pages."], per_day, f"({pages}-{done})//{days}")


def water(rng):
    litres, minutes, leak = number(rng, 5, 14), number(rng, 6, 15), number(rng, 1, 3)
    total = (litres - leak) * minutes
    return (f"A tap fills a tank with {litres} litres a minute while {leak} litres a minute leak out. How many litres are "
            f"in the tank after {minutes} minutes?",
            [f"Each minute the tank gains {litres} - {leak} = {litres - leak} litres.",
             f"After {minutes} minutes it holds {litres - leak} * {minutes} = {total} litres."], total,
            f"({litres}-{leak})*{minutes}")


PROBLEMS = [shop, walk, wages, sharing, reading, water]


def word_problems(rng, count):
    seen = set()
    while len(seen) < count:
        question, steps, result, formula = PROBLEMS[len(seen) % len(PROBLEMS)](rng)
        assert result > 0 and eval(formula) == result, formula
        for left, right in re.findall(r"(\d+ [*+/-] \d+) = (\d+)", " ".join(steps)):
            assert eval(left) == int(right), left
        if question not in seen:
            seen.add(question)
            yield {"question": question, "answer": "\n".join(steps) + f"\n#### {result}"}


# ---------------------------------------------------------------- programs

# Name, arguments, description, example, body, pairs of arguments and result.
PROGRAMS = [
    ("double_all", "numbers", "Return a list with every number doubled.", "double_all([1, 2])", "[2, 4]",
     ["return [2 * n for n in numbers]"], [(([1, 2],), [2, 4]), (([],), []), (([-3, 0.5],), [-6, 1.0])]),
    ("count_vowels", "text", "Return how many of the letters a, e, i, o and u are in text, large or small.",
     "count_vowels('Apple')", "2", ["return sum(1 for letter in text.lower() if letter in 'aeiou')"],
     [(("Apple",), 2), (("",), 0), (("rhythm",), 0), (("AEIOU",), 5)]),
    ("largest_gap", "numbers", "Return the largest difference of two neighbours in the list, 0 for fewer than two numbers.",
     "largest_gap([1, 5, 4])", "4", ["return max((abs(a - b) for a, b in zip(numbers, numbers[1:])), default=0)"],
     [(([1, 5, 4],), 4), (([7],), 0), (([3, -3],), 6)]),
    ("reverse_words", "text", "Return the words of text in reverse order, with one blank between them.",
     "reverse_words('red green')", "'green red'", ["return ' '.join(reversed(text.split()))"],
     [(("red green",), "green red"), (("one",), "one"), ((" a  b ",), "b a")]),
    ("is_sorted", "numbers", "Return True if no number is smaller than the one before it.", "is_sorted([1, 1, 2])", "True",
     ["return all(a <= b for a, b in zip(numbers, numbers[1:]))"],
     [(([1, 1, 2],), True), (([2, 1],), False), (([],), True)]),
    ("digit_sum", "number", "Return the sum of the digits of a whole number, which may be negative.", "digit_sum(-123)", "6",
     ["return sum(int(digit) for digit in str(abs(number)))"], [((-123,), 6), ((0,), 0), ((999,), 27)]),
    ("first_repeated", "items", "Return the first item that stands in the list a second time, None if there is none.",
     "first_repeated([3, 1, 3])", "3", ["seen = set()", "for item in items:", "    if item in seen:", "        return item",
                                        "    seen.add(item)", "return None"],
     [(([3, 1, 3],), 3), (([1, 2],), None), ((["a", "b", "b", "a"],), "b")]),
    ("clip", "value, low, high", "Return value, or the nearer of low and high if it lies outside of them.", "clip(7, 0, 5)", "5",
     ["return max(low, min(value, high))"], [((7, 0, 5), 5), ((-1, 0, 5), 0), ((3, 0, 5), 3)]),
    ("even_numbers", "limit", "Return the even numbers from 0 up to limit, limit included if it is even.", "even_numbers(5)",
     "[0, 2, 4]", ["return list(range(0, limit + 1, 2))"], [((5,), [0, 2, 4]), ((0,), [0]), ((6,), [0, 2, 4, 6])]),
    ("initials", "name", "Return the first letters of all words of a name as capitals.", "initials('ada lovelace')", "'AL'",
     ["return ''.join(word[0].upper() for word in name.split())"],
     [(("ada lovelace",), "AL"), (("",), ""), (("x",), "X")]),
    ("merge_counts", "a, b", "Return a dictionary with the sums of the counts of two dictionaries.",
     "merge_counts({'x': 1}, {'x': 2, 'y': 3})", "{'x': 3, 'y': 3}",
     ["total = dict(a)", "for key, count in b.items():", "    total[key] = total.get(key, 0) + count", "return total"],
     [(({"x": 1}, {"x": 2, "y": 3}), {"x": 3, "y": 3}), (({}, {}), {})]),
    ("remove_zeros", "numbers", "Return the numbers without those that are 0, in their order.", "remove_zeros([0, 3, 0, 1])",
     "[3, 1]", ["return [n for n in numbers if n != 0]"], [(([0, 3, 0, 1],), [3, 1]), (([0],), []), (([],), [])]),
]


def programming_problems():
    for place, (name, arguments, about, example, result, body, pairs) in enumerate(PROGRAMS):
        problem = {
            "task_id": f"ZipCache/{place}",
            "prompt": f'def {name}({arguments}):\n    """ {about}\n    >>> {example}\n    {result}\n    """\n',
            "entry_point": name,
            "canonical_solution": "".join(f"    {line}\n" for line in body),
            "test": "def check(candidate):\n" + "".join(
                f"    assert candidate({', '.join(map(repr, given))}) == {wanted!r}\n" for given, wanted in pairs),
        }
        for completion, passes in ((problem["canonical_solution"], True), ("    return 'nothing'\n", False)):
            done = run_humaneval.run({**problem, "completion": completion}, seconds=20, megabytes=512)
            assert done["passed"] == passes, (name, done)
        yield problem


# ---------------------------------------------------------------- questions about a long text

TOWNS = "Brackwald Ostermoor Finnholt Lindenau Kaltwasser Sarnhagen Eschenrode Wolmersdorf Tiefental Altenrain".split()
TRADES = ["clockmaker", "beekeeper", "bridge builder", "glass blower", "map maker", "ferryman", "organ builder", "weaver"]
FAMILIES = "Hartwig Brenner Solveig Marten Quist Oldenau Ferrand Tolmin Ravik Ellingsen Dorval Henning".split()
THINGS = ["a brass compass", "a blue rowing boat", "a hand press", "a walnut desk", "a tower clock", "a wooden organ",
          "a glass lamp", "a stone mill", "a silver flute", "a copper kettle"]
REMARKS = ["The winters there were long, and the road to the next town was closed for weeks.",
           "Nothing of that is written in the church books, but the neighbours told it in the same way.",
           "Letters took nine days then, and some of them never came.",
           "The market was held under the lime trees, between the well and the old wall.",
           "In the years after the flood many families moved away, and few of them came back.",
           "People said that the house was too large for so small a street.",
           "Much of the work was done at night, when the river was quiet.",
           "The apprentices slept under the roof and were woken by the bell."]


def biography(rng, name):
    facts = {"town": pick(rng, TOWNS), "trade": pick(rng, TRADES), "year": number(rng, 1780, 1899), "thing": pick(rng, THINGS)}
    sentences = [f"{name} was born in {facts['year']}, the youngest of {number(rng, 3, 9)} children.", pick(rng, REMARKS),
                 f"At the age of {number(rng, 14, 30)} {name} settled in {facts['town']}.", pick(rng, REMARKS),
                 f"There {name} worked as a {facts['trade']} for {number(rng, 12, 40)} years.", pick(rng, REMARKS),
                 f"What remains of {name} is {facts['thing']}, which can be seen in the town hall.", pick(rng, REMARKS)]
    return " ".join(sentences), facts


QUESTIONS = {"town": "In which town did {} settle?", "trade": "What did {} work as?", "year": "In which year was {} born?",
             "thing": "What remains of {}?"}


def long_questions(rng, count, people):
    for place in range(count):
        names = []
        while len(names) < people:
            name = f"{pick(rng, NAMES)} {pick(rng, FAMILIES)}"
            if name not in names:
                names.append(name)
        texts = [biography(rng, name) for name in names]
        who, what = int(rng.random() * people), list(QUESTIONS)[place % len(QUESTIONS)]
        wanted = str(texts[who][1][what])
        context = "\n\n".join(text for text, _ in texts)
        assert wanted in texts[who][0] and context.count(names[who] + " was born") == 1
        answers = [wanted] + ([wanted.split(" ", 1)[1]] if what == "thing" else [])
        yield {"input": QUESTIONS[what].format(names[who]), "context": context, "answers": answers,
               "length": len(context.split()), "dataset": "biographies", "language": "en", "all_classes": None,
               "_id": f"zipcache-{place}"}


# ---------------------------------------------------------------- tool calls

CITIES = "Oslo Lagos Quito Kyoto Porto Perth Tampere Bergen Izmir Cusco Leeds Graz".split()


def tool(name, about, **properties):
    return {"name": name, "description": about,
            "parameters": {"type": "object", "properties": properties, "required": list(properties),
                           "additionalProperties": False}}


def text(about):
    return {"type": "string", "description": about}


TOOLS = [
    tool("get_weather", "forecast of a city", city=text("name of the city"),
         days={"type": "integer", "minimum": 1, "maximum": 14}, unit={"type": "string", "enum": ["celsius", "fahrenheit"]}),
    tool("create_event", "an entry in the calendar", title=text("what it is"), date=text("as 2026-01-31"),
         minutes={"type": "integer", "minimum": 5}),
    tool("convert", "a value in another unit", value={"type": "number"}, source=text("unit of the value"),
         target=text("wanted unit")),
    tool("set_light", "a lamp of the house", room=text("where it is"), on={"type": "boolean"},
         percent={"type": "integer", "minimum": 0, "maximum": 100}),
]
DAYS = ["2026-03-14", "2026-05-02", "2026-07-29", "2026-09-08", "2026-11-21"]


def weather(rng):
    city, days, unit = pick(rng, CITIES), number(rng, 1, 14), pick(rng, ["celsius", "fahrenheit"])
    return (f"What will the weather be in {city} for the next {days} days, in {unit}?", "get_weather",
            {"city": city, "days": days, "unit": unit})


def event(rng):
    title, date, minutes = pick(rng, ["Dentist", "Budget review", "Choir", "Team lunch"]), pick(rng, DAYS), number(rng, 1, 12) * 10
    return (f"Put '{title}' into my calendar on {date}, for {minutes} minutes.", "create_event",
            {"title": title, "date": date, "minutes": minutes})


def conversion(rng):
    source, target = pick(rng, [("miles", "kilometres"), ("pounds", "kilograms"), ("litres", "gallons")])
    value = number(rng, 3, 480)
    return (f"How many {target} are {value} {source}?", "convert", {"value": value, "source": source, "target": target})


def light(rng):
    room, percent = pick(rng, ["kitchen", "hall", "cellar", "nursery"]), number(rng, 1, 20) * 5
    return (f"Switch the light in the {room} on, at {percent} percent.", "set_light", {"room": room, "on": True, "percent": percent})


REQUESTS = [weather, event, conversion, light]


def call(request, name, arguments):
    schema = next(known for known in TOOLS if known["name"] == name)["parameters"]
    assert set(arguments) == set(schema["required"]), name
    return {"request": request, "call": {"name": name, "arguments": arguments}}


def tool_requests(rng, count):
    examples = [call(*make(rng)) for make in REQUESTS]
    for place in range(count):
        yield {"tools": TOOLS, "examples": examples, **call(*REQUESTS[place % len(REQUESTS)](rng))}


# ---------------------------------------------------------------- files

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent)
    folder = parser.parse_args().folder

    def write(name, rows):
        # Each file has numbers of its own, so that one can change alone.
        rows = list(rows(random.Random(f"{SEED}/{name}")))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("gsm8k_examples", lambda rng: word_problems(rng, 8))
    write("gsm8k", lambda rng: word_problems(rng, 30))
    write("humaneval", lambda rng: programming_problems())
    write("longbench", lambda rng: long_questions(rng, 20, 8))
    write("tools", lambda rng: tool_requests(rng, 24))


if __name__ == "__main__":
    main()
