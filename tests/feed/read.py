#!/usr/bin/env python3
"""Reads the folder of a feed as people will, with DuckDB and with pyarrow, and prints what each finds as JSON.

    tests/feed/read.py DIR
"""

import datetime
import hashlib
import json
import sys
from pathlib import Path

import duckdb
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

TOKENS = ["prompt", "cached", "completion", "reasoning"]


def decimal(number):
    """As PostgreSQL writes it without zeros behind."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def by_duckdb(folder):
    database = duckdb.connect()
    files = f"read_parquet('{folder}/*/*.parquet', hive_partitioning = true)"
    sums = ", ".join(f"coalesce(sum({name}_tokens), 0)::bigint" for name in TOKENS)
    rows, *tokens, with_text = database.execute(f"SELECT count(*), {sums}, count(prompt) FROM {files}").fetchone()
    costs = database.execute(
        f"SELECT currency, sum(cost), sum(estimated_cost) FROM {files} WHERE currency IS NOT NULL GROUP BY 1 ORDER BY 1"
    ).fetchall()
    days = database.execute(f"SELECT day::text, count(*), count(DISTINCT request_id) FROM {files} GROUP BY 1 ORDER BY 1").fetchall()
    return {
        "rows": rows,
        "tokens": dict(zip(TOKENS, tokens)),
        "prompts": with_text,
        "cost": {currency: decimal(cost) for currency, cost, _ in costs},
        "estimated_cost": {currency: decimal(cost) for currency, _, cost in costs},
        "days": [list(day) for day in days],
    }


def by_pyarrow(folder):
    # Passes over names that begin with an underscore, as Spark does.
    dataset = ds.dataset(folder, format="parquet", partitioning="hive")
    table = dataset.to_table(columns=["cost", "estimated_cost", "currency", "prompt", "day"] + [f"{name}_tokens" for name in TOKENS])
    costs = table.filter(pc.field("currency").is_valid()).group_by("currency")
    costs = costs.aggregate([("cost", "sum"), ("estimated_cost", "sum")]).sort_by("currency").to_pylist()
    days = table.group_by("day").aggregate([("cost", "count")]).sort_by("day").to_pylist()
    return {
        "rows": table.num_rows,
        "tokens": {name: pc.sum(table[f"{name}_tokens"]).as_py() or 0 for name in TOKENS},
        "prompts": table.num_rows - table["prompt"].null_count,
        "cost": {row["currency"]: decimal(row["cost_sum"]) for row in costs},
        "estimated_cost": {row["currency"]: decimal(row["estimated_cost_sum"]) for row in costs},
        "days": [[row["day"], row["cost_count"]] for row in days],
    }


def first_rows(file):
    """The first rows of a file, without what differs from run to run."""
    plain = {datetime.datetime: lambda at: at.isoformat()}
    rows = pq.read_table(file).slice(0, 4).to_pylist()
    return [
        {name: plain.get(type(value), lambda value: value if isinstance(value, (int, str, type(None))) else decimal(value))(value)
         for name, value in row.items() if name not in ("id", "created_at", "day")}
        for row in rows
    ]


def main():
    folder = Path(sys.argv[1])
    files = sorted(folder.glob("*/*.parquet"))
    manifests = {}
    for path in sorted((folder / "_manifests").glob("*.json")):
        manifest = json.loads(path.read_text())
        data = (folder / manifest["file"]).read_bytes()
        manifest["is_true"] = hashlib.sha256(data).hexdigest() == manifest["sha256"] and len(data) == manifest["bytes"]
        manifests[path.stem] = manifest
    times = [pq.read_table(file, columns=["started_at", "request_id"]).to_pylist() for file in files]
    keys = [[(row["started_at"], row["request_id"]) for row in rows] for rows in times]
    first = pq.ParquetFile(files[0])
    print(json.dumps({
        "files": [str(file.relative_to(folder)) for file in files],
        "leftovers": [path.name for path in (folder / "_writing").iterdir()],
        "manifests": manifests,
        "sorted": all(rows == sorted(rows) for rows in keys),
        "schema": {field.name: str(field.type) for field in first.schema_arrow},
        "compression": sorted({first.metadata.row_group(0).column(n).compression for n in range(first.metadata.num_columns)}),
        "row_groups": [pq.ParquetFile(file).num_row_groups for file in files],
        "first_rows": first_rows(files[0]),
        "duckdb": by_duckdb(folder),
        "pyarrow": by_pyarrow(folder),
    }))


main()
