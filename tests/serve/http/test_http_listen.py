"""The server's sockets."""

from __future__ import annotations

import asyncio
import socket

from khola.serve.run import listen


def test_answers_are_sent_without_delay() -> None:
    """A head and a body that wait for each other's receipt cost 40 ms a request on a connection that is kept."""

    async def run() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            await writer.wait_closed()

        first, *others = listen("127.0.0.1", 0)
        for other in others:
            other.close()
        async with await asyncio.start_server(answer, sock=first):
            _, writer = await asyncio.open_connection(*first.getsockname()[:2])
            found = await accepted
            writer.close()
            await writer.wait_closed()
        return found

    assert asyncio.run(run())
