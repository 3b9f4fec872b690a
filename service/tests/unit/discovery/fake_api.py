"""A small Kubernetes API server: the few paths that kvorum uses, in JSON over HTTP, and the ways they go wrong."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAMESPACE = "data"
STATEFULSET = "kv"
GENESIS = "kv-genesis"
LEADER_SLICE = "kv-leader"
TOKEN = "secret-token"

STATEFULSET_PATH = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{STATEFULSET}"
GENESIS_PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{GENESIS}"
SLICE_PATH = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/{LEADER_SLICE}"
EVENTS_PATH = f"/api/v1/namespaces/{NAMESPACE}/events"


def pod_path(name):
    return f"/api/v1/namespaces/{NAMESPACE}/pods/{name}"


class FakeApi:
    """Objects by path, each write with a new version; `trouble` makes a path fail with a status, or hang."""

    def __init__(self):
        self.objects = {}
        self.events = []
        self.requests = []
        self.trouble = {}
        self.before_put = None
        self._version = 100
        self._lock = threading.Lock()
        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.put(GENESIS_PATH, {"metadata": {"name": GENESIS, "labels": {"app": "kv"}}})
        self.put(
            SLICE_PATH,
            {"metadata": {"name": LEADER_SLICE}, "addressType": "IPv4", "endpoints": None, "ports": None},
        )
        self.scale(3)

    @property
    def port(self):
        return self._server.server_address[1]

    def stop(self):
        self.released.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def put(self, path, document):
        with self._lock:
            self._version += 1
            document.setdefault("metadata", {})["resourceVersion"] = str(self._version)
            self.objects[path] = document

    def scale(self, replicas, *, settled=True, **changes):
        """Set the size as `kubectl scale` does; other keys go into spec or metadata."""
        known = self.objects.get(STATEFULSET_PATH, {"metadata": {"generation": 0}})
        generation = known["metadata"]["generation"] + 1
        document = {
            "metadata": {"name": STATEFULSET, "uid": "uid-1", "generation": generation},
            "spec": {"replicas": replicas},
            "status": {"observedGeneration": generation if settled else generation - 1},
        }
        for key, value in changes.items():
            document["metadata" if key == "deletionTimestamp" else "spec"][key] = value
        self.put(STATEFULSET_PATH, document)

    def pods(self, *names):
        """Exactly these pods are there."""
        for path in [path for path in self.objects if "/pods/" in path]:
            del self.objects[path]
        for name in names:
            self.put(pod_path(name), {"metadata": {"name": name}})

    def write_kubeconfig(self, path):
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "users": [{"name": "test", "user": {"token": TOKEN}}],
                }
            )
        )
        return path

    # --- answering ---

    def _handler(api):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                api.answer(self, None)

            def do_PUT(self):
                api.answer(self, self._body())

            def do_POST(self):
                api.answer(self, self._body())

            def _body(self):
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, *_):
                pass

        return Handler

    def answer(self, request, body):
        path, method = request.path, request.command
        self.requests.append((method, path))
        trouble = self.trouble.get((method, path), self.trouble.get(path, self.trouble.get("*")))
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            status, document = 401, {"message": "who are you?"}
        elif trouble == "hang":
            self.released.wait(120)
            return
        elif isinstance(trouble, bytes):
            self._send(request, 200, trouble)
            return
        elif trouble is not None:
            status, document = trouble, {"kind": "Status", "message": f"trouble {trouble}"}
        elif method == "PUT":
            status, document = self._replaced(path, body)
        elif method == "POST":
            self.events.append(body)
            status, document = 201, body
        elif path in self.objects:
            status, document = 200, self.objects[path]
        else:
            status, document = 404, {"kind": "Status", "message": f"{path} not found"}
        self._send(request, status, json.dumps(document).encode())

    def _replaced(self, path, body):
        if self.before_put is not None:
            hook, self.before_put = self.before_put, None
            hook()
        known = self.objects.get(path)
        if known is None:
            return 404, {"message": "not found"}
        if body["metadata"].get("resourceVersion") != known["metadata"]["resourceVersion"]:
            return 409, {"message": "the object has been modified"}
        self.put(path, body)
        return 200, body

    @staticmethod
    def _send(request, status, content):
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
