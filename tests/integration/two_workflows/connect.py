"""The pool of the account's conf.yml."""

from picas.clients import CouchDB
from picas.crypto import decrypt_password
from picas.picas_config import PicasConfig


def connect():
    config = PicasConfig(load=True).config
    password = decrypt_password(config["encrypted_password"]).decode()
    return CouchDB(url=config["host_url"], db=config["database"], username=config["username"], password=password)
