"""``python -m tplab.lab.pictures Race > race.html``: a picture as a page of its own."""

import sys

from tplab.lab import pictures


def main(arguments: list[str]) -> str | int:
    offered = [name for name in pictures.__all__ if name != "Picture"]
    if len(arguments) != 1 or arguments[0] not in offered:
        return f"Give the name of one picture: {', '.join(offered)}."
    print(getattr(pictures, arguments[0])().page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
