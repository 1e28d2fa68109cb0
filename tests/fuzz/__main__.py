"""`make fuzz`: bad input for every operation of the API, and for what parses, for as long as is asked."""

import argparse
import sys

PARSERS = ("multipart", "tools", "events", "replies")


def main() -> None:
    """Exit with 1 where anything was found."""
    asked = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    asked.add_argument("what", nargs="*", help=f"api, or a parser: {', '.join(PARSERS)}; without any, all of them")
    asked.add_argument("--cases", type=int, default=2000, help="of each operation (2000)")
    asked.add_argument("--only", action="append", default=[], metavar="ID", help="of the operations, this one")
    asked.add_argument("--jobs", type=int, default=2, help="operations side by side (2)")
    asked.add_argument("--resume", action="store_true", help="leave out what was fine already with so many cases")
    asked.add_argument("--write", action="store_true", help="what came of it, into docs/fuzzing.md")
    asked.add_argument("--minutes", type=float, default=10, help="for each parser (10)")
    options = asked.parse_args()
    what = options.what or ["api", *PARSERS]
    if unknown := set(what) - {"api", *PARSERS}:
        asked.error(f"there is no {', '.join(unknown)}")
    found = False
    for each in what:
        if each == "api":
            from tests.fuzz import api

            found |= not api.run(options.cases, options.only, options.jobs, options.resume, options.write)
        else:
            from tests.fuzz import guided

            found |= not guided.run(each, options.minutes * 60)
    sys.exit(found)


main()
