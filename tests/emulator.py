"""Google Cloud Storage on loopback: `gcp-storage-emulator`, and the conditions that it ignores."""

import contextlib
import json
import logging
import re
import socket
import time
from http.server import HTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

BUCKET = "cutmix-test"
REFUSED = {"denied-bucket": 403, "private-bucket": 401}
READ_ONLY = "read-only/"  # nothing is written below this folder of the bucket


@contextlib.contextmanager
def start():
    """Yields the environment variables with which processes use the emulator."""
    pytest.importorskip("gcsfs", reason="buckets need gcsfs (requirements-gcs.txt)")
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="needs gcp-storage-emulator (requirements-dev.txt)"
    )
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    download = objects.download

    def with_generation(request, response, storage, *args, **kwargs):
        download(request, response, storage, *args, **kwargs)
        with contextlib.suppress(NotFound):
            names = request.params["bucket_name"], request.params["object_id"]
            response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]

    class Router(emulator.Router):
        def handle(self, method):
            request = self._request_handler
            parts = urlsplit(request.path)
            query = parse_qs(parts.query)
            bucket, name = re.search(r"/b/([^/]+)(?:/o/?(.*))?", parts.path).groups()
            if bucket in REFUSED:
                return self.refuse(REFUSED[bucket])
            if query.get("name", [""])[0].startswith(READ_ONLY):
                return self.refuse(403)
            if "ifGenerationMatch" in query:
                name = query["name"][0] if "name" in query else unquote(name)
                try:
                    generation = request.storage.get_file_obj(bucket, name)["generation"]
                except NotFound:
                    generation = "0"
                if generation != query["ifGenerationMatch"][0]:
                    return self.refuse(412)
            return super().handle(method)

        def refuse(self, status):
            request = self._request_handler
            request.rfile.read(int(request.headers.get("Content-Length") or 0))
            messages = {403: "No access.", 401: "Anonymous caller does not have access."}
            error = {"code": status, "message": messages.get(status, "Precondition failed.")}
            body = json.dumps({"error": error}).encode()
            request.send_response(status)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)

    with pytest.MonkeyPatch.context() as patch, free_port() as port:
        patch.setattr(objects, "download", with_generation)
        patch.setattr(HTTPServer, "handle_error", lambda *_: None)  # a client that went away
        patch.setattr(emulator, "Router", Router)
        server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
        server.start()
        while server._api._httpd is None:
            time.sleep(0.01)
        try:
            yield settings(port)
        finally:
            server.stop()


@contextlib.contextmanager
def free_port():
    """Yields a port on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    yield port


def settings(port):
    """The environment of a process whose Google Cloud Storage is on a port of this machine."""
    address = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs and google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": address,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record
        "GCE_METADATA_ROOT": "127.0.0.1:1",  # nobody: this is no machine of Google's
        "NO_GCE_CHECK": "true",
    }
