"""The tools of an MCP server, by the official SDK: `pip install "hf_toolssm[mcp]"`.

    with Mcp(command=["python", "server.py"], only=("read_file",)) as files:
        model.generate(..., tools=[files])

| what the server does | the observation |
|---|---|
| answers with text, in one part or several | that text, a line between two parts |
| answers with an image, a sound or a link | a note of what it is, in its place |
| answers with structured content alone | that as JSON |
| answers that the tool failed | the text of that answer |
| refuses the call, as of a tool that it has no more | `McpError` with its message |
| answers later than `time_limit` | `ToolTimeoutError`; the connection stays, and the next call works |
| ends before it has answered | `McpError`; the next call connects anew, once, and says that its state is gone |
| answers with more than an observation holds | `ObservationTooLongError` |
| answers with a result that is none | `ToolFaultError` |
| writes what is no message | over stdio `ToolTimeoutError`, as no answer came; over HTTP `McpError` |
| changes its list of tools | a session keeps those that it began with; another `Mcp` sees the new ones |

Whatever a server writes is text and can never act. One that a command starts has the rights of this process, though of
its variables only `env`, PATH and the like; so no config can name one. It is connected when its tools are first asked
for. Its state can be neither copied nor saved.
"""

import atexit
import json
import math
import shlex
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from hf_toolssm.errors import InvalidSchemaError, McpError, ToolTimeoutError
from hf_toolssm.tools.schemas import check_schemas
from hf_toolssm.tools.tool import CALL_NAME, TIME_LIMIT

CLOSE_LIMIT = 8.0
"""Seconds that closing may take. The SDK waits two for a server to end by itself, two after a signal, and kills it."""

LARGEST_EVENT = 2**26
"""Bytes of one answer over HTTP. The SDK's own limit would end the connection where an observation is too long."""


