"""A bucket on loopback, from gcp-storage-emulator, for gcsfs, etils, TensorStore and Orbax."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from etils import epath

from colm_jax.storage import path_of

_SERVER = (
    "from gcp_storage_emulator.server import create_server; create_server('localhost', {port}, True, 'bucket').run()"
)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """Start one emulator per session, since clients cache the address of Cloud Storage."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    folder, where = tmp_path_factory.mktemp("bucket"), f"http://localhost:{port}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([sys.executable, "-c", _SERVER.format(port=port)], stdout=log, stderr=log, cwd=folder)
    os.environ.update(
        STORAGE_EMULATOR_HOST=where,
        TENSORSTORE_GCS_HTTP_URL=where,
        GOOGLE_AUTH_TOKEN_FOR_TESTING="of nobody",  # else TensorStore looks for credentials
        GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",  # queries the type of a bucket by gRPC
        NO_GCE_CHECK="true",
        COLM_CACHE=str(folder / "cache"),
    )
    for _ in range(200):
        assert server.poll() is None, (folder / "log").read_text()
        try:
            urllib.request.urlopen(where, timeout=5).close()
            break
        except OSError:
            time.sleep(0.1)
    yield where
    server.kill()
    server.wait()


@pytest.fixture
def bucket(emulator, request):
    """Return a directory of the bucket for this test alone."""
    return path_of(f"gs://bucket/{request.node.name.translate(str.maketrans('[]', '()'))} é")


def by_others(path, content):
    """Write an object as another program does: without this package's metadata."""
    epath.Path(str(path)).write_bytes(content)
