"""Credentials stay where they are given: what is logged, printed or sent elsewhere goes through `masked` first.

Hidden are logins and tokens inside addresses, tokens of the hub by their form, and the values of environment variables
whose names say that they are secret.
"""

import os
import re

_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_IN_QUERY = re.compile(r"(?i)([?&](?:access_token|token|api_key|password|secret|sig|signature)=)[^&\s'\"]+")
_OF_HUB = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_SECRET_NAME = re.compile(r"(?i)(?:TOKEN|PASSWORD|PASSWD|SECRET|SECRET_ACCESS_KEY|API_KEY|CREDENTIALS)$")
_SHORTEST = 8  # a value that is shorter would hide ordinary words


def masked(text: str) -> str:
    """The text with `***` in place of credentials."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    text = _IN_ADDRESS.sub("***", text) if "@" in text else text
    text = _IN_QUERY.sub(r"\1***", text) if "=" in text else text
    return _OF_HUB.sub("hf_***", text) if "hf_" in text else text
