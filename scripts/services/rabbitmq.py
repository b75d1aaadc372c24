"""A RabbitMQ node of its own: Debian's, with its own folder, ports, cookie and port mapper."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from services.process import free_ports, listens, server

#: AiiDA holds a message for as long as its process lasts; by default RabbitMQ takes it away after half an hour.
ADVANCED = "[{rabbit, [{consumer_timeout, undefined}]}].\n"


@contextmanager
def rabbitmq(folder: Path, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Start RabbitMQ.

    :returns: ``AMQP_PORT``; the user is ``guest`` with the password ``guest``. And what ``rabbitmqctl`` needs to reach
        this node, with ``HOME`` as ``RABBITMQ_HOME``.
    """
    port, distribution, mapper = free_ports(3)
    (folder / "advanced.config").write_text(ADVANCED, encoding="ascii")
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.default = 127.0.0.1:{port}\n", encoding="ascii")
    (folder / "enabled_plugins").write_text("[].\n", encoding="ascii")
    (folder / "env.conf").write_text("", encoding="ascii")
    own = {
        "HOME": str(folder),  # the cookie
        "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_NODENAME": f"mlip{port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none",  # idle schedulers do not spin
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    with server(
        ["/usr/lib/rabbitmq/bin/rabbitmq-server"],
        log=folder / "output",
        env={**env, **own},
        ready=lambda: listens(port),
    ):
        yield {
            "AMQP_PORT": str(port),
            "RABBITMQ_HOME": str(folder),
            **{name: own[name] for name in ("RABBITMQ_CONF_ENV_FILE", "RABBITMQ_NODENAME", "ERL_EPMD_PORT")},
        }
    subprocess.run(["epmd", "-port", str(mapper), "-kill"], env={**env, **own}, capture_output=True, check=False)
