"""An SMTP server for the tests: prints its port, then each message it took as a line of JSON; ends with its input."""

import asyncio
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

how, certificate, key, busy = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)


def say(what):
    print(json.dumps(what), flush=True)


class Handler:
    busy = busy

    async def handle_DATA(self, server, session, envelope):
        if Handler.busy > 0:
            Handler.busy -= 1
            say({"busy": True})
            return "451 not now"
        say(
            {
                "from": envelope.mail_from,
                "to": envelope.rcpt_tos,
                "text": envelope.content.decode("utf-8"),
                "tls": session.ssl is not None or how == "tls",
                "user": session.auth_data.login.decode() if session.authenticated else None,
            }
        )
        return "250 taken"


def authenticate(server, session, envelope, mechanism, data):
    if data.login == b"ops" and data.password == b"s3cr3t":
        return AuthResult(success=True, auth_data=data)
    say({"refused": data.login.decode()})
    return AuthResult(success=False, handled=False, message=f"535 5.7.8 {data.password.decode()} is wrong")


def talk():
    starttls = how == "starttls"
    return SMTP(
        Handler(),
        hostname="localhost",
        tls_context=context if starttls else None,
        require_starttls=starttls,
        authenticator=authenticate,
        auth_require_tls=starttls,
    )


async def serve():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(talk, "127.0.0.1", 0, ssl=context if how == "tls" else None)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


asyncio.run(serve())
