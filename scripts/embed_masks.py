"""Put what lemica/masks.py shares with the kit into infer_state.py: python scripts/embed_masks.py"""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BEGIN, END = (f"# ---- shared with the kit: {edge}\n" for edge in ("begin", "end"))


def shared_part(source: str) -> str:
    """What stands between the two marker lines."""
    return source.split(BEGIN)[1].split(END)[0]


def embedded(kit: str, library: str) -> str:
    """The kit's file with the library's shared part in the place of its own."""
    before, rest = kit.split(BEGIN)
    return before + BEGIN + shared_part(library) + END + rest.split(END)[1]


if __name__ == "__main__":
    kit = REPOSITORY / "infer_state.py"
    library = (REPOSITORY / "lemica" / "masks.py").read_text(encoding="utf-8")
    kit.write_text(embedded(kit.read_text(encoding="utf-8"), library), encoding="utf-8")
