#!/usr/bin/env python3
"""Makes code.txt, chat.txt and tools.txt: texts of our own for the measurements, all without a licence of others.

    python3 data/text/make.py             writes chat.txt and tools.txt, the same bytes every time
    python3 data/text/make.py --code      writes code.txt too, from the sources as they are now

Sentences and values are drawn with a fixed seed from the lists below. Needs the standard library only.
"""

import argparse
import json
import pathlib
import random

FOLDER = pathlib.Path(__file__).resolve().parent
SEED = 20261124
LENGTH = 64000  # characters; at least 8,192 tokens of SmolLM2 with room to spare
SOURCES = ("cache/log.cpp", "cache/pack.cpp", "policy/fields.cpp", "policy/allocate.cpp", "saliency/probes.cpp",
           "codec/quantize.cpp", "transform/hadamard.cpp", "attend/scores.cpp", "base/arena.cpp", "cache/footprint.cpp",
           "policy/json.cpp", "policy/policy.cpp", "attend/mask.cpp", "base/parallel.cpp")


def pick(rng, options):
    # random() is the one method whose numbers are promised not to change between versions of Python.
    return options[int(rng.random() * len(options))]


# ---------------------------------------------------------------- chat

THINGS = {
    "sourdough bread": ["the dough", "the starter", "the crust", "the oven", "the flour", "the basket"],
    "a bicycle with a loose chain": ["the chain", "the rear derailleur", "the jockey wheel", "the cassette", "the cable"],
    "a tomato bed": ["the soil", "the lowest leaf", "the compost", "the string", "the drip line", "the youngest plant"],
    "a slow laptop": ["the disk", "the browser", "the fan", "the memory", "the search service", "the update"],
    "an old film camera": ["the shutter", "the light meter", "the film door seal", "the lens", "the winding lever"],
    "a draughty window": ["the frame", "the sealing strip", "the glazing putty", "the hinge", "the sill"],
    "a first half marathon": ["the long run", "the left shoe", "the warm-up", "the pace", "the recovery day", "breakfast"],
    "a leaking tap": ["the washer", "the stop valve", "the cartridge", "the spindle", "the packing nut"],
    "a small aquarium": ["the filter", "the water lettuce", "the water change", "the heater", "the gravel", "the nitrite test"],
    "a school play": ["the curtain", "the lighting plan", "the script", "the rehearsal", "the main costume", "the prompter"],
    "a hiking trip in early spring": ["the map", "the rain jacket", "the river crossing", "the stove", "the second hut"],
    "a spreadsheet of household costs": ["the pivot table", "the date column", "the monthly sum", "the chart"],
}
OPENINGS = ["I need some help with {topic}.", "Can we talk about {topic}?", "I have a question about {topic}.",
            "Yesterday I started on {topic} and it did not go well.", "What would you do first about {topic}?",
            "My neighbour asked me about {topic}, and I had no answer."]
QUESTIONS = ["How do I know whether {part} is the problem?", "Should I look at {part} or at {other} first?",
             "{Part} seems fine, but {other} is not what it was {time}. What now?", "Is {number} too much for {part}?",
             "How long does {part} usually take?", "What happens if I simply leave {part} alone until {day}?",
             "I tried what you said with {part}. It got {change}, but only {amount}.",
             "Do I need a special tool for {part}?", "Would you still start with {other} if money were no object?",
             "Someone told me that {part} only matters when {other} is new. Is that true?"]
CLAIMS = ["Most of the time {part} is blamed for what {other} does.",
          "Begin with {part}, because it costs nothing to check and rules out half of the causes.",
          "Give it {number} {unit} and compare it with a photograph taken {time}.",
          "If {part} gets {change} after that, {other} was the reason; if not, you have lost very little.",
          "I would not touch {other} before {day}, since two changes at once tell you nothing.",
          "{Part} should move freely and make no sound; a dull click points to {other}.",
          "There is one exception: when it is cold, {part} behaves as if it were worn, and it is not.",
          "Write down what you see each time, in particular {amount} and the time of day.",
          "A rule of thumb says {number} {unit}, but yours may need {amount} more.",
          "Please switch off everything around {other} first, and wait {number} minutes.",
          "That sounds right, and it also explains why {other} looked {change} {time}.",
          "No, that is a common mistake: {part} does not age that quickly."]
