"""What stands between gRPC and the services: who may call, and what an exception becomes."""

from __future__ import annotations

import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio

from stepd.errors import PermissionDenied, StepdError, Unauthenticated
from stepd.status import from_rpc_error, to_status
from stepd_server.tokens import Role, Tokens

__all__ = ["AuthInterceptor", "ErrorInterceptor"]

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]]
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# What only servers of the fleet say to each other.
FLEET_SERVICES: Final = ("/stepd.v1.ShardControl/",)
FLEET_METHODS: Final = frozenset({"/stepd.v1.Coordinator/RegisterShard"})
# Tells a load balancer no more than an open port does. Not Watch: it holds a stream.
OPEN_METHODS: Final = frozenset({"/grpc.health.v1.Health/Check"})


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls with a fitting token through. All failures read the same."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        method = handler_call_details.method
        if method in OPEN_METHODS:
            return await continuation(handler_call_details)
        role = self._role(handler_call_details)
        if role is None:
            return _refuse(Unauthenticated("a valid token is needed: authorization: Bearer TOKEN"))
        if role is not Role.FLEET and (method in FLEET_METHODS or method.startswith(FLEET_SERVICES)):
            return _refuse(PermissionDenied(f"{method} is for servers of the fleet", method=method))
        return await continuation(handler_call_details)

    def _role(self, call: grpc.HandlerCallDetails) -> Role | None:
        given = [value for key, value in call.invocation_metadata or () if key == "authorization"]
        if len(given) != 1:
            return None
        value = given[0].encode(errors="replace") if isinstance(given[0], str) else given[0]
        scheme, _, token = value.partition(b" ")
        return self._tokens.role_of(token) if scheme.lower() == b"bearer" else None


def _refuse(error: StepdError) -> Handler:
    """A handler that answers with `error` and reads nothing.

    Whatever the method's own kind: for a handler that takes a single message gRPC would first receive the body, however
    large, of a caller we do not know.
    """

    async def refuse(_requests: object, context: Context) -> NoReturn:
        await context.abort(*to_status(error))

    return grpc.stream_unary_rpc_method_handler(refuse)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what a service raises into a status; what is not ours is logged and stays opaque to the caller."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        # None: an unknown method, which gRPC answers with UNIMPLEMENTED.
        return None if handler is None else _wrap(handler, handler_call_details.method)


def _wrap(handler: Any, method: str) -> Handler:
    kind = {
        (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
        (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
        (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
        (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
    }
    name, build = kind[handler.request_streaming, handler.response_streaming]
    behaviour = getattr(handler, name)
    guarded = _guard_generator if inspect.isasyncgenfunction(behaviour) else _guard_coroutine
    wrapped: Handler = build(guarded(behaviour, method), handler.request_deserializer, handler.response_serializer)
    return wrapped


def _guard_coroutine(behaviour: Callable[[Any, Context], Awaitable[Any]], method: str) -> Callable[..., Any]:
    async def guarded(request: Any, context: Context) -> Any:
        async with _statuses(context, method):
            return await behaviour(request, context)

    return guarded


def _guard_generator(behaviour: Callable[[Any, Context], AsyncIterator[Any]], method: str) -> Callable[..., Any]:
    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        async with _statuses(context, method):
            async for message in behaviour(request, context):
                yield message

    return guarded


@asynccontextmanager
async def _statuses(context: Context, method: str) -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AbortError:
        raise  # the service has set a status itself
    except StepdError as error:
        await context.abort(*to_status(error))
    except grpc.RpcError as error:
        # A call to another server of the fleet, made for the caller.
        await context.abort(*to_status(from_rpc_error(error)))
    except Exception:
        ticket = secrets.token_hex(8)
        logger.exception("internal error %s in %s", ticket, method)
        # The exception's own text may hold what the caller must not see.
        await context.abort(*to_status(StepdError(f"internal error; the server's log has it as {ticket}", id=ticket)))
