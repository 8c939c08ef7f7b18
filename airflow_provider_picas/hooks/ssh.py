"""The SSH connection to a cluster: tasks and triggers read it in the same way, and log in with the same client.

Airflow's ``SSHHook`` reads the Airflow connection, and paramiko logs in. Triggers also use it, in threads. Airflow's
``SSHHookAsync``, with asyncssh, reads some extras differently and ignores others: a task could then submit pilots that
its deferred wait could never reach.

=========================== ====================================== ===================================================
field or extra              tasks and triggers (paramiko)          Airflow's SSHHookAsync (asyncssh), not used here
=========================== ====================================== ===================================================
host, port, login, password as they stand; a password is stripped  as they stand
private_key                 RSA, ECDSA or Ed25519                  any that asyncssh knows
private_key_passphrase      of ``private_key``                     of ``private_key`` and ``key_file``
key_file                    ``~`` is the home of the process;      ``~`` is not expanded
                            the password is its passphrase
look_for_keys               as it stands; also keys of an agent    ignored: always looks
host_key                    for host and port                      for the host, on any port
known_hosts                 ignored: ``~/.ssh/known_hosts``        a path, or ``none``
no_host_key_check           as it stands                           as it stands
allow_host_key_change       as it stands                           ignored: the key is checked
conn_timeout                of the TCP connection; default 30 s    ignored
compress                    as it stands                           ignored
disabled_algorithms         as it stands                           ignored
ciphers                     from the first new exchange of keys on ignored
cmd_timeout                 ignored: each command has its own      ignored
``~/.ssh/config``           ``ProxyCommand``, ``IdentityFile``     all that asyncssh knows
=========================== ====================================== ===================================================

In ``known_hosts``, the line of a server on a port other than 22 begins with ``[host]:port``. Files are read on the
machine that logs in: on each worker and each triggerer.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException

from airflow_provider_picas.slurm.remote import LoginError, UnreachableError
from airflow_provider_picas.tokens.text import one_line

if TYPE_CHECKING:
    import paramiko
    from airflow.providers.ssh.hooks.ssh import SSHHook

CONNECT_TIMEOUT = 30  # seconds, unless the connection's extra ``conn_timeout`` names another

CLOSE_TIMEOUT = 5.0  # seconds for a connection to close


def read(ssh_conn_id: str) -> SSHHook:
    """Read an Airflow connection. Raises LoginError."""
    import paramiko
    from airflow.providers.ssh.hooks.ssh import SSHHook

    try:
        hook = SSHHook(ssh_conn_id=ssh_conn_id)
    except AirflowNotFoundException:
        raise LoginError(
            f"Connection {ssh_conn_id!r} does not exist. Create one of type SSH to the cluster's login node, in the UI or with"
            " `airflow connections add`, or set `ssh_conn_id` to another one."
        ) from None
    except (ValueError, AirflowException, paramiko.SSHException) as error:  # such as a malformed host key
        raise LoginError(f"Connection {ssh_conn_id!r} cannot be used: {error}") from None
    if isinstance(hook.key_file, str):
        hook.key_file = os.path.expanduser(hook.key_file)
        if not os.access(hook.key_file, os.R_OK):
            raise LoginError(
                f"Connection {ssh_conn_id!r} cannot be used: this machine has no readable file {hook.key_file!r} (key_file)."
                " Put the key there, on workers and triggerers, or into the extra 'private_key'."
            )
    hook.conn_timeout = hook.conn_timeout or CONNECT_TIMEOUT  # without, the kernel waits for minutes
    hook.conn_retry_attempts = 1  # the hook would try even a wrong key three times, and sites lock such accounts
    return hook


def place(hook: SSHHook) -> str:
    """The name of the cluster in errors."""
    return f"{hook.username}@{hook.remote_host} (connection {hook.ssh_conn_id!r})"


def connect(hook: SSHHook) -> paramiko.SSHClient:
    """Log in. Raises LoginError if trying again will not help, else UnreachableError."""
    import paramiko

    where = place(hook)
    vars(hook).pop("host_proxy", None)  # from a try that failed
    try:
        return hook.get_conn()
    except paramiko.BadHostKeyException as error:
        raise LoginError(
            f"The SSH host key of {where} is not the expected one ({error}). If the site has changed it, put the new one in"
            " the connection's extra 'host_key'; otherwise somebody may be intercepting it."
        ) from None
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error) or "shut down" in str(error):
            raise UnreachableError(f"{where} cannot be reached: {one_line(str(error))}") from None
        raise LoginError(
            f"{where} refused the login ({one_line(str(error))}). Check the user name and the key in the connection."
        ) from None
    except paramiko.SSHException as error:
        if "not found in known_hosts" in str(error):
            raise LoginError(
                f"The SSH host key of {where} is unknown ({error}). Put it in the connection's extra 'host_key' as"
                " '<type> <base64>', as `ssh-keyscan` prints it, after comparing it with the key that the site publishes."
            ) from None
        raise UnreachableError(f"{where} cannot be reached: {one_line(str(error))}.") from None
    except (TypeError, ValueError) as error:  # an extra of the wrong type, or a cipher that paramiko does not know
        raise LoginError(f"Connection {hook.ssh_conn_id!r} cannot be used: {error}") from None
    except (OSError, EOFError) as error:
        raise UnreachableError(
            f"{where} cannot be reached ({one_line(str(error)) or type(error).__name__})."
            " Check host and port, and that the site is up."
        ) from None


def close(hook: SSHHook, client: paramiko.SSHClient) -> None:
    """Close a connection, and end its proxy command: the next connection starts another."""
    transport = client.get_transport()
    client.close()
    proxy = vars(hook).pop("host_proxy", None)
    if proxy is None or transport is None:
        return
    transport.join(CLOSE_TIMEOUT)  # until it has ended, it sends SIGTERM to the proxy process
    if not transport.is_alive():
        proxy.process.kill()
        proxy.process.communicate()
