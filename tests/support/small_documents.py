"""Three small documents in a folder, of which sweeps in tests are."""

from pathlib import Path

DOCUMENTS = {
    "aromi": "Aromi serves tea to families. It lies near the river.",
    "eagle": "The Eagle is a cheap pub in the city centre. Its food is Chinese.",
    "rice boat": "The Rice Boat has a low rating. Children are welcome there.",
}


def write_documents(folder: Path) -> None:
    """A text file of each in a new folder."""
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / f"{name}.txt").write_text(text + "\n")
