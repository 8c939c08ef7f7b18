"""How the pilot reaches the database, and its login."""

import base64
import os
import threading
import time
from typing import Callable, Dict, NamedTuple, Optional

from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.lifecycle.credentials import CLIENT_FOLDER, CONF_YML, read_credentials
from airflow_provider_picas.lifecycle.exit_codes import EX_CONFIG, Failed
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.pilot.log import log


class Access(NamedTuple):
    """How to reach the database. The password is never logged or passed to a command."""

    url: str
    database: str
    username: str
    password: str
    folder: str  # where picasconfig.py is


def read_access(folder: str, config: Config, again: bool = False) -> Access:
    """The credentials in ``picasconfig.py`` or ``conf.yml``; nothing is executed. ``folder`` is pilot.json's. Raises
    Failed."""
    path = _find_credentials(folder, config)
    try:
        values, secret = read_credentials(path)
        if os.stat(secret).st_mode & 0o077 and not again:
            log(
                f"Other users may be able to read {secret}, which contains a password or the key to one. Set its mode to 600."
            )
    except (OSError, ValueError, RecursionError, MemoryError) as error:  # the last two come from Python's parser
        raise Failed(f"{path} cannot be read: {error}.", EX_CONFIG) from None
    if config.database:
        values["PICAS_DATABASE"] = config.database
    for name in ("PICAS_HOST_URL", "PICAS_DATABASE"):
        if not values.get(name):
            raise Failed(f"{path} does not set {name} to a string.", EX_CONFIG)
    login, password = values.get("PICAS_USERNAME", ""), values.get("PICAS_PASSWORD", "")
    return Access(values["PICAS_HOST_URL"], values["PICAS_DATABASE"], login, password, os.path.dirname(path))


def _find_credentials(folder: str, config: Config) -> str:
    """The file with the credentials; the first of several. Raises Failed."""
    if config.credentials == "existing":
        places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
        paths = [os.path.join(place, "picasconfig.py") for place in places]
        paths.append(os.path.join(os.path.expanduser(CLIENT_FOLDER), CONF_YML))
        missing = f"There is no picasconfig.py on PYTHONPATH, and no {paths[-1]}."
    else:
        place = os.path.join(folder, os.path.expanduser(config.credentials or "credentials"))
        paths = [os.path.join(place, name) for name in ("picasconfig.py", CONF_YML)]
        missing = f"There is no picasconfig.py in {place}, and no {CONF_YML}."
    for path in paths:
        if os.path.isfile(path):
            return path
    raise Failed(missing, EX_CONFIG)


class Login:
    """The login of all connections. When the database refuses it, it is read again: the password may have been changed."""

    def __init__(self, access: Access, read: Optional[Callable[[], Access]] = None) -> None:
        self.access = access
        self._read = read
        self._reading = threading.Lock()
        self._backoff = Backoff(0.5, longest=5.0)
        self._next = 0.0  # when to read again (monotonic)
        self._logged = ""

    def headers(self) -> Dict[str, str]:
        """The headers with which a request logs in."""
        if not self.access.username:
            return {}
        login = f"{self.access.username}:{self.access.password}".encode()
        return {"Authorization": "Basic " + base64.b64encode(login).decode("ascii")}

    def has_changed(self, refused: Access) -> bool:
        """True if there is another login than the refused one. Reads the file again from time to time."""
        # A file system that hangs blocks only one thread.
        if self.access == refused and self._read and self._reading.acquire(blocking=False):
            try:
                if time.monotonic() >= self._next:
                    self._next = time.monotonic() + self._backoff.pause()
                    self._take(self._read())
            except Failed as error:
                self._log_once(f"The database refuses the login, and the credentials cannot be read again: {error}")
            finally:
                self._reading.release()
        return self.access != refused

    def _take(self, found: Access) -> None:
        if (found.url, found.database) != (self.access.url, self.access.database):
            # The file's password is for another server.
            self._log_once(f"The credentials in {found.folder} are now for another database. They are ignored.")
        elif found != self.access:
            self.access, self._backoff, self._logged = found, Backoff(0.5, longest=5.0), ""
            log(f"The credentials in {found.folder} have changed. The new ones are used from now on.")

    def _log_once(self, message: str) -> None:
        if message != self._logged:
            log(message)
        self._logged = message
