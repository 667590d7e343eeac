"""What a misspelt key was meant to be."""

import difflib
from collections.abc import Sequence

__all__ = ["suggestion"]


def suggestion(key: str, valid: Sequence[str]) -> str:
    """The valid key that is closest to `key` or, where none is close, all of them; in words."""
    close = difflib.get_close_matches(key, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(valid)}"