class Mcp:
    """A connection to an MCP server, and its tools.

    Args:
        command: what starts a server that speaks over stdio: a list, or a line as a shell would split it.
        url: of one that is running, which speaks streamable HTTP; instead of `command`.
        env: variables that the command gets beside PATH, HOME and the like.
        only: the names of the tools that a model may call; all if empty.
        prefix: of the calls' names, which keeps the tools of two servers apart.
        time_limit: seconds for the connection, and for every call.
        fork: "never", or "shared" if copies of a row may use the same server.

    Raises:
        McpError: there is neither a command nor a URL, or both; or an option is none.
    """

    has_side_effects = True

    def __init__(
        self,
        command: str | Sequence[str] | None = None,
        *,
        url: str | None = None,
        env: Mapping[str, str] | None = None,
        only: Iterable[str] = (),
        prefix: str = "",
        time_limit: float = TIME_LIMIT,
        fork: Literal["never", "shared"] = "never",
    ) -> None:
        words = shlex.split(command) if isinstance(command, str) else [*(command or ())]
        if bool(words) == bool(url) or isinstance(only, str):
            raise McpError(
                "an MCP server is a command or a url, and only= a list of names: Mcp(['python', 'server.py'])"
            )
        if url and (env or not url.startswith(("http://", "https://"))):
            raise McpError(f"a url begins with http:// or https:// and takes no env, and {url!r:.200} was given")
        if not time_limit or fork not in ("never", "shared"):
            raise McpError("a server may hang and remembers: its time_limit is seconds, its fork 'never' or 'shared'")
        self.time_limit = time_limit
        self.fork = fork
        self._command, self._url, self._env = words, url, dict(env or {})
        self._fate = "is gone" if words else "may be gone"
        self._only, self._prefix = tuple(only), prefix
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._is_closed = False
        self._portal: Any = None
        self._connection: _Connection | None = None
        self._schemas: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        # The model reads this where a call fails, so it says nothing of arguments, passwords or queries.
        url = urlsplit(self._url or "")
        return f"the MCP server {self._command[0] if self._command else f'{url.hostname}:{url.port}{url.path}'!r:.100}"

    def __enter__(self) -> "Mcp":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def schemas(self) -> Mapping[str, Any]:
        """What the server says of its tools, as it was when it was first asked.

        Raises:
            McpError: it cannot be started or reached within the time limit, or what it offers cannot be used.
        """
        if self._schemas is None:
            try:
                self._schemas = self._chosen(self._connect()[0].tools)
            except McpError:
                self.close()
                raise
        return self._schemas

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Asks the server, from any thread; see the table above.

        Raises:
            McpError, ToolTimeoutError: see the table above.
        """
        connection, note = self._connect()
        asked = (connection.client, name.removeprefix(self._prefix), arguments, self.time_limit)
        try:
            return note + _text_of(connection.portal.call(_ask, *asked))
        except TimeoutError as error:
            raise ToolTimeoutError(f"{self} did not answer within its time limit of {self.time_limit:g} s") from error
        except _sdk().MCPError as error:
            raise McpError(f"{self} refused the call: {error.message}") from error
        except ConnectionResetError as error:
            connection.end(0.0)
            raise McpError(
                f"{self} ended before it answered: whether it did the work is not known, and what it remembered "
                f"{self._fate}; the next call connects anew"
            ) from error

    def close(self) -> None:
        """Ends the connection, and a server that was started, within `CLOSE_LIMIT` seconds. A call under way fails."""
        atexit.unregister(self.close)
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self._portal is not None and (self._connection is None or self._connection.end(CLOSE_LIMIT)):
                self._portal.call(self._portal.stop, True)  # also a connection in the making that was interrupted
                self._stack.close()  # or else the thread stays, for which no program waits

    def _connect(self) -> "tuple[_Connection, str]":
        """The connection, and what the model is to be told of it."""
        with self._lock:
            before = self._connection
            if before is not None and not before.is_lost:
                return before, ""
            if self._is_closed:
                raise McpError(f"{self} was closed: make another Mcp")
            if self._portal is None:
                _sdk()
                from anyio.from_thread import start_blocking_portal

                self._portal = self._stack.enter_context(start_blocking_portal())
                atexit.register(self.close)
            self._connection = self._connected(self._portal)
            return self._connection, f"(connected anew: what the server remembered {self._fate})\n" if before else ""

    def _connected(self, portal: Any) -> "_Connection":
        from mcp.client.streamable_http import streamable_http_client

        server: Any = streamable_http_client(self._url or "", max_sse_event_size=LARGEST_EVENT)
        if self._command:
            program, *rest = self._command
            server = _sdk().StdioServerParameters(
                command=program,
                args=rest,
                env=self._env,
                encoding_error_handler="replace",  # or one byte that is no UTF-8 would end all reading without a word
            )
        try:
            done, (client, tools, stop) = portal.start_task(_hold, server, self.time_limit)
        except TimeoutError as error:
            raise McpError(f"{self} did not answer within {self.time_limit:g} seconds: raise time_limit") from error
        except Exception as error:  # of the system, the network, the protocol: what there is depends on the server
            raise McpError(f"{self} cannot be reached: {_reason(error):.200}") from error
        return _Connection(portal, client, tools, stop, done)

    def _chosen(self, tools: Sequence[Any]) -> Mapping[str, Any]:
        """The schemas of the tools that a model may call, by the names of their calls."""
        offered = {tool.name: tool for tool in tools}
        unknown = [name for name in self._only if name not in offered]
        if unknown:
            raise McpError(f"{self} has no tool {unknown[0]!r}, only {', '.join(map(repr, offered)):.1000}")
        if len(offered) < len(tools):
            raise McpError(f"{self} has two tools of one name, so no call can mean one of them")
        schemas = {}
        for name in self._only or offered:
            called = self._prefix + name
            if not CALL_NAME.fullmatch(called):
                raise McpError(f"{self}: no call can be named {called!r:.200}: name the tools that you need in only=")
            description, parameters = offered[name].description or "", _without_patterns(offered[name].input_schema)
            schemas[called] = {"description": description, "parameters": parameters}
        if not schemas:
            raise McpError(f"{self} has no tools")
        try:
            return check_schemas(schemas)
        except InvalidSchemaError as error:
            raise McpError(f"{self}: {error}: name the tools that you need in only=") from error


@dataclass
class _Connection:
    """A connection that a task on a portal's thread holds until it is to stop or breaks."""

    portal: Any
    client: Any
    tools: Sequence[Any]
    stop: Any
    done: Future[None]
    is_ending: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be asked any more."""
        return self.is_ending or self.done.done()

    def end(self, seconds: float) -> bool:
        """Lets it go and waits so long for that; returns whether it has gone."""
        if not self.is_lost:
            self.is_ending = True
            self.portal.call(self.stop.set)
        wait([self.done], seconds)
        return self.done.done()


async def _hold(server: Any, limit: float, *, task_status: Any) -> None:
    """Connects and lists the tools within a limit of seconds, and holds that until it is to stop or is broken."""
    import anyio

    stop = anyio.Event()
    with anyio.fail_after(limit) as scope:
        async with _sdk().Client(server) as client:
            # Or a server's regular expressions could hold the interpreter, which waits for no match, for ever.
            client.session.validate_tool_result = _unchecked
            tools, page = [], await client.list_tools()
            tools += page.tools
            while page.next_cursor:
                page = await client.list_tools(cursor=page.next_cursor)
                tools += page.tools
            scope.deadline = math.inf
            task_status.started((client, tools, stop))
            await stop.wait()
            scope.deadline = anyio.current_time() + CLOSE_LIMIT


async def _unchecked(name: str, result: Any) -> None:
    """In the place of the SDK's check of structured content, which is only shown."""


