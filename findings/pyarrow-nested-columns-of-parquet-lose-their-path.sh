#!/usr/bin/env bash
# Guessed: pq.read_table(path, columns=["premise.text", "hypothesis.text"]) gives two columns of these names; ParquetFile(path).read with the
#          same argument gives the same table.
# True:    read_table gives two columns that are both called "text"; to_pydict() keeps the last of them, without a word, and a column "text" at the
#          top of the file is a third of that name. ParquetFile.read gives the structs "premise" and "hypothesis", each with that one field.
#          Only a column that is literally named "premise.text" keeps its name, and read_table then leaves out the struct's, ParquetFile.read
#          does not.
# With:    pyarrow==26.0.1, pandas==3.1.1; seen on 2026-11-29.
# Who meets it: whoever reads pairs of texts (NLI, questions and answers) that are stored as structs, as JSON converted to Parquet is: the premises
#          are gone and the hypotheses stand for both. pandas.read_parquet(columns=…) has the two equal names as well, and frame["text"] is a table.
# Seen:    read_table:       ['text', 'text'] -> to_pydict {'text': ['h0', 'h1']}
#          ParquetFile.read: ['premise', 'hypothesis']
#          read_parquet:     ['text', 'text'], frame["text"] is a DataFrame
#          with a column literally named premise.text: read_table ['premise.text'], ParquetFile.read ['premise', 'premise.text']
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1 pandas==3.1.1
cd "$work"
venv/bin/python - <<'PY'
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

premises, hypotheses = [{"text": "p0"}, {"text": "p1"}], [{"text": "h0"}, {"text": "h1"}]
pq.write_table(pa.table({"premise": premises, "hypothesis": hypotheses}), "pairs.parquet")
columns = ["premise.text", "hypothesis.text"]
table = pq.read_table("pairs.parquet", columns=columns)
print("read_table:      ", table.column_names, "-> to_pydict", table.to_pydict())
assert table.column_names == ["text", "text"] and table.to_pydict() == {"text": ["h0", "h1"]}
structs = pq.ParquetFile("pairs.parquet").read(columns=columns)
print("ParquetFile.read:", structs.column_names)
assert structs.column_names == ["premise", "hypothesis"]
frame = pd.read_parquet("pairs.parquet", columns=columns)
print(f"read_parquet:     {list(frame.columns)}, frame[\"text\"] is a {type(frame['text']).__name__}")
assert list(frame.columns) == ["text", "text"]

pq.write_table(pa.table({"premise": premises, "premise.text": ["own", "own"]}), "literal.parquet")
one = pq.read_table("literal.parquet", columns=["premise.text"]).column_names
both = pq.ParquetFile("literal.parquet").read(columns=["premise.text"]).column_names
print(f"with a column literally named premise.text: read_table {one}, ParquetFile.read {both}")
assert one == ["premise.text"] and sorted(both) == ["premise", "premise.text"]
PY