ENDINGS = ["Does that match what you see?", "Tell me what {part} does then, and we go on from there.",
           "Shall I write the steps down as a list?", "If it is still the same on {day}, {other} is next.", "", "", ""]
STEPS = ["Take a look at {part} in daylight.", "Clean {part} with a dry cloth.", "Measure {other} twice.",
         "Loosen {other} by a quarter turn.", "Wait {number} minutes.", "Compare {part} with {other}.",
         "Put everything back and note {amount}.", "Repeat it on {day}."]
THANKS = ["Thank you, that helped.", "Good, I will try that on {day}.", "Understood. One more thing:",
          "That worked better than I expected."]


def fill(rng, sentence, topic):
    part, other = pick(rng, THINGS[topic]), pick(rng, THINGS[topic])
    words = {"topic": topic, "part": part, "other": other, "Part": part[0].upper() + part[1:],
             "number": 2 + int(rng.random() * 58), "day": pick(rng, ["Monday", "Thursday", "Saturday", "the weekend"]),
             "unit": pick(rng, ["minutes", "days", "millimetres", "grams", "percent"]),
             "time": pick(rng, ["last week", "in autumn", "two days ago", "before the move", "in the first month"]),
             "change": pick(rng, ["warmer", "quieter", "softer", "worse", "a little better", "darker"]),
             "amount": pick(rng, ["a few percent", "about a third", "hardly anything", "twice as much", "one size"])}
    return sentence.format(**words)


