#!/usr/bin/env bash
# Guessed: fs.put_file(source, target, mode="create") raises FileExistsError on an existing target wherever the argument is taken, as it does on
#          memory:// and S3, and as fs.pipe_file(target, data, mode="create") does.
# True:    on file:// the argument is taken and dropped: the existing file is replaced without a word. pipe_file on the same file system, and
#          put_file on memory://, refuse. A dir:// over file:// replaces too.
# With:    fsspec==2026.9.0; seen on 2026-11-29.
# Who meets it: whoever tests a protocol of exclusive writes (one winner of several writers, a lock, a commit record) on a local folder before it
#          runs on a bucket, or offers file:// beside s3://: each writer is told that it has won.
# Seen:    memory put_file: FileExistsError, content b'first'
#          local  put_file: no error, content b'second'
#          local  pipe_file: FileExistsError, content b'first'
#          dir    put_file: no error, content b'second'
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check fsspec==2026.9.0
cd "$work"
venv/bin/python - <<'PY'
from pathlib import Path

import fsspec
from fsspec.implementations.dirfs import DirFileSystem

Path("source").write_bytes(b"second")
local, memory = fsspec.filesystem("file"), fsspec.filesystem("memory")
here = str(Path("target").resolve())


def outcome(act, fs, target):
    fs.pipe_file(target, b"first")
    try:
        act()
        said = "no error"
    except FileExistsError:
        said = "FileExistsError"
    return said, fs.cat_file(target)


seen = {
    "memory put_file": outcome(lambda: memory.put_file("source", "/target", mode="create"), memory, "/target"),
    "local  put_file": outcome(lambda: local.put_file("source", here, mode="create"), local, here),
    "local  pipe_file": outcome(lambda: local.pipe_file(here, b"second", mode="create"), local, here),
    "dir    put_file": outcome(lambda: DirFileSystem(str(Path.cwd()), local).put_file("source", "target", mode="create"), local, here),
}
for name, (said, content) in seen.items():
    print(f"{name}: {said}, content {content}")
refused, replaced = ("FileExistsError", b"first"), ("no error", b"second")
assert list(seen.values()) == [refused, replaced, refused, replaced]
PY
