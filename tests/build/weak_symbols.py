"""Fails if an object built for one instruction set defines a weak symbol.

The linker keeps one copy of a weak symbol (an inline function, a template) for the whole program. Were it
the copy compiled for a newer machine, an older one would stop with an illegal instruction far from here.
"""
import pathlib
import subprocess
import sys

WEAK = "WwVvu"  # nm's letters for weak and unique symbols; lower-case w and v are undefined weak ones


def symbols(nm, path):
    """(letter, name) of every symbol of an object file."""
    text = subprocess.run([nm, "--format=posix", path], check=True, capture_output=True, text=True).stdout
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 2:
            yield fields[1], fields[0]


def main():
    nm, objects = sys.argv[1], sys.argv[2:]
    stems = {pathlib.Path(path).name.split(".")[0] for path in objects}
    faults = []
    for needed in ("kernels_plain", "kernels_avx2", "kernels_avxvnni", "kernels_avx512"):
        if needed not in stems:
            faults.append(f"object of {needed} was not given; found {sorted(stems)}")
    for path in objects:
        found = list(symbols(nm, path))
        if not any(letter in "DdRrB" and "kKernels" in name for letter, name in found):
            faults.append(f"{path}: defines no kernel table, so it is not the object to check")
        faults += [f"{path}: weak symbol {name}" for letter, name in found if letter in WEAK]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
