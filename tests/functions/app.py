"""A function that does what it is asked to, for tests."""

import json
import os
import threading
import time

print("loading", flush=True)
if os.environ.get("FAIL_INIT") == "exception":
    raise RuntimeError("cannot begin")
if os.environ.get("FAIL_INIT") == "exit":
    os._exit(7)
if os.environ.get("SLOW_INIT"):
    time.sleep(float(os.environ["SLOW_INIT"]))
if os.environ.get("INTERNAL"):

    def call(method, path, body=None, **headers):
        import http.client

        connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers

    INTERNAL = []

    def follow():
        register = lambda events: call("POST", "/2020-01-01/extension/register", json.dumps({"events": events}), Lambda_Extension_Name="inner")
        INTERNAL.append(register(["SHUTDOWN"])[:2])
        status, text, headers = register(["INVOKE"])
        INTERNAL.append((status, json.loads(text)))
        registered.set()
        while True:
            status, text, _ = call("GET", "/2020-01-01/extension/event/next", Lambda_Extension_Identifier=headers["Lambda-Extension-Identifier"])
            INTERNAL.append((status, json.loads(text)))

    registered = threading.Event()
    threading.Thread(target=follow, daemon=True).start()
    registered.wait(5)
if os.environ.get("TERMINATED"):
    import signal

    def terminated(*_):
        print("the runtime was told to end", flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, terminated)
INVOCATIONS = 0
LOCK = threading.Lock()


def handler(event, context):
    global INVOCATIONS
    with LOCK:
        INVOCATIONS += 1
    print("got", json.dumps(event)[:200])
    what = event.get("do") if isinstance(event, dict) else None
    if what == "fail":
        raise ValueError("as asked")
    if what == "exit":
        os._exit(event.get("code", 3))
    if what == "sleep":
        time.sleep(event["seconds"])
    if what == "memory":
        held = bytearray(event["mb"] << 20)
        for at in range(0, len(held), 4096):
            held[at] = 1
    if what == "environment":
        return dict(os.environ)
    if what == "write":
        try:
            with open(event["path"], "wb") as file:
                file.write(b"x" * event["bytes"])
            return {"written": event["bytes"]}
        except OSError as error:
            return {"error": error.strerror}
    if what == "seen":
        import urllib.request

        return json.load(urllib.request.urlopen(f"http://sandbox.localdomain:{event['port']}{event.get('path', '/')}"))
    if what == "internal":
        return INTERNAL
    if what == "large":
        return "x" * event["bytes"]
    if what == "length":
        return len(event["text"])
    if what == "connect":
        import socket

        try:
            socket.create_connection((event["host"], event["port"]), timeout=2).close()
            return {"connected": True}
        except OSError as error:
            return {"error": str(error)}
    return {
        "invocations": INVOCATIONS,
        "event": event,
        "id": context.aws_request_id,
        "arn": context.invoked_function_arn,
        "remaining": context.get_remaining_time_in_millis(),
        "client": getattr(context.client_context, "custom", None),
        "group": context.log_group_name,
        "stream": context.log_stream_name,
        "memory": int(context.memory_limit_in_mb),
        "name": context.function_name,
        "version": context.function_version,
    }
