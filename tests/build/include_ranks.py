"""Fails on any include in src that does not go from a room to one of lower rank.

The ranks are those of the table in src/README.md. Files of a room may include their own room; public
headers (zipcache/...) are open to all rooms, since they hold the types that the rooms share.
"""
import pathlib
import re
import sys
import tempfile

ROW = re.compile(r"^\|\s*`?(\w+)`?\s*\|\s*(\d+)\s*\|")
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def read_ranks(page):
    """The rooms and their ranks, from the table's rows."""
    ranks = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        row = ROW.match(line)
        if row:
            ranks[row.group(1)] = int(row.group(2))
    return ranks


def faults_of(source, room, text, ranks):
    """One line for each include of `text` that breaks the order."""
    for path in INCLUDE.findall(text):
        target = path.split("/")[0]
        if target in (room, "zipcache"):
            continue
        if "/" not in path:
            yield f"{source}: includes {path}; write the path from src/, as in {room}/{path}"
        elif target not in ranks:
            yield f"{source}: includes {path}, and {target} is no room of src/README.md"
        elif ranks[target] >= ranks[room]:
            yield (f"{source}: room {room} (rank {ranks[room]}) includes {path} "
                   f"(rank {ranks[target]}); includes go to lower ranks only")


def check(src):
    """All faults of the tree below `src`."""
    ranks = read_ranks(src / "README.md")
    faults = [] if ranks else [f"{src}/README.md: found no table of rooms and ranks"]
    for folder in sorted(p for p in src.iterdir() if p.is_dir()):
        if folder.name not in ranks:
            faults.append(f"{folder}: is no room of src/README.md")
            continue
        for source in sorted(folder.rglob("*")):
            if source.suffix in (".cpp", ".hpp", ".h", ".inc", ".c", ".cu", ".cuh"):
                text = source.read_text(encoding="utf-8")
                faults += faults_of(source.relative_to(src), folder.name, text, ranks)
    missing = [room for room in ranks if not (src / room).is_dir()]
    return faults + [f"src/README.md: room {room} has no folder" for room in missing]


def self_test():
    """A small tree with one fault of each kind, and one include of each allowed kind."""
    cases = {
        "low/a.hpp": ('#include "low/b.hpp"\n#include "zipcache/status.hpp"\n', 0),
        "high/a.cpp": ('#include "low/a.hpp"\n#include <vector>\n', 0),
        "low/up.cpp": ('#include "high/a.hpp"\n', 1),
        "high/across.cpp": ('  #  include "beside/a.hpp"\n', 1),
        "high/bare.cpp": ('#include "a.hpp"\n', 1),
        "high/nowhere.cpp": ('#include "elsewhere/a.hpp"\n', 1),
        "beside/a.hpp": ("// #include nothing\n", 0),
        "unknown/a.hpp": ("", 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        src = pathlib.Path(folder)
        (src / "README.md").write_text(
            "| room | rank |\n|---|---|\n| low | 0 |\n| `high` | 1 |\n| beside | 1 |\n| gone | 2 |\n",
            encoding="utf-8")
        for name, (text, _) in cases.items():
            (src / name).parent.mkdir(exist_ok=True)
            (src / name).write_text(text, encoding="utf-8")
        faults = check(src)
    wrong = [name for name, (_, expected) in cases.items()
             if sum(fault.startswith((name, str(src / "unknown")) if "unknown" in name else name)
                    for fault in faults) != expected]
    if sum("gone" in fault for fault in faults) != 1:
        wrong.append("a room without a folder")
    for name in wrong:
        print(f"self-test: {name} was judged wrongly; faults found: {faults}")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    faults = check(pathlib.Path(sys.argv[1]))
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
