"""Every search text of list.json stands exactly once in its file, so that the list cannot rot."""
import collections
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIELDS = {"name", "file", "search", "replace", "tests"}
LEAST = 60


def faults(defects, text_of):
    """One line for everything that is wrong with the list; text_of(file) gives a source file."""
    for number, defect in enumerate(defects):
        if set(defect) != FIELDS:
            yield f"defect {number}: fields {sorted(defect)}, expected {sorted(FIELDS)}"
            continue
        found = text_of(defect["file"]).count(defect["search"])
        if found != 1:
            yield f"{defect['name']}: its text stands {found} times in {defect['file']}, expected once: change list.json with the source"
        if defect["search"] == defect["replace"]:
            yield f"{defect['name']}: replaces a text with itself"
    names = collections.Counter(defect.get("name") for defect in defects)
    yield from (f"{name}: {n} defects of this name" for name, n in names.items() if n > 1)
    if len(defects) < LEAST:
        yield f"{len(defects)} defects, expected {LEAST} or more"


def self_test():
    good = [dict(name=str(i), file="a", search="x", replace="y", tests="*") for i in range(LEAST)]
    assert not list(faults(good, lambda file: "x"))
    for text, defects in [("xx", good), ("", good), ("x", good[1:]), ("x", good + good[:1])]:
        assert list(faults(defects, lambda file, text=text: text)), (text, len(defects))
    assert list(faults([dict(good[0], replace="x")] + good[1:], lambda file: "x"))
    assert list(faults([{"name": "0"}] + good[1:], lambda file: "x"))


def main():
    self_test()
    defects = json.loads((ROOT / "tests/defects/list.json").read_text())
    found = list(faults(defects, lambda file: (ROOT / file).read_text()))
    print("\n".join(found) or f"{len(defects)} defects, each at one place")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
