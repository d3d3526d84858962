"""What the formats of JSON Schema are here: one regular expression each, for the grammar and for the check of the finished text.

Each is a part of what its RFC allows that every reader agrees on: no leap seconds, no year 0, no comments in mail addresses, no IPv4 inside IPv6.
"""
from __future__ import annotations

_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"  # Python's and most databases' years: 1 to 9999
_BY_4 = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = (f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
         f"|(?:[0-9]{{2}}{_BY_4}|{_BY_4}00)-02-29)")  # February 29 in leap years only
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_HOURS = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9\-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = r"[a-zA-Z0-9!#$%'*+/=?^_`{|}\-]+"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_H16 = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join([f"(?:{_H16}:){{7}}{_H16}", *(  # RFC 4291: one :: for one or more groups of zeros
    f"{f'{_H16}(?::{_H16}){{{n - 1}}}' if n else ''}::{f'(?:{_H16}(?::{_H16}){{0,{6 - n}}})?' if n < 7 else ''}" for n in range(8))])
_PCHAR = r"(?:[a-zA-Z0-9._!$'()*+,;=:@\-]|%[0-9a-fA-F]{2})"
_REG = r"(?:[a-zA-Z0-9._!$'()*+,;=\-]|%[0-9a-fA-F]{2})"
_URI = (rf"[a-zA-Z][a-zA-Z0-9+.\-]*:(?://(?:{_REG}*@)?{_REG}*(?::[0-9]{{1,5}})?(?:/{_PCHAR}*)*|/?(?:{_PCHAR}+(?:/{_PCHAR}*)*)?)"
        rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?")  # RFC 3986

FORMATS = {  # format -> (regular expression of the whole text, its greatest length or None)
    "date": (_DATE, None),  # RFC 3339, as the next two
    "time": (_TIME, None),
    "date-time": (f"{_DATE}T{_TIME}", None),
    "duration": (f"P(?:{_DAYS}(?:{_HOURS})?|{_HOURS}|[0-9]+W)", None),  # RFC 3339, appendix A
    "email": (rf"{_ATOM}(?:\.{_ATOM})*@{_HOST}", 254),  # RFC 5321
    "hostname": (_HOST, 253),  # RFC 1123
    "ipv4": (rf"(?:{_OCTET}\.){{3}}{_OCTET}", None),
    "ipv6": (_IPV6, None),
    "uuid": ("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", None),
    "uri": (_URI, None),
}
