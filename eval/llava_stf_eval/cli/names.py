"""Options that take several names, with commas between."""

import typer


def split_names(text: str) -> list[str]:
    """The names of a text; blanks around them, and commas without one, say nothing."""
    return [name for name in (part.strip() for part in text.split(",")) if name]


def check_names(text: str) -> str:
    """A text with one name at least, as `callback` of an option."""
    if not split_names(text):
        raise typer.BadParameter(f"expected names with commas between, found '{text}'")
    return text
