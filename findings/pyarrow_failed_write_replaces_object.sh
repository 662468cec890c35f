#!/usr/bin/env bash
# pyarrow 26.0.1 against moto 5.2.5 (an S3 server on this machine); run 2026-11-28.
#
# An object exists. A writer opens its name with `with fs.open_output_stream(...)` and raises halfway through.
# Expected: an S3 object appears when its upload is completed, so a writer that failed leaves the old object.
# Happens:  leaving the block by an exception closes the stream, and closing completes the upload: the half file stands
#           under the final name and the old object is gone. A stream has no abort in Python.
#
# Seen:
#   raised: the writer fails here
#   before: b'old and whole'
#   after:  b'new, ha'
#   a stream has abort(): False
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check pyarrow==26.0.1 moto==5.2.5 flask==3.1.3 flask-cors==6.0.5 py-partiql-parser==0.6.3
venv/bin/python - <<'PY'
import os

os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
from moto.server import ThreadedMotoServer
from pyarrow.fs import S3FileSystem

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
store = S3FileSystem(
    access_key="a",
    secret_key="b",
    endpoint_override=f"http://{host}:{port}",
    region="us-east-1",
    allow_bucket_creation=True,
)
store.create_dir("bucket")


def read():
    with store.open_input_stream("bucket/name") as stream:
        return stream.read()


with store.open_output_stream("bucket/name") as stream:
    stream.write(b"old and whole")
before = read()
try:
    with store.open_output_stream("bucket/name") as stream:
        stream.write(b"new, ha")
        raise ValueError("the writer fails here")
except ValueError as error:
    print("raised:", error)
after = read()
print("before:", before)
print("after: ", after)
print("a stream has abort():", hasattr(stream, "abort"))
server.stop()
assert before == b"old and whole" and after == b"new, ha"
PY