async def _ask(client: Any, name: str, arguments: Mapping[str, Any], limit: float) -> Any:
    """Calls a tool of the server.

    Raises:
        TimeoutError: it takes longer than a limit of seconds.
        ConnectionResetError: the connection has ended.
        mcp.MCPError: the server refuses.
    """
    import anyio
    from mcp_types import CONNECTION_CLOSED

    with anyio.fail_after(limit):
        try:
            return await client.call_tool(name, dict(arguments))
        except (_sdk().MCPError, RuntimeError) as error:
            if isinstance(error, _sdk().MCPError) and error.code != CONNECTION_CLOSED:
                raise
            try:
                await client.list_tools(cache_mode="bypass")  # servers use that code for errors of their own, too
            except (_sdk().MCPError, RuntimeError) as lost:
                raise ConnectionResetError from lost
            raise


def _sdk() -> Any:
    try:
        import mcp
    except ModuleNotFoundError as error:
        raise McpError('tools of an MCP server need its SDK: pip install "hf_toolssm[mcp]"') from error
    return mcp


def _text_of(result: Any) -> str:
    """What the model reads of a result."""
    if not result.content and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(map(_part, result.content))


def _part(part: Any) -> str:
    text = getattr(getattr(part, "resource", part), "text", None)
    if text is not None:
        return text
    about = [part.type, getattr(part, "mime_type", None), getattr(part, "uri", None)]
    return f"[{', '.join(str(each) for each in about if each)}: not shown]"


def _without_patterns(schema: Any, is_schema: bool = True) -> Any:
    """A server's schema as a model is told of it. Regular expressions are the server's to check: they are of another
    dialect than Python's, and a hostile one would hold the interpreter for ever.

    Args:
        is_schema: whether its keys are keywords; else they are names of schemas.
    """
    if isinstance(schema, list):
        return [_without_patterns(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: _without_patterns(value, not is_schema or key not in ("properties", "$defs", "definitions"))
        for key, value in schema.items()
        # A parameter of that name has a schema, and so an object, in its place.
        if key != "patternProperties" and not (key == "pattern" and isinstance(value, str))
    }
    if not is_schema:
        return kept
    # These would refuse what the server takes, now that what they are about matches anything or is gone.
    stricter = {key for key in ("oneOf", "not", "if") if kept.get(key) != schema.get(key)}
    if "patternProperties" in schema:
        stricter |= {"additionalProperties", "unevaluatedProperties"}
    if "oneOf" in stricter:
        kept.setdefault("anyOf", kept["oneOf"])
    return {key: value for key, value in kept.items() if key not in stricter}


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
