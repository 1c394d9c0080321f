"""Checks the files of keys and certificates of the HTTP bridge.

The daemon runs this module as a program before it loads its models, because the daemon imports neither the
bridge nor ``ssl``. The arguments are the paths of the key file, the certificate and the certificate's private
key. An empty argument means that there is no such file.
"""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

from inferd.errors import ConfigError
from inferd.http.keys import Keys


def check(key_file: Path | None, cert: Path | None, cert_key: Path | None) -> None:
    """Raises ConfigError if a file cannot be used."""
    Keys(key_file)
    check_certificate(cert, cert_key)


def check_certificate(cert: Path | None, cert_key: Path | None) -> None:
    """Raises ConfigError if the certificate cannot be used with its private key."""
    if cert is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, cert_key)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"the certificate {cert} cannot be used: {reason}; it must be a chain in PEM, with the"
                " private key in the same file or in that of --http-key"
            ) from None


if __name__ == "__main__":
    try:
        check(*(Path(argument) if argument else None for argument in sys.argv[1:]))
    except ConfigError as error:
        sys.exit(str(error))
