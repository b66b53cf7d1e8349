#!/usr/bin/python3
"""An extension for tests, by the name that its file has: does what the function's variables ask of it, and tells what it saw.

MODE_<NAME>: comma-separated words. The function asks port 4000 + its number for what it saw.
"""

import http.client
import http.server
import json
import os
import signal
import sys
import threading
import time

NAME = os.path.basename(sys.argv[0])
MODE = os.environ.get("MODE_" + NAME.upper(), "idle").split(",")
PORT = 4000 + len(NAME)
SEEN = {"name": NAME, "events": [], "telemetry": [], "logs": [], "environment": dict(os.environ), "cwd": os.getcwd()}
LOCK = threading.Lock()
HELD = threading.Event()


def call(method, path, body=None, **headers):
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    connection.request(method, path, None if body is None else json.dumps(body), {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    return answer.status, text, answer.headers


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/release":
            HELD.set()
        with LOCK:
            body = json.dumps(SEEN).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        events = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK:
            SEEN[self.path[1:]].extend(events)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def main():
    if "crash" in MODE:
        sys.exit(4)
    if "idle" in MODE:
        # One that does not take part, and must not be in anybody's way.
        MODE.append("quiet")
    server = http.server.ThreadingHTTPServer(("sandbox.localdomain", PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    events = ["SHUTDOWN"] if "quiet" in MODE else ["INVOKE", "SHUTDOWN"]
    if "slow" in MODE:
        time.sleep(1)
    if "never" in MODE:
        time.sleep(1000)
    status, text, headers = call("POST", "/2020-01-01/extension/register", {"events": events},
                                 Lambda_Extension_Name=NAME, Lambda_Extension_Accept_Feature="accountId")
    assert status == 200, text
    SEEN["registered"] = json.loads(text)
    me = {"Lambda_Extension_Identifier": headers["Lambda-Extension-Identifier"]}
    SEEN["id"] = headers["Lambda-Extension-Identifier"]
    SEEN["refused"] = [
        [method + " " + path, *call(method, path, body, **headers)[:2]]
        for method, path, body, headers in [
            ("POST", "/2020-01-01/extension/register", {"events": []}, {"Lambda_Extension_Name": NAME}),
            ("POST", "/2020-01-01/extension/register", {"events": ["OTHER"]}, {"Lambda_Extension_Name": "inner"}),
            ("POST", "/2020-01-01/extension/register", {"events": []}, {}),
            ("GET", "/2020-01-01/extension/event/next", None, {}),
            ("GET", "/2020-01-01/extension/event/next", None, {"Lambda_Extension_Identifier": "x"}),
            ("GET", "/2020-01-01/extension/event/next", None, {"Lambda_Extension_Identifier": "00000000-0000-4000-8000-000000000000"}),
            ("POST", "/2020-01-01/extension/init/error", {}, me),
            ("PUT", "/2022-07-01/telemetry", {"types": [], "destination": {"protocol": "TCP", "port": 1}}, me),
            ("PUT", "/2022-07-01/telemetry", {}, {}),
        ]
    ]
    if "telemetry" in MODE:
        status, text, _ = call("PUT", "/2022-07-01/telemetry", {
            "schemaVersion": "2022-12-13", "types": ["platform", "function", "extension"],
            "buffering": {"maxItems": 1000, "maxBytes": 262144, "timeoutMs": 25},
            "destination": {"protocol": "HTTP", "URI": f"http://sandbox.localdomain:{PORT}/telemetry"}}, **me)
        assert (status, text) == (200, "OK"), text
        status, text, _ = call("PUT", "/2020-08-15/logs", {
            "schemaVersion": "2021-03-18", "types": ["platform", "function"], "buffering": {"timeoutMs": 25},
            "destination": {"protocol": "HTTP", "URI": f"http://sandbox.localdomain:{PORT}/logs"}}, **me)
        assert (status, text) == (200, "OK"), text
    print(f"{NAME} has begun", flush=True)
    if "initerror" in MODE:
        status, text, _ = call("POST", "/2020-01-01/extension/init/error", {"errorMessage": "no"},
                               Lambda_Extension_Function_Error_Type="Extension.NoWay", **me)
        assert status == 202, text
        time.sleep(1000)
    while True:
        status, text, headers = call("GET", "/2020-01-01/extension/event/next", **me)
        assert status == 200, text
        event = json.loads(text)
        event["id"] = headers["Lambda-Extension-Event-Identifier"]
        with LOCK:
            SEEN["events"].append(event)
        print(f"{NAME} was told {json.dumps(event)}", flush=True)
        if event["eventType"] == "SHUTDOWN":
            left = event["deadlineMs"] / 1000 - time.time()
            if "stay" in MODE:
                signal.pause()
            print(f"{NAME} ends with {left:.1f} s left", flush=True)
            return
        if "exiterror" in MODE:
            status, text, _ = call("POST", "/2020-01-01/extension/exit/error", {},
                                   Lambda_Extension_Function_Error_Type="Extension.Enough", **me)
            assert status == 202, text
            time.sleep(1000)
        if "exit" in MODE:
            sys.exit(5)
        if "hold" in MODE:
            HELD.wait(2)


main()
