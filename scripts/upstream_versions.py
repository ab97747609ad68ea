"""What the kit knows of upstream's versions of the files that it replaces, and how a file differs from them.

A file is known by its hash, or by its interface if git vouches for it. To add a release to known_upstream.json:

    upstream_versions.py TARGET RELEASE
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

KNOWN = Path(__file__).resolve().with_name("known_upstream.json")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield (name, node) of every class, function, method, annotated class field and argparse flag."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name, node
            for item in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(item, ast.FunctionDef):
                    yield f"{node.name}.{item.name}", item
                elif isinstance(item, ast.AnnAssign):
                    yield f"{node.name}.{ast.unparse(item.target)}", item
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            for arg in node.args:
                if isinstance(arg, ast.Constant) and str(arg.value).startswith("--"):
                    yield arg.value, node


def describe(source: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return {name: parameter names} and {name: hash of its own lines less blanks and comments} of a source file."""
    lines = source.split("\n")
    owner = ["module level"] * len(lines)
    interface, code = {}, {}
    for name, node in definitions(ast.parse(source)):
        args = ast.iter_child_nodes(node.args) if isinstance(node, ast.FunctionDef) else ()
        interface[name] = ", ".join(arg.arg for arg in args if isinstance(arg, ast.arg))
        first = min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))
        owner[first - 1 : node.end_lineno] = [name] * (node.end_lineno - first + 1)
    for name, line in zip(owner, lines, strict=True):
        if line.strip() and not line.lstrip().startswith("#"):
            code[name] = code.get(name, "") + line.rstrip() + "\n"
    return interface, {name: sha256(text.encode())[:16] for name, text in code.items()}


def uncovered(found: dict[str, str], known: dict[str, str]) -> list[str]:
    """List what replacing the file would take away, and the classes and functions that upstream's file must have."""

    def fits(name: str) -> bool:
        rest = iter(known[name].split(", "))  # consumed by `in`: the same parameters in the same order, or fewer
        return not found[name] or all(parameter in rest for parameter in found[name].split(", "))

    extra = [name for name in found if name not in known or not fits(name)]
    return extra + [name for name in known if name not in found and "." not in name and not name.startswith("--")]


def differences(found: dict[str, str], known: dict[str, str]) -> str:
    kinds = {
        "changed": [name for name in found if name in known and found[name] != known[name]],
        "added": [name for name in found if name not in known],
        "missing": [name for name in known if name not in found],
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def compare(interface: dict[str, str], code: dict[str, str], known: dict) -> str:
    """Say how a file differs from the known version that it is closest to."""
    if len(interface.keys() & known["interface"].keys()) * 2 < len(known["interface"]):
        return "resembles no version of upstream's file"
    if not known["versions"]:
        return differences(interface, known["interface"]) or "upstream's names and flags, but no known hash"
    newest_first = reversed(known["versions"].values())  # of two that are as close, max takes the first
    closest = max(newest_first, key=lambda version: len(code.items() & version["code"].items()))
    what = differences(code, closest["code"]) or "only comments or blank lines changed"
    return f"against {closest['releases'][-1]}: {what}"


def git_objection(target: Path, dest: str) -> str:
    """Say why git does not vouch for the file at dest; empty if it is what HEAD holds."""
    hashes = []
    for command in (["rev-parse", "--verify", f"HEAD:./{dest}"], ["hash-object", "--", dest]):
        try:
            done = subprocess.run(["git", "-C", str(target), *command], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "git is not installed"
        if done.returncode:
            return f"not in a git checkout ({(done.stderr.strip() or 'git failed').splitlines()[0]})"
        hashes.append(done.stdout)
    return "" if hashes[0] == hashes[1] else "edits not committed to git"


def source_text(path: Path) -> bytes:
    """Read a file less the line ends of a Windows checkout, which do not make it another version."""
    return path.read_bytes().replace(b"\r\n", b"\n")


def objection(target: Path, dest: str, known: dict, kit_file: Path) -> str:
    """Say why the file at dest is no upstream version that the kit may replace; empty if it is one."""
    path = target / dest
    if not path.exists():
        return "a link that leads nowhere" if path.is_symlink() else ""
    data = source_text(path)
    if sha256(data) in known["versions"]:
        return ""
    if data == source_text(kit_file):
        return "the kit's own file, copied by hand: put upstream's back first"
    try:
        interface, code = describe(data.decode("utf-8-sig"))
    except (SyntaxError, ValueError) as error:
        return f"not Python source ({error})"
    foreign = uncovered(interface, known["interface"])
    doubt = f"interface not upstream's in {', '.join(foreign)}" if foreign else git_objection(target, dest)
    return f"{compare(interface, code, known)}; {doubt}" if doubt else ""


def record(target: Path, release: str) -> str:
    """Add the upstream files in target to known_upstream.json: this is how that file is made."""
    known = json.loads(KNOWN.read_text(encoding="utf-8"))
    for dest, facts in known.items():
        if (target / dest).exists():
            data = source_text(target / dest)
            interface, code = describe(data.decode("utf-8-sig"))
            facts["interface"].update(interface)
            facts["versions"].setdefault(sha256(data), {"releases": [], "code": code})["releases"].append(release)
    KNOWN.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return f"recorded {release} in {KNOWN.name}"


if __name__ == "__main__":
    print(record(Path(sys.argv[1]), sys.argv[2]))
