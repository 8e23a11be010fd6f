"""The token store: a folder of columns of rows in shards, written in place, checked by hashes, read at memory speed.

    tokens/
      examples.h5                     each example's images, label, split, id, prompt cut      (example_table.py)
      <column>/manifest.json          fingerprint, one record per committed shard              (manifest.py)
      <column>/shard-00000-….h5 …     contiguous rows, row hashes, flags                       (layout.py, shard.py)
      tokens.h5                       virtual datasets over all shards of all columns          (virtual_view.py)

Row r of every column is image r (the files say "drawing"); ``examples.h5`` says which images an example has. ``writer.py`` fills a column
(``lease.py``: one owner per shard), ``reader.py`` reads it by image (``column_map.py``: at memory speed; ``foreign_files.py``: checks
foreign files), ``token_store.py`` reads all columns by example, and ``verify.py`` names the damaged rows.
"""
