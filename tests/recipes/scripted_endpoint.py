"""An OpenAI-compatible endpoint on loopback whose model is the teacher's rules, and which fails as it is told to."""

import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dataset_builders.algorithms.repair import repair

RUN = "python3 -X no_debug_ranges main.py 2>&1 | tail -n 7"
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


def teacher(observations):
    """The words and the commands that follow what was observed so far."""
    if not observations:
        return "I run it.", [RUN]
    edit = repair(observations[-1])
    return ("I repair the last frames.", [f"{edit}; {RUN}"]) if edit else ("It is repaired.", [SUBMIT])


class Endpoint(ThreadingHTTPServer):
    """Attributes:
    policy: the words and the commands for a list of observations; None is a reply without content.
    fault: the name of a fault for a request's body, or None.
    requests: bodies and headers that came.
    """

    daemon_threads = True

    def __init__(self, policy=teacher, fault=lambda body: None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.policy, self.fault, self.requests = policy, fault, []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def serve(*arguments, **options):
    with Endpoint(*arguments, **options) as endpoint:
        threading.Thread(target=endpoint.serve_forever, args=(0.01,), daemon=True).start()
        yield endpoint
        endpoint.shutdown()


def observed(body):
    """What commands have printed: the messages behind the prompt, but for those that speak of a wrong format."""
    says = [message["content"] for message in body["messages"][2:] if message["role"] in ("user", "tool")]
    return [text for text in says if not re.search("EXACTLY ONE action|tool call", text)]


def message_of(words, commands, body):
    """The assistant's message, in the style that the request asks for."""
    if not body.get("tools"):
        blocks = [f"\n\n```mswea_bash_command\n{command}\n```" for command in commands]
        return {"role": "assistant", "content": words + "".join(blocks)}
    calls = [
        {
            "id": f"call_{len(body['messages'])}_{at}",
            "type": "function",
            "function": {"name": "bash", "arguments": text},
        }
        for at, text in enumerate(json.dumps({"command": command}) for command in commands)
    ]
    return {"role": "assistant", "content": words or None, "tool_calls": calls or None}


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((body, self.headers))
        fault = self.server.fault(body)
        if fault == "reset":
            self.close_connection = True
            self.connection.close()
        elif fault == "slow":
            time.sleep(10)
            self.close_connection = True
        elif fault == "garbage":
            self._send(200, b'{"choices": [{"mess')
        elif fault == "no choices":
            self._send(200, json.dumps(_completion(body, None)).encode())
        elif fault == "500":
            self._send(500, b'{"error": {"message": "out of memory", "type": "server_error"}}')
        elif fault == "context":
            error = {
                "message": "This model's maximum context length is 8192 tokens.",
                "code": "context_length_exceeded",
            }
            self._send(400, json.dumps({"error": {**error, "type": "invalid_request_error"}}).encode())
        else:
            message = {
                None: lambda: message_of(*self.server.policy(observed(body)), body),
                "empty": lambda: {"role": "assistant", "content": ""},
                "wrong format": lambda: {"role": "assistant", "content": "I would run main.py now."},
                "other tool": lambda: {**message_of("", ["ls"], body), "tool_calls": [_OTHER_TOOL]},
            }[fault]()
            self._send(200, json.dumps(_completion(body, message)).encode())

    def _send(self, status, content):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


_OTHER_TOOL = {"id": "call_x", "type": "function", "function": {"name": "python", "arguments": "{}"}}


def _completion(body, message):
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    completion = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "usage": usage}
    return {**completion, "choices": [] if message is None else [choice]}