def answer(rng, topic):
    said = [fill(rng, pick(rng, CLAIMS), topic) for _ in range(2 + int(rng.random() * 4))]
    if rng.random() < 0.3:
        steps = [fill(rng, pick(rng, STEPS), topic) for _ in range(3 + int(rng.random() * 3))]
        said.append("\n" + "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1)) + "\n")
    said.append(fill(rng, pick(rng, ENDINGS), topic))
    return " ".join(part for part in said if part).replace(" \n", "\n").strip()


def chat(rng):
    topic = pick(rng, list(THINGS))
    turns = ["User: " + fill(rng, pick(rng, OPENINGS) + " " + pick(rng, QUESTIONS), topic)]
    for _ in range(2 + int(rng.random() * 4)):
        turns += ["Assistant: " + answer(rng, topic), "User: " + fill(rng, pick(rng, QUESTIONS), topic)]
    turns += ["Assistant: " + answer(rng, topic), "User: " + fill(rng, pick(rng, THANKS), topic)]
    return "\n\n".join(turns) + "\n\n---\n\n"


# ---------------------------------------------------------------- tool calls

CITIES = "Oslo Lagos Quito Kyoto Porto Perth Tampere Bergen Izmir Cusco Leeds Graz Nantes Bilbao Turku Hobart".split()
PRODUCTS = ["desk lamp", "kettle", "rain jacket", "notebook", "bicycle pump", "garden hose", "headphones", "paint brush"]
TOOLS = {
    "get_weather": "current weather and forecast of a city",
    "search_orders": "orders of a customer, newest first",
    "create_event": "an entry in the calendar",
    "convert_units": "a value in another unit",
    "run_query": "rows of a table of the warehouse",
}


def number(rng, low, high, digits=0):
    value = low + rng.random() * (high - low)
    return round(value, digits) if digits else int(value)


def token(rng, length):
    return "".join(pick(rng, "0123456789abcdef") for _ in range(length))


def date(rng):
    return f"2026-{1 + int(rng.random() * 12):02}-{1 + int(rng.random() * 28):02}"


def weather(rng):
    city, days = pick(rng, CITIES), number(rng, 1, 5)
    result = {"city": city, "unit": "celsius", "days": [
        {"date": date(rng), "low": number(rng, -8, 14, 1), "high": number(rng, 15, 34, 1),
         "rain_mm": number(rng, 0, 20, 1), "sky": pick(rng, ["clear", "cloudy", "showers", "fog", "snow"])}
        for _ in range(days)]}
    return (f"What will the weather be in {city} for the next {days} days?", "get_weather",
            {"city": city, "days": days, "unit": "celsius"}, result,
            f"In {city} the first day reaches {result['days'][0]['high']} degrees with {result['days'][0]['sky']} skies.")


def orders(rng):
    customer, limit = f"C-{number(rng, 10000, 99999)}", number(rng, 1, 5)
    result = {"customer": customer, "orders": [
        {"id": f"ORD-{token(rng, 8)}", "date": date(rng), "total": number(rng, 5, 300, 2), "currency": "EUR",
         "items": [{"sku": f"{token(rng, 4)}-{number(rng, 100, 999)}", "name": pick(rng, PRODUCTS),
                    "count": number(rng, 1, 6)} for _ in range(number(rng, 1, 4))],
         "status": pick(rng, ["paid", "shipped", "returned", "open"])} for _ in range(limit)]}
    first = result["orders"][0]
    return (f"Show me the last {limit} orders of customer {customer}.", "search_orders",
            {"customer_id": customer, "limit": limit, "sort": "date_desc"}, result,
            f"The newest order {first['id']} of {first['date']} is {first['status']} and came to {first['total']} EUR.")


def event(rng):
    day, hour = date(rng), number(rng, 8, 18)
    title = pick(rng, ["Budget review", "Dentist", "Planning of the release", "Bicycle repair", "Parents' evening"])
    result = {"event_id": f"evt_{token(rng, 10)}", "status": "confirmed", "conflicts": []}
    if rng.random() < 0.3:
        result = {"error": {"code": 409, "message": "the time is taken", "conflict": f"evt_{token(rng, 10)}"}}
    said = "It is in the calendar." if "event_id" in result else "That time is already taken; shall I look for another?"
    return (f"Please put '{title}' into my calendar on {day} at {hour}.", "create_event",
            {"title": title, "start": f"{day}T{hour:02}:00:00Z", "minutes": pick(rng, [15, 30, 45, 60, 90]),
             "reminders": [10, 60], "private": rng.random() < 0.5}, result, said)


def convert(rng):
    source, target, factor = pick(rng, [("mi", "km", 1.609344), ("lb", "kg", 0.45359237), ("ft", "m", 0.3048),
                                        ("gal", "l", 3.785411784)])
    value = number(rng, 1, 500, 1)
    return (f"How many {target} are {value} {source}?", "convert_units", {"value": value, "from": source, "to": target},
            {"value": round(value * factor, 3), "unit": target}, f"{value} {source} are {value * factor:.3f} {target}.")


def query(rng):
    region = pick(rng, ["north", "south", "east", "west"])
    rows = [[date(rng), region, number(rng, 1, 900), number(rng, 1, 9000, 2)] for _ in range(number(rng, 2, 7))]
    return (f"What did region {region} sell?", "run_query",
            {"sql": f"SELECT day, region, units, revenue FROM sales WHERE region = '{region}' LIMIT {len(rows)}",
             "timeout_ms": pick(rng, [500, 1000, 5000])},
            {"columns": ["day", "region", "units", "revenue"], "rows": rows, "truncated": False},
            f"Region {region} sold {sum(row[2] for row in rows)} units in {len(rows)} entries.")


def tool_talk(rng):
    asked, name, arguments, result, said = pick(rng, [weather, orders, event, convert, query])(rng)
    call = f"call_{token(rng, 12)}"
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": call, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}]},
        {"role": "tool", "tool_call_id": call, "content": json.dumps(result)},
        {"role": "assistant", "content": said}]
    return "".join(json.dumps(message) + "\n" for message in messages)


def tools(rng):
    yield json.dumps({"role": "system", "content": "Answer with the tools that you have.",
                      "tools": [{"name": name, "description": text} for name, text in TOOLS.items()]}) + "\n"
    while True:
        yield tool_talk(rng)


# ---------------------------------------------------------------- files

def cut(parts):
    """Parts until they have LENGTH characters."""
    text = ""
    for part in parts:
        text += part
        if len(text) >= LENGTH:
            return text
    raise SystemExit(f"found {len(text)} characters, expected {LENGTH}; name more sources")


def code_parts():
    for name in SOURCES:
        yield (FOLDER.parents[1] / "src" / name).read_text() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", action="store_true", help="write code.txt too, from the sources as they are now")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER, help="where the texts go")
    options = parser.parse_args()
    talks = random.Random(SEED)
    (options.folder / "chat.txt").write_text(cut(chat(talks) for _ in iter(int, 1)))
    (options.folder / "tools.txt").write_text(cut(tools(random.Random(SEED))))
    if options.code:
        (options.folder / "code.txt").write_text(cut(code_parts()))


if __name__ == "__main__":
    main()
